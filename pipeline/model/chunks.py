"""How many positions' logits the loss holds at a time; needed by the loss and by who plans its memory without torch."""

MIN_CHUNK_POSITIONS = 256  # below this, matrix products get too thin to be fast


def chunk_positions(n_positions: int, *, dim: int, vocab_size: int) -> int:
    """Return how many of a micro batch's positions a chunk has: its logits are as large as the hidden state."""
    return max(MIN_CHUNK_POSITIONS, n_positions * dim // vocab_size)
