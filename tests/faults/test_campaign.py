"""A short campaign on a tiny run: many kinds of fault once, and reports of what is not recovered."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from pipeline.runtime.stop import ExitCode
from tests.conftest import REPOSITORY, is_alive
from tests.faults import compare, process_faults, storage_faults
from tests.faults.campaign import BAD_BATCH, WHOLE_RUN, Campaign, all_recovered, disk_size
from tests.faults.kinds import KINDS, in_random_order
from tests.faults.report import table
from tests.faults.runs import Job, NotAsDocumented, Recipe
from tests.faults.victim import Kind, Outcome, Victim, small_disk
from tests.helpers.held import wait_until

STEPS = 130
ONCE = (
    process_faults.kill_launcher, process_faults.kill_all_in_save, process_faults.stop_twice_in_save,
    storage_faults.damage_two, storage_faults.damage_shard, storage_faults.fill_disk_and_go_on,
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, byte_shards: Path) -> Recipe:
    folder = tmp_path_factory.mktemp("faults")
    overrides = (
        "model.dim=32", "model.n_layers=6", "model.vocab_size=258", "model.multiple_of=16",
        "data.seq_len=32", "data.num_canonical_nodes=2",
        f"train.total_tokens={STEPS * 256}", "train.batch_tokens=256", "train.micro_batch_size=2",
        "train.eval_every_steps=20", "train.eval_tokens=1024",
        "checkpoint.every_steps=6", "checkpoint.keep=3", "log.every_steps=1", "log.samples=true",
    )  # fmt: skip
    shutil.copytree(byte_shards, folder / "shards")
    demo = REPOSITORY / "pipeline" / "recipes" / "demo.yaml"
    return Recipe(path=demo, overrides=overrides, runs=folder / "runs", shards=folder / "shards")


@pytest.fixture(scope="module")
def campaign(recipe: Recipe) -> Campaign:
    return Campaign(recipe, victims=recipe.runs.parent / "disk", total_steps=STEPS)


@pytest.fixture
def has_disk(campaign: Campaign) -> Iterator[bool]:
    with small_disk(campaign.victims, size=disk_size(campaign.reference, keep=3)) as mounted:
        yield mounted


def test_many_kinds_of_fault_are_recovered_exactly(campaign: Campaign, has_disk: bool) -> None:
    kinds = [kind for kind in KINDS if kind.apply in ONCE and (has_disk or not kind.needs_disk)]
    outcomes = campaign.run(Random(1).sample(kinds, len(kinds)), Random(1))
    print(table(outcomes, untried={}, seed=1, seconds=0))
    assert all_recovered(outcomes), table(outcomes, untried={}, seed=1, seconds=0)
    assert {kind.name for kind in kinds} | {WHOLE_RUN, BAD_BATCH} == {outcome.kind for outcome in outcomes}
    assert compare.epochs_of(campaign.reference) > 1
    assert not list(campaign.victims.iterdir())


def test_a_victim_that_cannot_start_counts_as_not_recovered(campaign: Campaign) -> None:
    kind = Kind(name="none", apply=process_faults.kill_all, often=1, overrides=("model.n_heads=3",))
    (outcome,) = campaign.run([kind], Random(1))
    assert outcome.kind == "none"
    assert "ended with 2 before step" in outcome.problems[0]
    assert not all_recovered([outcome])


def test_an_unexpected_exit_code_is_reported(campaign: Campaign, recipe: Recipe) -> None:
    victim = Victim(recipe, recipe.runs / "mistaken", reference=campaign.reference, start_s=1, linger_after=1)
    victim.start("model.n_heads=3")
    with pytest.raises(NotAsDocumented, match=r"exit code 2 instead of 75: .*model.n_heads=3"):
        victim.must_end_with(ExitCode.STOPPED)


def copy_of(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def changed_lines(run_dir: Path, step: int, line: str) -> None:
    """Replace the line of a step by another, or by nothing."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    index = next(index for index, text in enumerate(lines) if json.loads(text)["step"] == step)
    path.write_text("".join([*lines[:index], line, *lines[index + 1 :]]))


def test_different_metrics_are_reported(campaign: Campaign, tmp_path: Path) -> None:
    run_dir, reference = copy_of(campaign.reference, tmp_path), campaign.reference
    assert compare.differences(run_dir, reference, up_to=STEPS) == []
    line = dict(compare.lines_of(reference))[1, "training"]
    nearly = math.nextafter(line["optim/lr"], 1)
    changed_lines(run_dir, 1, json.dumps({**line, "optim/lr": nearly}) + "\n")
    assert compare.differences(run_dir, reference, up_to=STEPS) == ["training of step 1 differs in optim/lr"]
    changed_lines(run_dir, 1, json.dumps(line) + "\n" + json.dumps(line) + "\n")
    assert compare.differences(run_dir, reference, up_to=STEPS) == ["training of step 1 appears twice"]
    changed_lines(run_dir, 9, "")
    assert "training of step 9 is missing" in compare.differences(run_dir, reference, up_to=10)
    assert "training of step 9 is missing" not in compare.differences(run_dir, reference, up_to=9)


def test_different_windows_and_weights_are_reported(campaign: Campaign, tmp_path: Path) -> None:
    run_dir, reference = copy_of(campaign.reference, tmp_path), campaign.reference
    assert compare.differences_at_the_end(run_dir, reference, total_steps=STEPS) == []
    record = run_dir / "samples" / "rank_00001.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join([*lines[:4], lines[5].replace('"step":6', '"step":5'), *lines[5:]]))
    manifest = run_dir / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries["weights_and_moments/__1_0.distcp"]["xxh64"] = "0" * 16
    manifest.write_text(json.dumps(entries))
    problems = compare.differences_at_the_end(run_dir, reference, total_steps=STEPS)
    assert any("different from step 5 on" in problem for problem in problems)
    assert f"weights or moments differ in step_{STEPS:08d}" in problems


def test_the_table_lists_what_was_not_recovered_and_not_tried() -> None:
    good = Outcome(kind="one", details="", step=3, lost=2)
    bad = Outcome(kind="one", details="rank 1", step=9, problems=["resumed from step 6 instead of 12"])
    text = table([good, bad], untried={"two": "not allowed to mount a disk"}, seed=5, seconds=60)
    assert "| one | 2 | 1 | 2 | 1 not recovered, see below |" in text
    assert "| two | 0 | - | - | not tried (not allowed to mount a disk) |" in text
    assert "- one, step 9, rank 1: resumed from step 6 instead of 12" in text
    assert not all_recovered([good, bad])


def test_a_seed_determines_the_faults_and_60_of_them_include_each_kind() -> None:
    names = [kind.name for kind in in_random_order(Random(1), n=60, has_disk=True)]
    assert names == [kind.name for kind in in_random_order(Random(1), n=60, has_disk=True)]
    assert {name: names.count(name) for name in names} == {kind.name: kind.often for kind in KINDS}
    without_disk = in_random_order(Random(1), n=60, has_disk=False)
    assert len(without_disk) == 60
    assert not any(kind.needs_disk for kind in without_disk)


def test_a_job_finds_its_processes_and_leaves_none_behind(recipe: Recipe) -> None:
    job = Job(recipe, recipe.runs / "killed-at-once")
    ranks = job.ranks()
    assert [word for rank in ranks for word in rank.cmdline() if "local_rank" in word] == [
        "--local_rank=0", "--local_rank=1",
    ]  # fmt: skip
    job.kill()
    assert job.is_over
    wait_until(lambda: not any(map(is_alive, ranks)))  # they take a moment to close their files
