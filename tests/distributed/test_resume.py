"""The changes that a resume allows, reports or refuses; on one rank."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_module, write_byte_shards
from tests.distributed.conftest import EVERY_STEPS
from tests.helpers.run_results import history, metrics

TOKENS_PER_STEP = 256


def train(recipe: Path, name: str, *arguments: str, steps: int = EVERY_STEPS) -> subprocess.CompletedProcess[str]:
    return run_module(
        "pipeline.train", "--config", recipe, "--deepspeed_config", "ds_configs/zero1_fp32.json", f"run.name={name}",
        f"train.total_tokens={steps * TOKENS_PER_STEP}", "train.eval_every_steps=0", *arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    """A finished run of 20 steps."""
    done = train(recipe, "trained")
    assert done.returncode == 0, done.stderr
    return recipe.parent / "runs" / "trained"


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the same tokenizer and sizes over another package."""
    return write_byte_shards(tmp_path_factory.mktemp("other") / "shards", package="email")


def copy_of(run_dir: Path, name: str) -> Path:
    shutil.copytree(run_dir, run_dir.with_name(name))
    return run_dir.with_name(name)


def test_every_changed_field_is_told_and_kept(recipe: Path, trained: Path) -> None:
    run_dir = copy_of(trained, "changed")
    done = train(recipe, "changed", "optim.weight_decay=0.25", "log.every_steps=2", steps=EVERY_STEPS + 2)
    assert done.returncode == 0, done.stderr
    expected: dict[str, Any] = {
        "train.total_tokens": [5120, 5632],
        "optim.weight_decay": [0.1, 0.25],
        "log.every_steps": [1, 2],
        "run.name": ["trained", "changed"],
    }
    (launch,) = [event for event in history(run_dir)[1:] if event["event"] == "launch"]
    assert launch["changes"] == expected
    for line in (
        "changed  train.total_tokens: 5120 -> 5632", "changed  optim.weight_decay: 0.1 -> 0.25",
        "changed  log.every_steps: 1 -> 2", "changed  run.name: 'trained' -> 'changed'",
        "changed  the learning rate of step 21: 0.0003 -> ",
    ):  # fmt: skip
        assert line in done.stdout + done.stderr, line
        assert line in (run_dir / "train.log").read_text()


def test_a_budget_below_the_checkpoint_says_so(recipe: Path, trained: Path) -> None:
    copy_of(trained, "below")
    done = train(recipe, "below", steps=EVERY_STEPS // 2)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "is after step 20, beyond the budget of 10 steps (train.total_tokens=2560); raise" in output
    assert "last step" not in output


def test_other_data_is_refused_unless_it_is_asked_for(recipe: Path, trained: Path, other_shards: Path) -> None:
    run_dir = copy_of(trained, "other")
    before = (run_dir / "config.yaml").read_bytes()
    elsewhere = f"data.shards={other_shards}"
    done = train(recipe, "other", elsewhere, steps=EVERY_STEPS + 2)
    assert done.returncode == 2
    assert f"data.shards={other_shards} has another train split than the shards that it was trained on" in done.stderr
    assert "--other_data" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run_dir / "config.yaml").read_bytes() == before

    done = train(recipe, "other", elsewhere, "--other_data", steps=EVERY_STEPS + 2)
    assert done.returncode == 0, done.stderr
    assert "going on with other data than before (--other_data), from its beginning" in done.stdout + done.stderr
    assert list(metrics(run_dir)) == list(range(1, EVERY_STEPS + 3))
    done = train(recipe, "other", elsewhere, steps=EVERY_STEPS + 4)  # its last checkpoint has the new data
    assert done.returncode == 0, done.stderr


def test_a_moved_copy_of_the_shards_is_the_same_data(recipe: Path, trained: Path, byte_shards: Path) -> None:
    copy_of(trained, "moved")
    moved = trained.parent / "moved_shards"
    shutil.copytree(byte_shards, moved)
    done = train(recipe, "moved", f"data.shards={moved}", steps=EVERY_STEPS + 2)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.init_from={trained}", "its trunk has 2 layers, and this run's 5"),
        ("data.shards={trained}/nothing", "does not exist"),
    ],
)
def test_a_refused_start_leaves_no_folder(recipe: Path, trained: Path, override: str, message: str) -> None:
    done = train(recipe, "refused", "model.n_layers=9", override.format(trained=trained))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (trained.parent / "refused").exists()
