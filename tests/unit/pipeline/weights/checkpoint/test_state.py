"""State made of parts: written by ranks with uneven parts and read with other ones; gaps are refused."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn

from common.command_line import UserError
from pipeline.weights.checkpoint.state import (
    MOMENTS,
    HostCopies,
    Slice,
    load_state,
    rectangles,
    save_state,
    save_weights,
    state_of,
    weight_reader,
)
from tests.helpers.deepspeed_like import engine_of

RANKS = 3
MATRIX, VECTOR = torch.arange(35.0).view(7, 5), torch.arange(100.0, 111.0)
# ends of the ranks' stretches of the flattened weights: within rows, and the second rank has no part of the vector
MATRIX_CUTS, VECTOR_CUTS = (0, 3, 22, 35), (0, 4, 4, 11)
# each rank has two rows or two columns of the matrices, and the whole norm
DIVIDED = {
    "up.weight": torch.arange(12.0).view(6, 2),
    "down.weight": torch.arange(20.0, 32.0).view(2, 6),
    "norm.weight": torch.arange(50.0, 52.0),
}
DIVIDED_SHAPES = {name: weight.shape for name, weight in DIVIDED.items()}


def loaded(directory: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    read = weight_reader(directory, shapes)
    return {name: read(name) for name in shapes}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Most tests run in one process, about which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def stretch(whole: Tensor, start: int, stop: int) -> Slice:
    """Return a rank's slice of a flattened weight: parts that are views of one flat buffer."""
    buffer, done = whole.flatten()[start:stop].clone(), 0
    if whole.dim() == 1:
        return Slice({torch.Size([start]): buffer}, shape=whole.shape)
    parts = {}
    for row, column, *size in rectangles(start, stop, width=whole.shape[1]):
        parts[torch.Size([row, column])] = buffer[done : done + math.prod(size)].view(size)
        done += math.prod(size)
    return Slice(parts, shape=whole.shape)


def filled_in(part: Slice) -> Tensor:
    """Return the whole tensor, with NaN for the parts of other ranks."""
    whole = torch.full(part.shape, math.nan)
    for corner, values in part._parts.items():
        whole[tuple(slice(first, first + size) for first, size in zip(corner, values.shape, strict=True))] = values
    return whole


def divided_engine(rank: int) -> Any:
    """Return the engine of one tensor-parallel rank after a step; its moments are 2 and 3 times its weights."""
    module = nn.ModuleDict({"up": nn.Module(), "down": nn.Module(), "norm": nn.Module()})
    mine = slice(2 * rank, 2 * rank + 2)
    parts = {"up": DIVIDED["up.weight"][mine], "down": DIVIDED["down.weight"][:, mine], "norm": DIVIDED["norm.weight"]}
    for name, part in parts.items():
        module[name].weight = nn.Parameter(part.clone())
    engine = engine_of(module)
    for weight in module.parameters():
        values = {moment: factor * weight.detach() for factor, moment in enumerate(MOMENTS, start=2)}
        engine.optimizer.state[weight] = {"step": torch.tensor(1.0), **values}
    return engine


