"""Where the time of training steps goes, read from a trace of torch's profiler.

The model, the data and the engine open a named range around each part of their work (`runtime/ranges.py`). A trace has
these ranges, torch's own operators, collectives, and on a GPU its kernels. From that each
moment of a step is given to one part, so that the parts add up to the step:

1. On the host, a moment belongs to the innermost range that is open. Of the backward, an operator belongs to the range
   in which its forward ran: autograd numbers both alike. So it does not matter who calls backward (the head-sequential
   loss does so inside its forward, DeepSpeed's pipelines on their own), and recomputed layers count as backward.
2. On a GPU, a moment belongs to the part that launched the kernel which runs; to a collective's only if nothing else
   runs; and to what the host does meanwhile if the GPU has nothing to do.
3. Without a GPU, a moment is communication if a collective is under way and no operator computes on the host.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.runtime.ranges import GRADIENTS, OPTIMIZER, PREFIX, STEP

COMMUNICATION, OTHER = "communication", "other"
MICROSECONDS = 1e6  # a second; traces are in microseconds

_BACKWARD = "autograd::engine::evaluate_function: "
_COLLECTIVES = ("gloo:", "nccl:", "mpi:")
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}

NOBODY = -1  # in place of a label's number

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Event = dict[str, Any]
Label = tuple[str, str]  # part, and "forward" or "backward"


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Seconds of one part per step; what is no part of the model has no backward."""

    forward_s: float
    backward_s: float

    @property
    def total_s(self) -> float:
        """Both."""
        return self.forward_s + self.backward_s


def times_of_parts(events: Iterable[Event]) -> dict[str, PartTimes]:
    """Return each part's share of the mean step, `OTHER` being the rest; together they are the step's wall time.

    Args:
        events: `traceEvents` of a trace of torch's profiler, with at least one step in it.
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
    """Return the parts as a table for people, with their sum, the step."""
    step_s = sum(part.total_s for part in times.values())
    lines = [f"{'seconds a step':<16}{'forward':>10}{'backward':>10}{'total':>10}{'share':>8}"]
    for name, times_of_part in [*times.items(), (STEP, PartTimes(forward_s=step_s, backward_s=0.0))]:
        both = (times_of_part.forward_s, times_of_part.backward_s)
        columns = "".join(f"{seconds:10.4f}" if times_of_part.backward_s else f"{'':10}" for seconds in both)
        lines.append(f"{name:<16}{columns}{times_of_part.total_s:10.4f}{times_of_part.total_s / step_s:8.1%}")
    return "\n".join(lines)


def _place(name: str) -> tuple[int, int, str]:
    """The order of a step, for people."""
    order = ("data", "trunk", "head ", "unembedding", "heads", GRADIENTS, COMMUNICATION, OPTIMIZER, OTHER)
    return next((i for i, start in enumerate(order) if name.startswith(start)), len(order)), len(name), name


class _Timeline:
    """A trace cut at every moment where anything begins or ends; moment i lasts until moment i + 1."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._spans = sorted((e for e in events if e.get("ph") == "X"), key=_outer_first)
        self._steps = [span for span in self._spans if span["name"] == PREFIX + STEP]
        self._moments = np.unique([time for span in self._spans for time in (span["ts"], _end(span))])
        self._labels: list[Label] = []
        self.n_steps = len(self._steps)

    def lengths_of_labels(self) -> Iterator[tuple[Label, float]]:
        """Yield each label that has moments of the steps, and their length in seconds."""
        owners = self._owners()[self._marked(self._steps)]
        lengths = np.diff(self._moments, append=self._moments[-1])[self._marked(self._steps)]
        for label, microseconds in enumerate(np.bincount(owners, weights=lengths)):
            yield self._labels[label], float(microseconds) / MICROSECONDS

    def _owners(self) -> IntArray:
        """Return to whom each moment belongs."""
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
        """Return to whom each moment belongs on the host, and the threads that work there."""
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
            # What comes before the operator that makes a node shows the node's number, too: the last one made it.
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
        """Return whose kernel runs in each moment, NOBODY's if none does."""
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
        """Return the number of the label of the last span over each moment; NOBODY where there is none."""
        pairs, painted = list(spans), np.full(len(self._moments), NOBODY)
        starts = np.searchsorted(self._moments, [span["ts"] for span, _ in pairs])
        ends = np.searchsorted(self._moments, [_end(span) for span, _ in pairs])
        for start, end, (_, label) in zip(starts, ends, pairs, strict=True):
            painted[start:end] = self._number(label)
        return painted

    def _marked(self, spans: Iterable[Event]) -> BoolArray:
        """Return over which moments there is any span."""
        return self._painted((span, (OTHER, "forward")) for span in spans) != NOBODY


def _part_of(annotation: Event) -> str | None:
    name: str = annotation["name"]
    if name.startswith("Optimizer.step#"):  # torch's own, also inside DeepSpeed's pipelines
        return OPTIMIZER
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) and name != PREFIX + STEP else None


def _part_of_gradient(span: Event, part_of_node: dict[int, str]) -> str | None:
    if span["name"].endswith("AccumulateGrad"):  # and the hooks of ZeRO on it
        return GRADIENTS
    return part_of_node.get(span.get("args", {}).get("Sequence number", -1))


def _is_nccl(kernel: Event) -> bool:
    return "nccl" in kernel["name"].lower()


def _outer_first(span: Event) -> tuple[float, float]:
    return span["ts"], -span["dur"]


def _end(span: Event) -> float:
    return span["ts"] + span["dur"]
