"""Assumptions about machines, storage and prices: each number is an input with a default and a source."""

from dataclasses import asdict, dataclass, fields, replace

from common.command_line import UserError
from pipeline.config.deepspeed import Precision
from pipeline.runtime.devices import peak_flops

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU's data sheet. Its peak FLOP/s is in pipeline/runtime/devices.py."""

    name: str  # part of the name that the driver gives
    memory_bytes: int
    intra_node_bytes_per_s: float  # to the other GPUs of the node, one direction
    inter_node_bytes_per_s: float  # of its network adapter
    watts: float  # its share of the node's maximum power


# From the makers' data sheets: A100 80 GB SXM and DGX A100 (6.5 kW, 200 Gb/s per adapter); H100 SXM and DGX H100
# (10.2 kW, 400 Gb/s); H200 SXM and DGX H200 (10.2 kW, 400 Gb/s); B200 and DGX B200 (14.3 kW, 180 GB, 400 Gb/s).
GPUS = {
    name: Gpu(
        name=driver_name,
        memory_bytes=memory_gb * 10**9,
        intra_node_bytes_per_s=intra_node * 1e9,
        inter_node_bytes_per_s=inter_node * 1e9,
        watts=watts,
    )
    for name, driver_name, memory_gb, intra_node, inter_node, watts in (
        ("a100", "A100 SXM4", 80, 300, 25, 812),
        ("h100", "H100 HBM3", 80, 450, 50, 1275),
        ("h200", "H200", 141, 450, 50, 1275),
        ("b200", "B200", 180, 900, 50, 1788),
    )
}


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Assumptions that no recipe contains; `--assume name=value` replaces them. `SOURCES` explains the defaults."""

    mfu: float = 0.43
    link_efficiency: float = 0.8
    host_GB_per_s: float = 40.0
    reserved_GiB: float = 2.0
    fragmentation: float = 0.05
    mtbf_gpu_hours: float = 50_000.0
    restart_s: float = 900.0
    checkpoint_GB_per_s_per_node: float = 1.0
    usd_per_gpu_hour: float = 2.0
    usd_per_kwh: float = 0.0
    pue: float = 1.1


SOURCES = {
    "mfu": "of a GPU that never waits and recomputes nothing; Llama 3 reached 0.38 to 0.43 (arXiv 2407.21783, Table 4),"
    " PaLM 0.46 (arXiv 2204.02311, Table 3; counted as in its appendix B)",
    "link_efficiency": "share of the data sheet's bandwidths that is reached; a round assumption",
    "host_GB_per_s": "between a GPU and its host, for offloading and copies of checkpoints; an assumption",
    "reserved_GiB": "on each GPU for the CUDA context, cuBLAS and NCCL; an assumption, not measured",
    "fragmentation": "lost by the allocator, as a share of the memory in use; an assumption, not measured",
    "mtbf_gpu_hours": "GPU-hours between unexpected interruptions: 54 days x 16,384 H100 / 419 = 50,700 (Llama 3, arXiv"
    " 2407.21783, section 3.3.4); OPT-175B on 992 A100: at least 35 manual restarts in two months (arXiv 2205.01068)",
    "restart_s": "from a failure to the next step: detecting, scheduling, starting and loading; an assumption",
    "checkpoint_GB_per_s_per_node": "rate at which each node writes and reads checkpoints; an assumption",
    "usd_per_gpu_hour": "a round assumption; give your own price",
    "usd_per_kwh": "0 means that the price of a GPU-hour includes the power",
    "pue": "power of the data centre divided by that of its nodes; an assumption",
}
assert set(SOURCES) == {field.name for field in fields(Assumptions)}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A number of equal machines."""

    n_nodes: int
    gpus_per_node: int
    gpu: Gpu
    assumed: Assumptions

    @property
    def world_size(self) -> int:
        """Number of GPUs."""
        return self.n_nodes * self.gpus_per_node

    def peak_flops(self, precision: Precision) -> float:
        """Return the dense peak of one GPU, FLOP/s."""
        peak = peak_flops(self.gpu.name, precision=precision)
        assert peak is not None, f"{self.gpu.name} is in clusters.py but not in devices.py"
        return peak

    def ring_bytes_per_s(self, ranks: int, *, neighbours: bool = False) -> float:
        """Return the rate at which a rank can send in a collective; all adapters of a node carry rings at once.

        Args:
            ranks: number of ranks in the collective.
            neighbours: True if these ranks are consecutive, so that one node may hold all of them.
        """
        gpu = self.gpu
        within = self.n_nodes == 1 or (neighbours and ranks <= self.gpus_per_node)
        between = min(gpu.intra_node_bytes_per_s, gpu.inter_node_bytes_per_s * self.gpus_per_node)
        return (gpu.intra_node_bytes_per_s if within else between) * self.assumed.link_efficiency


def assumptions_from(given: list[str]) -> Assumptions:
    """Return the default assumptions, with the given `name=value` replacing some.

    Raises:
        UserError: a name is unknown, or a value is not a number above 0 (or 0 where that means none); the message lists
            all mistakes.
    """
    known, values, problems = asdict(Assumptions()), {}, []
    may_be_zero = ("reserved_GiB", "fragmentation", "restart_s", "usd_per_gpu_hour", "usd_per_kwh")
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            problems.append(f"--assume {text}: there is no assumption {name!r}; known: {', '.join(known)}")
            continue
        try:
            values[name] = float(value)
        except ValueError:
            problems.append(f"--assume {text}: {value!r} is not a number")
            continue
        if not (0 < values[name] < float("inf") or (values[name] == 0 and name in may_be_zero)):
            problems.append(f"--assume {text}: must be a number above 0{', or 0' if name in may_be_zero else ''}")
        elif name in ("mfu", "link_efficiency") and values[name] > 1:
            problems.append(f"--assume {text}: must be at most 1")
        elif name == "pue" and values[name] < 1:
            problems.append(f"--assume {text}: must be at least 1: it is a data centre's power over that of its nodes")
    if problems:
        raise UserError("; ".join(problems))
    return replace(Assumptions(), **values)


def reserved_bytes(assumed: Assumptions) -> int:
    """Return the bytes of a GPU that the CUDA context and libraries take."""
    return int(assumed.reserved_GiB * GIB)


def usable_bytes(gpu: Gpu, assumed: Assumptions) -> int:
    """Return the bytes of a GPU that tensors may take."""
    return max(0, int((gpu.memory_bytes - reserved_bytes(assumed)) / (1 + assumed.fragmentation)))