def save_as_one_of_three(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    state = {"matrix/fp32": stretch(MATRIX, *MATRIX_CUTS[rank : rank + 2])}
    if VECTOR_CUTS[rank] < VECTOR_CUTS[rank + 1]:
        state["vector/fp32"] = stretch(VECTOR, *VECTOR_CUTS[rank : rank + 2])
    dcp.save(state, checkpoint_id=folder / "stretches")
    save_state(state_of(divided_engine(rank), shapes=DIVIDED_SHAPES, tensor_parallel_rank=rank), folder / "divided")
    try:
        dcp.save({"matrix/fp32": stretch(MATRIX, 10 * rank, 10 * rank + 10)}, checkpoint_id=folder / "gap")
    except dcp.CheckpointException as error:
        (folder / f"refusal.{rank}").write_text(str(error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved_by_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by three ranks, each with a part."""
    folder = tmp_path_factory.mktemp("state")
    mp.spawn(save_as_one_of_three, args=(folder,), nprocs=RANKS)
    return folder


def test_stretches_of_three_ranks_load_whole(saved_by_three: Path) -> None:
    weights = loaded(saved_by_three / "stretches", {"matrix": MATRIX.shape, "vector": VECTOR.shape})
    torch.testing.assert_close(weights, {"matrix": MATRIX, "vector": VECTOR}, rtol=0, atol=0)


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (16, 35), (3, 22), (7, 8)])
def test_stretches_of_three_ranks_load_into_other_stretches(saved_by_three: Path, start: int, stop: int) -> None:
    state = {"matrix/fp32": stretch(torch.full_like(MATRIX, -1), start, stop)}
    dcp.load(state, checkpoint_id=saved_by_three / "stretches", no_dist=True)
    expected = torch.full((35,), math.nan)
    expected[start:stop] = MATRIX.flatten()[start:stop]
    torch.testing.assert_close(filled_in(state["matrix/fp32"]), expected.view(7, 5), rtol=0, atol=0, equal_nan=True)


def test_rows_and_columns_of_three_ranks_load_whole(saved_by_three: Path) -> None:
    weights = loaded(saved_by_three / "divided", DIVIDED_SHAPES)
    torch.testing.assert_close(weights, DIVIDED, rtol=0, atol=0)


def test_rows_and_columns_load_into_one_rank_that_has_all_of_them(saved_by_three: Path) -> None:
    up, down = nn.Linear(2, 6, bias=False), nn.Linear(6, 2, bias=False)
    engine = engine_of(nn.ModuleDict({"up": up, "down": down, "norm": nn.RMSNorm(2)}))
    load_state(engine, saved_by_three / "divided", step=5, shapes=DIVIDED_SHAPES)
    for name, weight in engine.module.named_parameters():
        assert torch.equal(weight, DIVIDED[name])
        state = engine.optimizer.state[weight]
        assert state["step"] == 5
        assert torch.equal(state["exp_avg"], 2 * DIVIDED[name])
        assert torch.equal(state["exp_avg_sq"], 3 * DIVIDED[name])


@pytest.mark.parametrize("rank", range(RANKS))
def test_rows_and_columns_load_into_their_rank(saved_by_three: Path, rank: int) -> None:
    expected, engine = divided_engine(rank), divided_engine(rank)
    for weight in engine.module.parameters():
        weight.data.zero_()
    load_state(engine, saved_by_three / "divided", step=1, shapes=DIVIDED_SHAPES, tensor_parallel_rank=rank)
    for (name, weight), wanted in zip(engine.module.named_parameters(), expected.module.parameters(), strict=True):
        assert torch.equal(weight, wanted), name
        torch.testing.assert_close(engine.optimizer.state[weight], expected.optimizer.state[wanted], rtol=0, atol=0)


def test_a_stretch_is_at_most_three_rectangles_in_order() -> None:
    for width in (1, 4, 6, 24):
        matrix = torch.arange(24).view(-1, width)
        for start in range(24):
            for stop in range(start, 25):
                parts = [
                    matrix[row : row + n_rows, column : column + n_columns]
                    for row, column, n_rows, n_columns in rectangles(start, stop, width=width)
                ]
                assert len(parts) <= 3
                assert [number for part in parts for number in part.flatten().tolist()] == list(range(start, stop))


def test_a_gap_is_refused_at_the_save(saved_by_three: Path) -> None:
    for rank in range(RANKS):
        refusal = (saved_by_three / f"refusal.{rank}").read_text()
        assert "key:matrix/fp32 invalid fill tensor-volume: 35 chunks-volume: 30" in refusal
    assert not (saved_by_three / "gap" / ".metadata").exists()


def test_an_overlap_is_refused_at_the_save(tmp_path: Path) -> None:
    parts = {torch.Size([0, 0]): MATRIX[:, :3], torch.Size([0, 2]): MATRIX[:, 2:]}
    with pytest.raises(dcp.CheckpointException, match="has overlapping chunks"):
        dcp.save({"matrix/fp32": Slice(parts, shape=MATRIX.shape)}, checkpoint_id=tmp_path, no_dist=True)


def test_missing_weights_and_wrong_shapes_are_listed(tmp_path: Path) -> None:
    dcp.save({"matrix/fp32": MATRIX, "vector/exp_avg": VECTOR}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(UserError) as error:
        weight_reader(tmp_path, {"matrix": torch.Size([5, 7]), "vector": VECTOR.shape})
    assert str(error.value).split("\n  - ") == [
        f"{tmp_path} does not hold the weights of its config:",
        "'matrix' has shape (7, 5), not (5, 7)",
        "'vector' has shape None, not (11,)",
    ]


def test_weights_with_missing_parts_are_listed(tmp_path: Path) -> None:
    """With one process, torch does not check for gaps when it saves, and leaves them uninitialised when it loads."""
    dcp.save({"matrix/fp32": stretch(MATRIX, 0, 16)}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(UserError, match="parts of 'matrix' are missing"):
        weight_reader(tmp_path, {"matrix": MATRIX.shape})


def test_whole_weights_are_saved_and_read(tmp_path: Path) -> None:
    save_weights(tmp_path, {"matrix": MATRIX, "vector": VECTOR})
    weights = loaded(tmp_path, {"matrix": MATRIX.shape, "vector": VECTOR.shape})
    torch.testing.assert_close(weights, {"matrix": MATRIX, "vector": VECTOR}, rtol=0, atol=0)


class Net(nn.Module):
    """A small network to train."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 3, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.down(self.norm(self.up(inputs)))


def train(net: nn.Module, engine: Any, *, steps: range) -> list[float]:
    losses = []
    for step in steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        engine.optimizer.zero_grad()
        loss = net(inputs).square().mean()
        loss.backward()
        engine.optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("is_stage", [False, True], ids=["plain", "pipeline stage"])
def test_training_continues_exactly(tmp_path: Path, is_stage: bool) -> None:
    """Also if DeepSpeed's pipeline prepends a stage number to the names."""
    net, again = Net(), Net()
    shapes = {name: weight.shape for name, weight in net.named_parameters()}
    engine, engine_again = engine_of(net), engine_of(nn.ModuleDict({"2": again}) if is_stage else again)
    train(net, engine, steps=range(3))
    taken = state_of(engine, shapes=shapes, copies=HostCopies())
    expected = train(net, engine, steps=range(3, 6))  # the copy does not change with the engine
    save_state(taken, tmp_path)
    load_state(engine_again, tmp_path, step=3, shapes=shapes)
    assert train(again, engine_again, steps=range(3, 6)) == expected
    save_state(state_of(engine_again, shapes=shapes), tmp_path / "stage")
    torch.testing.assert_close(loaded(tmp_path / "stage", shapes), net.state_dict(), rtol=0, atol=0)
