"""Micro batches without a data set: random tokens, or zeros where their values do not matter."""

from collections.abc import Iterator

import torch

from pipeline.data.batches import Batch


def random_batches(*, micro_batch_size: int, seq_len: int, vocab_size: int, n_future_tokens: int) -> Iterator[Batch]:
    """Yield micro batches of new random tokens without end."""
    while True:
        tokens_BW = torch.randint(vocab_size, (micro_batch_size, seq_len + n_future_tokens))
        yield Batch(tokens_BW[:, :seq_len], tokens_BW[:, 1:].unfold(1, n_future_tokens, 1)[:, :seq_len])


def zero_batches(*, micro_batch_size: int, seq_len: int, n_future_tokens: int) -> Iterator[Batch]:
    """Yield micro batches of zeros without end, each in new storages."""
    while True:
        targets_BTN = torch.zeros(micro_batch_size, seq_len, n_future_tokens, dtype=torch.int64)
        yield Batch(torch.zeros(micro_batch_size, seq_len, dtype=torch.int64), targets_BTN)
