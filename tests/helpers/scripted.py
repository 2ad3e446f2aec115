"""Byte-level models that write a given text: each byte has a fixed successor, in any context."""

from typing import Any

import torch

from common.tokenizers import ByteTokenizer
from pipeline.config.model import ModelConfig
from pipeline.model.network import MultiTokenModel


def scripted_model(script: str, *, n_heads: int = 4) -> MultiTokenModel:
    """Return a model that continues each byte of `script` with the next one, and other bytes and the last with EOS.

    A repeated byte continues as at its first occurrence, so "abca" repeats forever. Every head is right. The embedding
    is the identity, attention adds nothing, and a head's feed-forward layer maps tokens to tokens.
    """
    ids = list(script.encode())
    following = dict(zip(reversed(ids[:-1]), reversed(ids[1:]), strict=True))
    vocab_size, dim = ByteTokenizer.vocab_size, 272
    config = ModelConfig(
        dim=dim, n_layers=n_heads + 1, n_heads=2, vocab_size=vocab_size, n_future_tokens=n_heads, multiple_of=16
    )
    model = MultiTokenModel(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.zero_()
    identity = torch.eye(vocab_size, dim)
    model.trunk.tok_embeddings.weight.copy_(identity)
    model.heads.output.weight.copy_(identity)
    heads: list[Any] = list(model.heads.layers)
    for n_ahead, head in enumerate(heads, start=1):
        feed_forward = head.feed_forward
        feed_forward.w1.weight[:vocab_size] = identity
        feed_forward.w3.weight[:vocab_size] = identity
        for token_id in range(vocab_size):
            said = token_id
            for _ in range(n_ahead):
                said = following.get(said, ByteTokenizer.eos_id)
            feed_forward.w2.weight[said, token_id] = 1
    return model
