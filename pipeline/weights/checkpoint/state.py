"""Weights and Adam's moments as named slices, saved once and loaded into any way of sharding.

Every way of running keeps them differently: whole (ZeRO-0), as stretches of flat buffers that are divided over the
replicas (ZeRO-1, 2), weight by weight over all ranks (ZeRO-3); each pipeline stage only its own layers, and each
tensor-parallel rank some rows or columns. In each, what one rank holds of one weight is a contiguous stretch of a
rectangle of it, in fp32. So the state on disk is, per weight, its fp32 value and the two moments, made of the parts
that the ranks had; torch.distributed.checkpoint stores them, checks (with more than one rank) that they cover each
weight once, and reads for each rank what its own parts need. A run that was saved in one way goes on in any other.

Knows where DeepSpeed 0.19.8 keeps its state, without importing it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from common.command_line import raise_if_any
from pipeline.weights.checkpoint.files import Reader, Writer, load

Shapes = Mapping[str, torch.Size]
WEIGHT, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this rank keeps its stretch of one weight.

    name: of the weight, in the whole model.
    shape: of the rectangle that the rank and its replica's peers divide: the whole weight, or its share of the rows or
        columns under tensor parallelism.
    start, numel: the stretch of the flattened rectangle.
    buffer: the fp32 tensor that the optimizer updates; the stretch is `buffer.view(-1)[offset : offset + numel]`.
    """

    name: str
    shape: torch.Size
    start: int
    numel: int
    buffer: Tensor
    offset: int


class HostCopies:
    """Copies of tensors in the host's memory; each is made again in the place of the one before."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, str], Tensor] = {}

    def of(self, tensor: Tensor, *, key: tuple[int, str]) -> Tensor:
        """Return a copy, complete after `torch.accelerator.synchronize`; pinned where the tensor is on a GPU."""
        if key not in self._copies:
            self._copies[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return self._copies[key].copy_(tensor, non_blocking=True)


def state_of(
    engine: Any, *, shapes: Shapes, tensor_parallel_rank: int = 0, copies: HostCopies | None = None
) -> dict[str, "Slice"]:
    """Return this rank's parts of weights and moments of a DeepSpeed engine, by weight and kind.

    `shapes` are those of the whole weights. Without `copies` the parts share the engine's memory, and change with it.
    """
    adam, places = _adam(engine), list(_places(engine))
    for place in places:
        if not adam.state[place.buffer]:  # no step was taken, or all were skipped
            _fill_adam_state(adam, place.buffer, step=0)
    slices = _slices(places, adam, shapes, tensor_parallel_rank, copies=copies)
    if copies is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return slices


def save_state(state: Mapping[str, "Slice"], directory: Path, *, group: dist.ProcessGroup | None = None) -> None:
    """Write what `state_of` returned on each rank of `group`; every rank must call it.

    Raises:
        CheckpointException: a rank could not write its part; the same on every rank.
    """
    dcp.save(dict(state), storage_writer=Writer(directory), process_group=group)


def load_state(engine: Any, directory: Path, *, step: int, shapes: Shapes, tensor_parallel_rank: int = 0) -> None:
    """Restore what `save_state` wrote after `step` updates, in whatever way of sharding it was."""
    reader = Reader(directory)
    adam, places = _adam(engine), list(_places(engine))
    for place in places:
        _fill_adam_state(adam, place.buffer, step=step)
    load(_slices(places, adam, shapes, tensor_parallel_rank), reader)
    _refresh_model(engine)


def weight_reader(directory: Path, shapes: Shapes) -> Callable[[str], Tensor]:
    """Return what reads a weight by name: whole, fp32, on the CPU; in one process, without a process group.

    Raises:
        UserError: the folder holds no such weights, in other shapes, or with parts missing.
    """
    reader = Reader(directory)
    saved = reader.read_metadata().state_dict_metadata
    problems = []
    for name, shape in shapes.items():
        stored = saved.get(f"{name}/{WEIGHT}")
        size = stored.size if isinstance(stored, TensorStorageMetadata) else None
        if not isinstance(stored, TensorStorageMetadata) or size != shape:
            problems.append(f"{name!r} has shape {size and tuple(size)}, not {tuple(shape)}")
        elif sum(chunk.sizes.numel() for chunk in stored.chunks) != shape.numel():
            problems.append(f"parts of {name!r} are missing")  # torch would leave what it does not find unset
    raise_if_any(problems, heading=f"{directory} does not hold the weights of its config")

    def read(name: str) -> Tensor:
        key = f"{name}/{WEIGHT}"
        weights = {key: torch.empty(shapes[name])}
        with _without_process_group():
            load(weights, reader, no_dist=True)
        return weights[key]

    return read


def save_weights(directory: Path, weights: Mapping[str, Tensor]) -> None:
    """Write whole fp32 weights, without moments; in one process, without a process group."""
    state = {f"{name}/{WEIGHT}": weight for name, weight in weights.items()}
    with _without_process_group():
        dcp.save(state, storage_writer=Writer(directory), no_dist=True)


@contextmanager
def _without_process_group() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Slice(torch.Tensor):
    """Rectangular parts of a tensor that present themselves as the whole; torch's checkpoints treat them as shards.

    Implements the protocol of `torch.distributed._checkpointable`, as DTensor does; good for nothing else.
    """

    _parts: dict[torch.Size, Tensor]

    @staticmethod
    def __new__(cls, parts: dict[torch.Size, Tensor], *, shape: torch.Size) -> "Slice":
        """Make a slice of a tensor of `shape` from parts by the place of their first element; at least one."""
        like = next(iter(parts.values()))
        wrapper = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        wrapper._parts = parts
        return wrapper

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{function} on a slice of a checkpoint")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Slice({[tuple(corner) for corner in self._parts]} of {tuple(self.shape)})"

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets=corner, sizes=part.shape) for corner, part in self._parts.items()]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._parts[index.offset]


def rectangles(start: int, stop: int, *, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a stretch of a flattened matrix of `width` columns into (row, column, rows, columns), at most three."""
    while start < stop:
        row, column = divmod(start, width)
        n_rows, n_columns = (stop - start) // width, width
        if column or not n_rows:  # part of one row
            n_rows, n_columns = 1, min(width - column, stop - start)
        yield row, column, n_rows, n_columns
        start += n_rows * n_columns


