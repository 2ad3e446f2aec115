"""Windows that a rank reads of its training or validation data, gathered until the training loop takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.data.sample_record import NOTHING, EpochSamples


@dataclass(kw_only=True)
class Consumed:
    """The windows that one rank has read since it was last asked, with the damage that it met."""

    samples: list[EpochSamples] = field(default_factory=list)
    """The samples by epoch, in the order in which they were read; empty for validation."""
    faults: list[str] = field(default_factory=list)
    """One line for each shard that was found damaged for the first time, or again if nothing was left to read."""
    skipped_windows: int = 0
    """Number of windows that others replaced because their shard is damaged."""
    nothing_left: bool = False
    """True if a window could not be replaced either, so that its tokens are no data."""


class Account:
    """Gathers what batches consume until it is taken, and remembers which faults were reported."""

    def __init__(self) -> None:
        self._consumed = Consumed()
        self._reported: set[str] = set()

    def add(
        self, ids: Sequence[int], *, read_ids: Sequence[int], faults: Sequence[str], epoch: int | None = None
    ) -> None:
        """Count the windows of a batch.

        Args:
            ids: indices of the requested windows.
            read_ids: indices of the windows that were read; NOTHING if none could be.
            faults: one line for each damaged shard among those that were requested.
            epoch: the epoch for which the samples are recorded; None records none.
        """
        found, pairs = self._consumed, list(zip(ids, read_ids, strict=True))
        nothing_read = NOTHING in read_ids
        # A known fault is reported again if nothing could be read, because that must end the run.
        known = set(found.faults) if nothing_read else self._reported
        found.faults += [fault for fault in faults if fault not in known]
        self._reported.update(faults)
        found.skipped_windows += sum(requested != read for requested, read in pairs)
        found.nothing_left |= nothing_read
        if epoch is not None:
            if not found.samples or found.samples[-1][0] != epoch:
                found.samples.append((epoch, []))
            found.samples[-1][1].extend(pair[0] if pair[0] == pair[1] else pair for pair in pairs)

    def take(self) -> Consumed:
        """Return what was gathered, and begin anew."""
        taken, self._consumed = self._consumed, Consumed()
        return taken
