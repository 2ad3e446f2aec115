"""Weights and Adam's moments as named slices, which can be saved with one sharding and loaded with any other.

Each sharding stores them differently. ZeRO-0 keeps them whole. ZeRO-1 and 2 divide flat buffers over the replicas, and
ZeRO-3 divides each weight over all ranks. A pipeline stage has only its own layers, and a tensor-parallel rank only
some rows or columns. But in all of them, a rank's part of a weight is a contiguous stretch of a rectangle of the
weight, in fp32.

So the checkpoint holds, for each weight, its fp32 value and the two moments, assembled from the parts of the ranks.
torch.distributed.checkpoint stores the parts, checks (with more than one rank) that they cover each weight exactly
once, and reads for each rank the parts that it needs.

This module knows where DeepSpeed 0.19.8 keeps its state, but does not import it.
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

from common.command_line import UserError, one_line, raise_if_any
from common.wording import shortened
from pipeline.weights.checkpoint.files import Reader, Writer, load

Shapes = Mapping[str, torch.Size]
WEIGHT, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place where this rank stores its stretch of one weight."""

    name: str
    """Name of the weight in the whole model."""
    shape: torch.Size
    """Shape of the rectangle that ZeRO divides: the whole weight, or this rank's rows or columns under tensor
    parallelism."""
    start: int
    """First element of the stretch in the flattened rectangle."""
    numel: int
    """Number of elements of the stretch."""
    buffer: Tensor
    """The fp32 tensor that the optimizer updates; the stretch is `buffer.view(-1)[offset : offset + numel]`."""
    offset: int
    """First element of the stretch in the flattened buffer."""


class HostCopies:
    """Copies of tensors in host memory; a later copy of the same tensor reuses the memory of the earlier one."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, str], Tensor] = {}

    def of(self, tensor: Tensor, *, key: tuple[int, str]) -> Tensor:
        """Return a copy, pinned if the tensor is on a GPU; it is complete after `torch.accelerator.synchronize`."""
        if key not in self._copies:
            self._copies[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return self._copies[key].copy_(tensor, non_blocking=True)


def state_of(
    engine: Any, *, shapes: Shapes, tensor_parallel_rank: int = 0, copies: HostCopies | None = None
) -> dict[str, "Slice"]:
    """Return this rank's slices of the weights and moments of a DeepSpeed engine, by "weight/kind".

    Args:
        engine: DeepSpeed's engine.
        shapes: shapes of the whole weights.
        tensor_parallel_rank: this rank's position in its tensor-parallel group.
        copies: where to copy the state; None returns slices that share the engine's memory, and change with it.
    """
    adam, places = _adam(engine), list(_places(engine))
    for place in places:
        if not adam.state[place.buffer]:  # no step was taken yet, or all were skipped
            _fill_adam_state(adam, place.buffer, step=0)
    slices = _slices(places, adam, shapes, tensor_parallel_rank, copies=copies)
    if copies is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return slices


def save_state(state: Mapping[str, "Slice"], directory: Path, *, group: dist.ProcessGroup | None = None) -> None:
    """Write the slices that `state_of` returned on each rank of `group`. Every rank must call it.

    Raises:
        CheckpointException: a rank could not write its part; raised on every rank.
    """
    dcp.save(dict(state), storage_writer=Writer(directory), process_group=group)


def load_state(engine: Any, directory: Path, *, step: int, shapes: Shapes, tensor_parallel_rank: int = 0) -> None:
    """Restore what `save_state` wrote after `step` updates, with any sharding. Every rank must call it.

    Raises:
        UserError: the files are not those of a checkpoint.
        CheckpointException: a rank could not read its parts.
    """
    reader = Reader(directory)
    adam, places = _adam(engine), list(_places(engine))
    for place in places:
        _fill_adam_state(adam, place.buffer, step=step)
    load(_slices(places, adam, shapes, tensor_parallel_rank), reader)
    _refresh_model(engine)


def weight_reader(directory: Path, shapes: Shapes) -> Callable[[str], Tensor]:
    """Return a function that reads one whole weight by name, fp32, on the CPU; needs no process group.

    Raises:
        UserError: weights of `shapes` are missing, have other shapes, or lack parts.
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
            problems.append(f"parts of {name!r} are missing")  # torch would leave these elements uninitialised
    raise_if_any(problems, heading=f"{directory} does not hold the weights of its config")

    def read(name: str) -> Tensor:
        key = f"{name}/{WEIGHT}"
        weights = {key: torch.empty(shapes[name])}
        try:
            with _without_process_group():
                load(weights, reader, no_dist=True)
        except dcp.CheckpointException as error:
            reason = next((one_line(cause) for cause, _ in error.failures.values()), "")
            raise UserError(f"{directory} holds weights that cannot be read: {shortened(reason, most=200)}") from error
        return weights[key]

    return read


def save_weights(directory: Path, weights: Mapping[str, Tensor]) -> None:
    """Write whole fp32 weights without moments; needs no process group."""
    state = {f"{name}/{WEIGHT}": weight for name, weight in weights.items()}
    with _without_process_group():
        dcp.save(state, storage_writer=Writer(directory), no_dist=True)


@contextmanager
def _without_process_group() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Slice(torch.Tensor):
    """A tensor of which this rank has some rectangular parts, which torch.distributed.checkpoint treats as shards.

    It implements the protocol of `torch.distributed._checkpointable`, as DTensor does, and no other operation.
    """

    _parts: dict[torch.Size, Tensor]

    @staticmethod
    def __new__(cls, parts: dict[torch.Size, Tensor], *, shape: torch.Size) -> "Slice":
        """Make a slice of a tensor of `shape` from at least one part, by the position of its first element."""
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
    """Cut a stretch of a flattened matrix of `width` columns into at most three rectangles.

    Yields:
        (row, column, number of rows, number of columns) of each rectangle, in order.
    """
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
    """Return this rank's slices by "weight/kind"; they share memory with the engine's state, or with `copies`."""
    slices = {}
    buffers: dict[tuple[int, str], Tensor] = {}  # many weights share one
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
            # position of the rectangle in the whole weight; under tensor parallelism only rank 0's is the origin
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
    """Yield the place of each weight that this rank has a part of."""
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
    """Yield this rank's weights by their names in the whole model, without the stage number that DeepSpeed prepends."""
    for name, weight in engine.module.named_parameters():
        index, _, rest = name.partition(".")
        yield (rest if index.isdigit() else name), weight


def _adam(engine: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside whichever wrapper ZeRO puts around it."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _fill_adam_state(adam: torch.optim.Optimizer, buffer: Tensor, *, step: int) -> None:
    """Create AdamW's state of one buffer as after `step` steps, with zeros for the moments."""
    on_device = adam.defaults["fused"] or adam.defaults["capturable"]  # torch's AdamW expects its step counter there
    adam.state[buffer] = {
        "step": torch.tensor(float(step), device=buffer.device if on_device else "cpu"),
        **{moment: torch.zeros_like(buffer, dtype=torch.float32).detach() for moment in MOMENTS},
    }


def _refresh_model(engine: Any) -> None:
    """Copy the optimizer's fp32 weights into the weights that the model computes with."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "update_lp_params"):  # ZeRO-1 and 2
        wrapper.update_lp_params()
    elif hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO-3, as in its own loader
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
