from typing import Any

import pytest
import torch

from benchmarks.parts.naive import NaiveModel
from pipeline.config.model import ModelConfig
from pipeline.model.network import MultiTokenModel, initialise

HEADS = [
    {"head_order": order, "head_type": kind, "replicated_unembedding": replicated}
    for order in ("parallel", "causal", "anticausal")
    for kind in ("transformer", "linear")
    for replicated in (False, True)
]


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "-".join(map(str, heads.values())))
def test_the_naive_model_computes_the_same(heads: dict[str, Any]) -> None:
    config = ModelConfig(dim=16, n_layers=4, n_heads=2, vocab_size=40, n_future_tokens=3, multiple_of=16, **heads)
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(40, shape, generator=generator) for shape in ((2, 7), (2, 7, 3)))
    results = []
    for model in (MultiTokenModel(config).double(), NaiveModel(config).double()):
        initialise(model, seed=1)
        loss, losses = model(tokens, targets)
        loss.backward()
        results.append((loss.detach(), losses, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)
