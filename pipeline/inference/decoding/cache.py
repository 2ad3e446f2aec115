"""Static key/value caches, and the block of new tokens that a forward writes into them.

Every sequence advances at its own pace: a block starts at each sequence's own position, and attention sees the
positions before it. Later positions hold padding or rejected drafts; they are masked until they are overwritten.

Shape suffixes as in `pipeline.model.network`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.model import ModelConfig
from pipeline.model.layers import rotary_factors


@dataclass
class Block:
    """The positions of the current forward's tokens; all layers share it."""

    rows_B1: Tensor
    """Row of each sequence in the caches, int64."""
    positions_BT: Tensor
    """Position of each token in its sequence, int64."""
    n_visible: int
    """Number of positions that attention sees: up to the last position of the block."""
    rotary: Tensor
    """Rotary factors of the positions."""
    mask: Tensor | None
    """(B, 1, T, S), added to the scores; None if causal order is enough."""


class LayerCache:
    """Keys and values of one layer, (max batch, K, capacity, E): the positions of a head are adjacent in memory.

    Attention reads them in this order. With positions outermost, it took 1.3 (fp32, 1 query) to 2.5 times (bf16) as
    long on a CPU.
    """

    def __init__(self, caches: "Caches", shape: tuple[int, int, int, int], *, like: Tensor) -> None:
        # zeros: attention multiplies masked values by 0, and uninitialised memory may hold NaN
        self._keys_BKSE, self._values_BKSE = like.new_zeros(shape), like.new_zeros(shape)
        self._caches = caches

    def update(self, key_BKTE: Tensor, value_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the block's keys and values; return the keys and values of all visible positions, (B, K, S, E) each."""
        return self._stored(self._keys_BKSE, key_BKTE), self._stored(self._values_BKSE, value_BKTE)

    def keep(self, rows: list[int]) -> None:
        """Move these rows to the front of the cache."""
        for stored_BKSE in (self._keys_BKSE, self._values_BKSE):
            stored_BKSE[: len(rows)] = stored_BKSE[rows]

    def _stored(self, stored_BKSE: Tensor, new_BKTE: Tensor) -> Tensor:
        block = self._caches.block
        stored_BKSE[block.rows_B1, :, block.positions_BT] = new_BKTE.transpose(1, 2)
        return stored_BKSE[: len(block.rows_B1), :, : block.n_visible]


class Caches:
    """One cache per layer, by name, and the positions of the block that is written next."""

    block: Block

    def __init__(
        self, names: Iterable[str], config: ModelConfig, *, max_batch_size: int, capacity: int, like: Tensor
    ) -> None:
        """Allocate caches of `capacity` positions, with the dtype and on the device of `like`."""
        self._max_batch_size, self._capacity = max_batch_size, capacity
        self._dtype = like.dtype
        self._positions = torch.arange(capacity, device=like.device)
        self._rows = torch.arange(max_batch_size, device=like.device)
        self._rotary = rotary_factors(self._positions, head_dim=config.head_dim, theta=config.rope_theta)
        shape = (max_batch_size, config.kv_heads, capacity, config.head_dim)
        self._layers = {name: LayerCache(self, shape, like=like) for name in names}

    def __getitem__(self, name: str) -> LayerCache:
        return self._layers[name]

    def place(self, starts: Sequence[int], *, n_tokens: int) -> None:
        """Set the positions of the next forward: `n_tokens` tokens of each sequence from `starts` on.

        Raises:
            ValueError: the tokens do not fit into the caches.
        """
        n_rows, n_visible = len(starts), max(starts) + n_tokens
        if n_rows > self._max_batch_size or n_visible > self._capacity:
            raise ValueError(
                f"{n_rows} sequences up to position {n_visible} do not fit into caches for {self._max_batch_size} "
                f"sequences up to position {self._capacity}"
            )
        positions_BT = torch.tensor(starts, device=self._positions.device).unsqueeze(-1) + self._positions[:n_tokens]
        is_causal = min(starts) == max(starts) and (n_tokens == 1 or starts[0] == 0)
        self.block = Block(
            rows_B1=self._rows[:n_rows].unsqueeze(-1),
            positions_BT=positions_BT,
            n_visible=n_visible,
            rotary=self._rotary[positions_BT],
            mask=None if is_causal else self._mask(positions_BT, n_visible),
        )

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows of the batch, as the first rows of the next batch."""
        for layer in self._layers.values():
            layer.keep(rows)

    def _mask(self, positions_BT: Tensor, n_visible: int) -> Tensor:
        hidden_BTS = positions_BT.unsqueeze(-1) < self._positions[:n_visible]
        # additive, because every layer would convert a boolean mask again
        mask_BTS = torch.zeros_like(hidden_BTS, dtype=self._dtype).masked_fill_(hidden_BTS, -torch.inf)
        return mask_BTS.unsqueeze(1)
