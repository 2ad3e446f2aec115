"""The time of training steps by part, read from a trace of torch's profiler.

The model, the data loader and the engine open a named range around each part of their work (`runtime/ranges.py`). A
trace contains these ranges, torch's own operators, the collectives and, on a GPU, its kernels. Each moment of a step is
assigned to exactly one part, so that the parts add up to the step:

1. On the host, a moment belongs to the innermost open range. A backward operator belongs to the range in which its
   forward ran; autograd gives both the same sequence number. It therefore does not matter who calls backward (the
   head-sequential loss calls it inside its forward, DeepSpeed's pipelines call it themselves), and recomputed layers
   count as backward.
2. On a GPU, a moment belongs to the part that launched the running kernel. It is communication only if no other kernel
   runs, and if the GPU is idle, it belongs to whatever the host is doing.
3. Without a GPU, a moment is communication if a collective is in progress and no operator computes on the host.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.runtime.ranges import GRADIENTS, OPTIMIZER, PREFIX, STEP

COMMUNICATION, OTHER = "communication", "other"
MICROSECONDS = 1e6  # per second; traces are in microseconds

_BACKWARD = "autograd::engine::evaluate_function: "
_COLLECTIVES = ("gloo:", "nccl:", "mpi:")
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}

NOBODY = -1  # the label number of moments that belong to no part

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Event = dict[str, Any]
Label = tuple[str, str]  # part, and "forward" or "backward"


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Seconds per step of one part; parts outside the model have no backward."""

    forward_s: float
    backward_s: float

    @property
    def total_s(self) -> float:
        """Seconds of forward and backward together."""
        return self.forward_s + self.backward_s


def times_of_parts(events: Iterable[Event]) -> dict[str, PartTimes]:
    """Return the seconds of each part in the mean step; with `OTHER`, the rest, they add up to its wall time.

    Args:
        events: `traceEvents` of a trace from torch's profiler that contains at least one step.
    """
    timeline = _Timeline(events)
    seconds: dict[Label, float] = defaultdict(float)
    for label, length_s in timeline.lengths_of_labels():
        seconds[label] += length_s / timeline.n_steps
    return {
        name: PartTimes(forward_s=seconds[name, "forward"], backward_s=seconds[name, "backward"])
        for name in sorted({name for name, _ in seconds}, key=_place)
    }


def as_table(times: dict[str, PartTimes]) -> str:
    """Return the parts as a text table whose last row is their sum, the step."""
    step_s = sum(part.total_s for part in times.values())
    lines = [f"{'seconds per step':<16}{'forward':>10}{'backward':>10}{'total':>10}{'share':>8}"]
    for name, times_of_part in [*times.items(), (STEP, PartTimes(forward_s=step_s, backward_s=0.0))]:
        both = (times_of_part.forward_s, times_of_part.backward_s)
        columns = "".join(f"{seconds:10.4f}" if times_of_part.backward_s else f"{'':10}" for seconds in both)
        lines.append(f"{name:<16}{columns}{times_of_part.total_s:10.4f}{times_of_part.total_s / step_s:8.1%}")
    return "\n".join(lines)


def _place(name: str) -> tuple[int, int, str]:
    """Return the sort key by which parts follow each other as in a step."""
    order = ("data", "trunk", "head ", "unembedding", "heads", GRADIENTS, COMMUNICATION, OPTIMIZER, OTHER)
    return next((i for i, start in enumerate(order) if name.startswith(start)), len(order)), len(name), name


