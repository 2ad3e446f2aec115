"""The values of weights in another precision: every weight that is not finite, or does not fit, is named and refused.

fp16 ends at 65,504. A larger weight would become infinite without a word, and one infinite weight spoils every logit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.command_line import raise_if_any
from common.wording import counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST_NAMED = 10


class Conversion:
    """Converts weights one at a time, and counts what is lost until `finish`."""

    def __init__(self, *, dtype: torch.dtype | None = None) -> None:
        """Convert to `dtype`; None keeps the dtype of each weight."""
        self.dtype = dtype
        self._problems: list[str] = []

    def converted(self, weight: Tensor, *, name: str) -> Tensor:
        """Return a weight in the new precision."""
        n_bad = _n_not_finite(weight)
        if n_bad:
            self._problems.append(f"{name!r} has {counted(n_bad, 'value')} that {_are(n_bad)} not finite")
        if self.dtype in (None, weight.dtype):
            return weight
        result = weight.to(self.dtype)
        n_lost = _n_not_finite(result) - n_bad
        if n_lost:
            dtype = str(self.dtype).removeprefix("torch.")
            self._problems.append(f"{name!r} has {counted(n_lost, 'value')} that {dtype} cannot hold")
        return result

    def finish(self, *, heading: str) -> None:
        """Report what was lost.

        Raises:
            UserError: names the weights; the message begins with `heading`.
        """
        named, n_more = self._problems[:_MOST_NAMED], len(self._problems) - _MOST_NAMED
        raise_if_any([*named, f"and {n_more:,} more"] if n_more > 0 else named, heading=heading)


def _n_not_finite(weight: Tensor) -> int:
    return weight.numel() - int(weight.isfinite().sum())


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
