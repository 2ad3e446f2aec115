"""Counts the storages that operators return: when each appears, when it dies, and what it holds.

Works on fake tensors, which have shapes but no memory, as well as on real ones.
"""

import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The bytes alive at the peak, by what they hold."""

    weights: int
    gradients: int
    logits: int
    rest: int

    @property
    def total(self) -> int:
        """The bytes of all kinds."""
        return self.weights + self.gradients + self.logits + self.rest


@dataclass
class _Storage:
    n_bytes: int
    kind: str


class StorageLog(TorchDispatchMode):
    """Records every storage that operators return while the log is active, and the death of each.

    torch's own `MemTracker` counts the same way, but its hooks fail on `autograd.grad`, which our loss calls.
    """

    def __init__(self, *, vocab_size: int) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self._vocab_size = vocab_size
        self._alive: dict[int, _Storage] = {}
        self._events: list[tuple[int, _Storage]] = []

    def enter(self, tensor: Tensor, *, kind: str | None = None) -> None:
        """Record the tensor's storage; if it is recorded already, only set its kind."""
        storage = tensor.untyped_storage()
        entered = self._alive.get(storage._cdata)
        if entered is None:
            is_logits = tensor.dim() > 0 and tensor.shape[-1] == self._vocab_size
            entered = _Storage(storage.nbytes(), "logits" if is_logits else "rest")
            self._alive[storage._cdata] = entered
            self._events.append((1, entered))
            weakref.finalize(storage, self._strike_out, storage._cdata)
        if kind is not None:
            entered.kind = kind

    @property
    def n_events(self) -> int:
        """Return the number of storages that have appeared or died so far."""
        return len(self._events)

    @property
    def alive_bytes(self) -> int:
        """The bytes of the storages that are alive now."""
        return sum(storage.n_bytes for storage in self._alive.values())

    def peak(self, *, since: int = 0) -> Peak:
        """Return the largest number of bytes alive at once, counting only moments after the first `since` events."""
        n_bytes = most = 0
        n_events = 0
        for index, (sign, storage) in enumerate(self._events, start=1):
            n_bytes += sign * storage.n_bytes
            if index > since and n_bytes > most:
                most, n_events = n_bytes, index
        kinds = dict.fromkeys(("weights", "gradients", "logits", "rest"), 0)
        for sign, storage in self._events[:n_events]:
            kinds[storage.kind] += sign * storage.n_bytes
        return Peak(**kinds)

    def _strike_out(self, address: int) -> None:
        self._events.append((-1, self._alive.pop(address)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.add(func.__name__)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self.enter(leaf)
        return result
