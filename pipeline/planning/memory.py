"""Memory of one rank by part, at each moment that may be its fullest, with DeepSpeed 0.19.8's buffers.

E is the number of weight elements on the rank, D the number of ranks among which ZeRO divides, and w the bytes of a
weight: 4 in fp32, 2 in bf16. Adam is torch's: the fp32 value (in fp32 too, as a second copy) and two moments. The
moments that may be the fullest:

    start        every rank builds the whole model in fp32, even if ZeRO divides it later
    loss         a later micro batch computes its last head (activations.py), beside the gradients of earlier ones
    head         the same head a moment later, when its own gradients have replaced the logits
    backward     the backward of that micro batch begins, with everything that was kept and the loss op's gradients
    reduction    the last backward's gradients pass through DeepSpeed's buckets
    step         the gradients in the form that the optimizer needs, beside those that they are made from

For each ZeRO stage (`stage_1_and_2.py`, `stage3.py`, `bf16_optimizer.py` and `engine.py` of DeepSpeed):

    mode       weights  optimizer  gradients                      buckets
    0, fp32    4E       8E         4E                             a flat copy of up to 5e8 elements
    1, fp32    4E       12E/D      4E, then 4E/D twice            two of reduce_bucket_size (overlap_comm)
    1, bf16    2E       12E/D      4E, and 2E as bf16             a flat copy of up to 5e8 elements in fp32 and bf16
    2, fp32    4E       12E/D      4E/D, twice if accumulating    two
    2, bf16    2E       12E/D      4E/D                           two
    3          wE/D     12E/D      4E/D                           one; weights gathered up to max_live_parameters

A unit test and `benchmarks/plan_memory.py` compare these figures with the allocations of real CPU ranks. What a GPU's
allocator loses, and what the CUDA context and NCCL take, is in clusters.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.config.schema import Config
from pipeline.planning.activations import Activations, activations
from pipeline.planning.mode import Mode
from pipeline.planning.stage_weights import share_elements, stages_of

FLAT_COPY_ELEMENTS = 500_000_000  # DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE
FP32, FP64 = 4, 8


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at one moment; `host` is the part that offloading puts into the host's memory."""

    moment: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    host: int = 0

    @property
    def device(self) -> int:
        """Bytes on the rank's device."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the device's bytes by part."""
        names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
        return {name: getattr(self, name) for name in names}


def moments_of_fullest_rank(config: Config, mode: Mode, *, world_size: int, device: str) -> tuple[Memory, ...]:
    """Return the moments of the pipeline stage that needs the most memory, in the order of time; see `moments`."""
    ranks = (
        tuple(moments(config, mode, world_size=world_size, device=device, pipeline_stage=index))
        for index in range(config.parallel.pipeline_stages)
    )
    return max(ranks, key=lambda rank: fullest_of(rank).device)


def fullest_of(moments: Sequence[Memory]) -> Memory:
    """Return the moment that takes the most memory on the device."""
    return max(moments, key=lambda memory: memory.device)


def moments(config: Config, mode: Mode, *, world_size: int, device: str, pipeline_stage: int = 0) -> list[Memory]:
    """Return the memory of a rank of one pipeline stage at each moment that may be the fullest.

    Args:
        config: the run's config, checked.
        mode: of its DeepSpeed JSON.
        world_size: number of all ranks.
        device: "cpu" or "cuda".
        pipeline_stage: 0-based; 0 without a pipeline.
    """
    replicas = world_size // config.parallel.ranks_per_replica
    accumulation = config.accumulation_steps(replicas)
    tensor_parallel_size = config.parallel.tensor_parallel_size
    stages = stages_of(config)
    share = stages[pipeline_stage].share
    before = [head for stage in stages[:pipeline_stage] for head in stage.share.heads]
    boundary_states = 1 + len(before) if pipeline_stage else 0
    batch = activations(config, share, weight_bytes=mode.weight_bytes, device=device, boundary_states=boundary_states)
    rank = _Rank(
        mode=mode,
        elements=share_elements(config.model, share, tensor_parallel_size=tensor_parallel_size),
        leaf=share_elements(
            config.model,
            replace(share, embedding=False, trunk_layers=range(0)),
            tensor_parallel_size=tensor_parallel_size,
        ),
        largest=max(config.model.vocab_size * config.model.dim, config.model.dim * config.model.ffn_dim),
        divided_by=world_size // (config.parallel.pipeline_stages * tensor_parallel_size),
        accumulation=accumulation,
        under_way=min(config.parallel.pipeline_stages - pipeline_stage, accumulation),
        n_stages=config.parallel.pipeline_stages,
        is_last=pipeline_stage == config.parallel.pipeline_stages - 1,
        received=batch.boundary if pipeline_stage else 0,
    )
    return list(rank.moments(batch))