class _Timeline:
    """A trace, cut wherever anything begins or ends; moment i lasts until moment i + 1."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._spans = sorted((e for e in events if e.get("ph") == "X"), key=_outer_first)
        self._steps = [span for span in self._spans if span["name"] == PREFIX + STEP]
        self._moments = np.unique([time for span in self._spans for time in (span["ts"], _end(span))])
        self._labels: list[Label] = []
        self.n_steps = len(self._steps)

    def lengths_of_labels(self) -> Iterator[tuple[Label, float]]:
        """Yield each label that occurs in the steps, and the total length of its moments in seconds."""
        owners = self._owners()[self._marked(self._steps)]
        lengths = np.diff(self._moments, append=self._moments[-1])[self._marked(self._steps)]
        for label, microseconds in enumerate(np.bincount(owners, weights=lengths)):
            yield self._labels[label], float(microseconds) / MICROSECONDS

    def _owners(self) -> IntArray:
        """Return the label number of each moment."""
        host, host_threads = self._host()
        kernels = [span for span in self._spans if span.get("cat") in _KERNELS]
        if kernels:
            collectives = [span for span in kernels if _is_nccl(span)]
            computing = self._launched_by(host, [span for span in kernels if not _is_nccl(span)])
        else:
            collectives = [span for span in self._annotations() if span["name"].startswith(_COLLECTIVES)]
            operators = [span for span in self._spans if span["name"].startswith("aten::")]
            busy = self._marked(span for span in operators if span["tid"] in host_threads)
            computing = np.where(busy, host, NOBODY)
        waiting = np.where(self._marked(collectives), self._number((COMMUNICATION, "forward")), host)
        return np.where(computing == NOBODY, waiting, computing)

    def _host(self) -> tuple[IntArray, set[int]]:
        """Return the label number of each moment on the host, and the threads that do the work there."""
        main = self._steps[0]["tid"]
        ranges = [
            (span, (name, "forward"))
            for span in self._annotations()
            if span["tid"] == main and (name := _part_of(span)) is not None
        ]
        begin = [(self._steps[0] | {"ts": self._moments[0], "dur": np.ptp(self._moments)}, (OTHER, "forward"))]
        forward = self._painted(begin + ranges)
        part_of_node: dict[int, str] = {}
        for span in self._spans:
            # Operators that precede the one which creates a node show its number too; the last one created it.
            arguments = span.get("args", {})
            number, is_backward = arguments.get("Sequence number"), arguments.get("Fwd thread id")
            if number is not None and span["tid"] == main and not is_backward:
                part_of_node[number] = self._labels[forward[self._moment(span["ts"])]][0]
        gradients = [span for span in self._spans if span["name"].startswith(_BACKWARD)]
        backward = [
            (span, (part, "backward"))
            for span in gradients
            if (part := _part_of_gradient(span, part_of_node)) not in (None, OTHER)
        ]
        host = self._painted(begin + sorted(ranges + backward, key=lambda pair: _outer_first(pair[0])))
        return host, {main} | {span["tid"] for span in gradients}

    def _launched_by(self, host: IntArray, kernels: list[Event]) -> IntArray:
        """Return the label number of the kernel that runs in each moment; NOBODY if none does."""
        launches: dict[Any, Any] = {
            span["args"].get("correlation"): span["ts"] for span in self._spans if span.get("cat") in _LAUNCHES
        }
        times = [(kernel, launches.get(kernel["args"].get("correlation")) or kernel["ts"]) for kernel in kernels]
        return self._painted([(kernel, self._labels[host[self._moment(time)]]) for kernel, time in times])

    def _annotations(self) -> list[Event]:
        return [span for span in self._spans if span.get("cat") == "user_annotation"]

    def _number(self, label: Label) -> int:
        if label not in self._labels:
            self._labels.append(label)
        return self._labels.index(label)

    def _moment(self, time: float) -> Any:
        return np.searchsorted(self._moments, time)

    def _painted(self, spans: Iterable[tuple[Event, Label]]) -> IntArray:
        """Return the label number of the last span that covers each moment; NOBODY if none does."""
        pairs, painted = list(spans), np.full(len(self._moments), NOBODY)
        starts = np.searchsorted(self._moments, [span["ts"] for span, _ in pairs])
        ends = np.searchsorted(self._moments, [_end(span) for span, _ in pairs])
        for start, end, (_, label) in zip(starts, ends, pairs, strict=True):
            painted[start:end] = self._number(label)
        return painted

    def _marked(self, spans: Iterable[Event]) -> BoolArray:
        """Return which moments are covered by any span."""
        return self._painted((span, (OTHER, "forward")) for span in spans) != NOBODY


def _part_of(annotation: Event) -> str | None:
    name: str = annotation["name"]
    if name.startswith("Optimizer.step#"):  # torch's own range, which also exists inside DeepSpeed's pipelines
        return OPTIMIZER
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) and name != PREFIX + STEP else None


def _part_of_gradient(span: Event, part_of_node: dict[int, str]) -> str | None:
    if span["name"].endswith("AccumulateGrad"):  # includes ZeRO's hooks on it
        return GRADIENTS
    return part_of_node.get(span.get("args", {}).get("Sequence number", -1))


def _is_nccl(kernel: Event) -> bool:
    return "nccl" in kernel["name"].lower()


def _outer_first(span: Event) -> tuple[float, float]:
    return span["ts"], -span["dur"]


def _end(span: Event) -> float:
    return span["ts"] + span["dur"]
