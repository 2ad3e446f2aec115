"""The time of a step on a cluster by formula: computing, recomputation, pipeline imbalance and communication.

    computing       FLOPs per token (model/formulas.py, PaLM's count) / (peak of the precision x MFU); recomputation
                    adds most of a forward
    pipeline        multiplies this by the slowest stage over the mean, and adds the bubble (model/partition.py)
    communication   the bytes that a rank sends in rings / bandwidth, minus what overlaps the backward. With w bytes per
                    weight and E elements on a rank (memory.py):

        ZeRO 0, 1   2 wE per step, to reduce the gradients after the last backward; ZeRO-1 gathers the weights: wE
        ZeRO 2      2 wE per micro batch, during its backward (DeepSpeed reduces whole buckets); wE per step
        ZeRO 3      3 wE per micro batch: weights for the forward, weights for the backward, and gradients
        offloading  per micro batch, fp32 gradients to the host; weights back; Adam there reads and writes 28 bytes per
                    element
        pipeline    hidden states to the next stage, and their gradients back
        Ulysses, tensor parallelism     hidden states within each layer

Latency, stragglers, data loading and validation are left out. None of these times has been measured on GPUs.
"""

from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.model.formulas import recomputed_flops_per_token, training_flops_per_token
from pipeline.model.partition import bubble_fraction
from pipeline.planning.clusters import Cluster
from pipeline.planning.mode import Mode
from pipeline.planning.stage_weights import share_elements, stages_of

ADAM_BYTES_ON_HOST = 28  # per element; reads gradient, value and moments, writes value and moments
BACKWARD = 2 / 3  # the backward's share of a micro batch's time


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step by cause; the total excludes `hidden_s`, communication that overlaps computing."""

    compute_s: float
    recompute_s: float
    pipeline_s: float
    communication_s: float
    hidden_s: float

    @property
    def total_s(self) -> float:
        """Seconds of the whole step."""
        return self.compute_s + self.recompute_s + self.pipeline_s + self.communication_s

    def limit(self) -> str:
        """Return what takes the most time beside computing itself."""
        rest = {"recomputation": self.recompute_s, "pipeline": self.pipeline_s, "communication": self.communication_s}
        return max(rest, key=lambda name: rest[name]) if any(rest.values()) else "computing"


def step_time(config: Config, mode: Mode, cluster: Cluster) -> StepTime:
    """Return the seconds of one optimizer step of a checked config."""
    train, parallel, n_stages = config.train, config.parallel, config.parallel.pipeline_stages
    replicas = cluster.world_size // parallel.ranks_per_replica
    accumulation = config.accumulation_steps(replicas)
    rate = cluster.peak_flops(mode.precision) * cluster.assumed.mfu * cluster.world_size
    compute = train.batch_tokens * training_flops_per_token(config.model, seq_len=config.data.seq_len) / rate
    again = recomputed_flops_per_token(config.model, seq_len=config.data.seq_len) * train.activation_checkpointing
    recompute = again * train.batch_tokens / rate
    flops = [stage.flops_per_token for stage in stages_of(config)]
    slowest = max(flops) * n_stages / sum(flops)
    busy = (compute + recompute) * slowest
    pipeline = busy / (1 - bubble_fraction(n_stages, accumulation)) - (compute + recompute)
    exposed, hidden = _communication(config, mode, cluster, accumulation=accumulation, busy_s=busy)
    return StepTime(
        compute_s=compute, recompute_s=recompute, pipeline_s=pipeline, communication_s=exposed, hidden_s=hidden
    )


def _communication(
    config: Config, mode: Mode, cluster: Cluster, *, accumulation: int, busy_s: float
) -> tuple[float, float]:
    """Return the seconds of communication that lengthen the step, and of those that overlap computing."""
    parallel, world = config.parallel, cluster.world_size
    shared = world // (parallel.pipeline_stages * parallel.tensor_parallel_size)
    elements = max(
        share_elements(config.model, stage.share, tensor_parallel_size=parallel.tensor_parallel_size)
        for stage in stages_of(config)
    )
    ring = (shared - 1) / shared * mode.weight_bytes * elements / cluster.ring_bytes_per_s(shared)
    if mode.stage == 3:
        during, hiding, after = 3 * ring * accumulation, busy_s, 0.0
    elif mode.stage == 2:
        during, hiding, after = 2 * ring * accumulation, BACKWARD * busy_s, ring
    else:
        during, hiding, after = 0.0, 0.0, (3 if mode.stage == 1 else 2) * ring
    hidden = min(during, hiding) if mode.overlap else 0.0
    beside = _offloading(mode, cluster, elements / shared, accumulation) + _inside(config, cluster, mode)
    return during - hidden + after + beside, hidden


def _offloading(mode: Mode, cluster: Cluster, elements: float, accumulation: int) -> float:
    rate = cluster.assumed.host_GB_per_s * 1e9
    moved = 0.0
    if mode.offload_optimizer:
        moved += elements * (4 * accumulation + mode.weight_bytes + ADAM_BYTES_ON_HOST)
    if mode.offload_weights:
        moved += 2 * elements * mode.weight_bytes * accumulation
    return moved / rate


def _inside(config: Config, cluster: Cluster, mode: Mode) -> float:
    """Return the seconds that the ranks of a replica need to pass hidden states to each other."""
    parallel, model = config.parallel, config.model
    tokens = config.train.batch_tokens / (cluster.world_size // parallel.ranks_per_replica)
    hidden = tokens * model.dim * mode.weight_bytes
    size = parallel.ranks_per_replica
    if size == 1:
        return 0.0
    if parallel.pipeline_stages > 1:
        crosses = cluster.gpus_per_node % size != 0 and cluster.n_nodes > 1
        gpu = cluster.gpu
        rate = gpu.inter_node_bytes_per_s if crosses else gpu.intra_node_bytes_per_s
        return 2 * hidden / (rate * cluster.assumed.link_efficiency)
    rate = cluster.ring_bytes_per_s(size, neighbours=True)
    if parallel.tensor_parallel_size > 1:  # two all-reduces in the forward, two in the backward
        return model.n_transformer_layers * 4 * 2 * hidden * (size - 1) / size / rate
    return model.n_transformer_layers * 8 * hidden / size * (size - 1) / size / rate  # q, k, v, output; and back