@dataclass(frozen=True, kw_only=True)
class _Rank:
    mode: Mode
    elements: int  # of all weights
    leaf: int  # elements of the heads' module, which ZeRO-3 gathers whole
    largest: int  # elements of the largest matrix
    divided_by: int  # ranks among which ZeRO divides
    accumulation: int  # micro batches per step
    under_way: int  # micro batches whose backward is still to come
    n_stages: int
    is_last: bool  # the last pipeline stage
    received: int  # bytes of the hidden states that the previous stage passes on

    @property
    def part(self) -> int:
        """Elements of the part that ZeRO leaves on this rank."""
        return -(-self.elements // self.divided_by)

    def moments(self, batch: Activations) -> Iterator[Memory]:
        """Yield the moments in the order of time."""
        standing = self._standing()
        kept = batch.kept * self.under_way + self._passed_on(batch)
        yield self._start()
        yield replace(
            standing,
            moment="loss",
            activations=kept + batch.loss,
            logits=batch.logits,
            gradients=standing.gradients + batch.loss_gradients,
        )
        yield replace(
            standing,
            moment="head",
            activations=kept + batch.loss,
            gradients=standing.gradients + batch.stored_gradients + batch.last_gradients,
        )
        backward = replace(
            standing,
            moment="backward",
            activations=kept + batch.recomputed + batch.backward,
            gradients=standing.gradients + batch.stored_gradients,
        )
        yield backward
        yield from self._reduction(standing, backward, kept=kept, recomputed=batch.recomputed + batch.backward)
        yield self._step(standing)

    def _start(self) -> Memory:
        """The whole model in fp32, and three times the largest matrix while that is drawn (`network.initialise`)."""
        return Memory(moment="start", weights=FP32 * self.elements, buffers=3 * FP32 * self.largest)

    def _standing(self) -> Memory:
        """The memory while a later micro batch runs: weights, optimizer state, gradients of earlier ones, buckets."""
        mode, E, part, w = self.mode, self.elements, self.part, self.mode.weight_bytes
        later = self.accumulation > 1
        bucket = mode.zero["reduce_bucket_size"]
        if mode.stage == 0:
            return Memory(moment="", weights=w * E, optimizer=2 * FP32 * E, gradients=FP32 * E * later)
        optimizer = 3 * FP32 * part
        if mode.stage == 3:
            gathered = 0
            if self.divided_by > 1:
                live = mode.zero["stage3_max_live_parameters"] + mode.zero["stage3_prefetch_bucket_size"]
                gathered = w * min(E, max(live, self.leaf))
            on_device = Memory(
                moment="", weights=w * part, optimizer=optimizer, gradients=FP32 * part, buffers=w * bucket + gathered
            )
            return self._offloaded(on_device)
        if mode.stage == 1 and w == 2:  # BF16_Optimizer
            return Memory(moment="", weights=w * E, optimizer=optimizer, gradients=(FP32 + w * later) * E)
        if mode.stage == 1:
            buckets = (1 if self.n_stages > 1 else 1 + mode.overlap) * w * bucket
            return Memory(
                moment="", weights=w * E, optimizer=optimizer, gradients=w * E * later, buffers=buckets * later
            )
        return Memory(moment="", weights=w * E, optimizer=optimizer, gradients=FP32 * part * later)

    def _offloaded(self, memory: Memory) -> Memory:
        """Move to the host what ZeRO-3 offloads: the optimizer state with its gradients, and the divided weights."""
        host = 0
        if self.mode.offload_optimizer:
            host = memory.optimizer + 2 * FP32 * self.part
            memory = replace(memory, optimizer=0, gradients=0)
        if self.mode.offload_weights:
            host += memory.weights
            memory = replace(memory, weights=0)
        return replace(memory, host=host)

    def _passed_on(self, batch: Activations) -> int:
        """Bytes of hidden states between stages: DeepSpeed keeps two receive buffers with gradients, and one in use."""
        if self.n_stages == 1:
            return 0
        sent = 0 if self.is_last else batch.boundary
        return 5 * self.received + sent

    def _reduction(self, standing: Memory, backward: Memory, *, kept: int, recomputed: int) -> Iterator[Memory]:
        """The memory while the last backward's gradients pass through DeepSpeed's buckets."""
        mode, E, part, w = self.mode, self.elements, self.part, self.mode.weight_bytes
        flat = min(E, FLAT_COPY_ELEMENTS)
        bucket = mode.zero["reduce_bucket_size"]
        if mode.stage == 0:
            yield replace(standing, moment="reduction", gradients=w * E, buffers=w * flat)
        elif mode.stage == 1 and w == 2:
            yield replace(standing, moment="reduction", gradients=(FP32 + w) * E, buffers=(FP32 + w) * flat)
        elif mode.stage == 1:
            n_buckets = 1 + (mode.overlap or self.n_stages > 1)
            in_backward = self.n_stages == 1
            yield replace(
                standing,
                moment="reduction",
                gradients=w * E + w * part,
                buffers=n_buckets * w * bucket,
                activations=kept + recomputed if in_backward else 5 * self.received,
            )
        elif mode.stage == 2:
            # the heads' gradients pass through the buckets while the trunk's activations are still in memory
            twice = w == FP32 and self.accumulation > 1
            yield replace(
                backward,
                moment="reduction",
                gradients=FP32 * part * (1 + twice) + backward.gradients - standing.gradients,
                buffers=(1 + mode.overlap) * w * bucket,
            )
        else:
            yield replace(backward, moment="reduction")

    def _step(self, standing: Memory) -> Memory:
        """The memory during the optimizer step."""
        mode, E, part, w = self.mode, self.elements, self.part, self.mode.weight_bytes
        if mode.stage == 0 or (mode.stage == 1 and w == 2):
            gradients = w * E if mode.stage == 0 else (FP32 + w) * E
            return replace(standing, moment="step", gradients=gradients)
        if mode.stage == 3:
            if mode.offload_optimizer:
                return replace(standing, moment="step")
            group = min(part, mode.zero["sub_group_size"])
            gathered = mode.weight_bytes * mode.zero["reduce_bucket_size"]
            return replace(standing, moment="step", gradients=FP32 * (part + group), buffers=gathered)
        if w == FP32:
            return replace(standing, moment="step", gradients=2 * FP32 * part, buffers=0)
        norm = FP64 * min(part, self.largest)  # the norm is computed in fp64, one gradient at a time
        return replace(standing, moment="step", gradients=FP32 * part, buffers=norm)