def _slices(
    places: Iterable[Place], adam: torch.optim.Optimizer, shapes: Shapes, tensor_parallel_rank: int,
    *, copies: HostCopies | None = None,
) -> dict[str, Slice]:  # fmt: skip
    """Return all parts on this rank, by weight and kind; they share memory with the engine's state, or with copies."""
    slices = {}
    buffers: dict[tuple[int, str], Tensor] = {}  # many weights lie in one
    for place in places:
        whole = shapes[place.name]
        kinds = {WEIGHT: place.buffer.data, **{moment: adam.state[place.buffer][moment] for moment in MOMENTS}}
        for kind, tensor in kinds.items():
            if copies is not None:
                key = (id(place.buffer), kind)
                if key not in buffers:
                    buffers[key] = copies.of(tensor, key=key)
                tensor = buffers[key]
            stretch = tensor.view(-1).narrow(0, place.offset, place.numel)
            # the rectangle's own place in the whole weight: not at its origin on later tensor-parallel ranks
            corner = [tensor_parallel_rank * own * (own != all_) for own, all_ in zip(place.shape, whole, strict=True)]
            slices[f"{place.name}/{kind}"] = Slice(_parts(stretch, place, corner=corner), shape=whole)
    return slices


def _parts(stretch: Tensor, place: Place, *, corner: list[int]) -> dict[torch.Size, Tensor]:
    if len(place.shape) == 1:
        return {torch.Size([corner[0] + place.start]): stretch}
    parts, done = {}, 0
    for row, column, *size in rectangles(place.start, place.start + place.numel, width=place.shape[1]):
        part = stretch.narrow(0, done, size[0] * size[1]).view(size)
        parts[torch.Size([corner[0] + row, corner[1] + column])] = part
        done += part.numel()
    return parts


def _places(engine: Any) -> Iterator[Place]:
    """Yield where this rank keeps each weight that it has a part of."""
    wrapper = engine.optimizer
    for name, weight in _weights(engine):
        if hasattr(weight, "ds_numel"):  # ZeRO-3
            shape: torch.Size = weight.ds_shape  # type: ignore[attr-defined]
            group, offset, numel = wrapper.grad_position[wrapper.get_param_id(weight)]
            start = wrapper._get_param_partition_rank(weight) * numel
            numel = min(numel, weight.ds_numel - start)  # the last partitions are padded
            buffer = wrapper.fp32_partitioned_groups_flat[group]
            if numel > 0:
                yield Place(name=name, shape=shape, start=start, numel=numel, buffer=buffer, offset=offset)
        elif not hasattr(weight, "_hp_mapping"):  # ZeRO-0
            yield Place(name=name, shape=weight.shape, start=0, numel=weight.numel(), buffer=weight, offset=0)
        elif weight._hp_mapping is not None:  # ZeRO-1 and 2
            fragment = weight._hp_mapping
            inner, outer = fragment.hp_fragment_address, fragment.lp_fragment_address
            (buffer,) = wrapper.optimizer.param_groups[fragment.param_group_index]["params"]
            yield Place(
                name=name, shape=weight.shape, start=outer.start, numel=outer.numel, buffer=buffer,
                offset=inner.start,
            )  # fmt: skip


def _weights(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield this rank's weights by their names in the whole model; DeepSpeed's pipeline prepends the stage's number."""
    for name, weight in engine.module.named_parameters():
        index, _, rest = name.partition(".")
        yield (rest if index.isdigit() else name), weight


def _adam(engine: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside whichever wrapper ZeRO puts around it."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _fill_adam_state(adam: torch.optim.Optimizer, buffer: Tensor, *, step: int) -> None:
    """Make the state of one buffer as AdamW leaves it after `step` steps, but for the moments' values."""
    on_device = adam.defaults["fused"] or adam.defaults["capturable"]  # where torch's AdamW expects its counter
    adam.state[buffer] = {
        "step": torch.tensor(float(step), device=buffer.device if on_device else "cpu"),
        **{moment: torch.zeros_like(buffer, dtype=torch.float32).detach() for moment in MOMENTS},
    }


def _refresh_model(engine: Any) -> None:
    """Bring the weights that the model computes with up to the fp32 ones that the optimizer keeps."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "update_lp_params"):  # ZeRO-1 and 2
        wrapper.update_lp_params()
    elif hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO-3, as its own loader does it
        wrapper.checkpoint_event_prologue()
        for flat, fp32, parts in zip(
            wrapper.fp16_partitioned_groups_flat,
            wrapper.fp32_partitioned_groups_flat,
            wrapper.fp16_partitioned_groups,
            strict=True,
        ):
            flat.data.copy_(fp32.data)
            for part, value in zip(parts, wrapper.unflatten(flat, parts), strict=True):
                part.data = value.data
        wrapper.checkpoint_event_epilogue()
