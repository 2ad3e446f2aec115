"""Peers compute the same losses and gradients as the models that they are compared with."""

from typing import Any

import torch

from benchmarks.parts.naive import NaiveModel
from benchmarks.parts.peers import LinguaModel, Llama
from pipeline.model.network import initialise
from tests.helpers.references import as_transformers_llama, tiny_config, tiny_model


def test_linguas_heads_give_the_naive_sum_of_linear_heads() -> None:
    """Our linear heads have one matrix more than lingua's; if it is the identity, both compute the same."""
    config = tiny_config(head_type="linear", replicated_unembedding=True)
    naive = NaiveModel(config).double()
    initialise(naive, seed=1)
    lingua = LinguaModel(config).double()
    lingua.trunk.load_state_dict(naive.trunk.state_dict())
    lingua.norm.load_state_dict(naive.heads.norm.state_dict())
    with torch.no_grad():
        for index, head in enumerate(lingua.heads):
            head.weight.copy_(naive.heads.unembedding(index).weight)  # type: ignore[operator]
            naive.heads.layers[index].weight.copy_(torch.eye(config.dim))  # type: ignore[operator]
    tokens = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(97, (3, 11, 4), generator=torch.Generator().manual_seed(2))
    results: list[Any] = [model(tokens, targets) for model in (naive, lingua)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=0)
    for loss, _ in results:
        loss.backward()
    ours, theirs = naive.trunk.tok_embeddings.weight.grad, lingua.trunk.tok_embeddings.weight.grad
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lingua.heads[2].weight.grad, naive.heads.unembedding(2).weight.grad)


def test_transformers_learns_from_the_same_targets() -> None:
    ours = tiny_model(n_future_tokens=1)
    config = ours.config
    peer = Llama(config)
    peer.llama.load_state_dict(as_transformers_llama(ours).state_dict())
    tokens = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(97, (3, 11, 1), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(peer(tokens, targets)[1], ours(tokens, targets)[1], rtol=1e-5, atol=1e-5)
