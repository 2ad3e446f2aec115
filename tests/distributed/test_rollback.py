"""Loss spikes in whole runs: the run goes back to the last checkpoint and continues with the data after the spike."""

import json
from pathlib import Path

import pytest

from pipeline import report
from pipeline.data.sample_record import samples_by_step
from pipeline.runtime.stop import ExitCode
from tests.conftest import run_module
from tests.helpers.run_results import curves, history, metrics

# With so few deviations, ordinary noise counts as a spike.
NERVOUS = ("faults.spike=roll_back", "faults.spike_window=32", "faults.spike_deviations=1", "checkpoint.every_steps=5")


def train(recipe: Path, name: str, *overrides: str) -> tuple[int, str]:
    done = run_module(
        "pipeline.train", "--config", recipe, "--deepspeed_config", "ds_configs/zero1_fp32.json", f"run.name={name}",
        "log.samples=true", "train.eval_every_steps=0", *overrides,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def losses(run_dir: Path) -> list[float]:
    return [line["loss/total"] for line in metrics(run_dir).values()]


def test_a_rollback_leaves_out_the_data_up_to_the_spike(recipe: Path) -> None:
    steady, nervous, hopeless = (recipe.parent / "runs" / name for name in ("steady", "nervous", "hopeless"))
    returncode, output = train(recipe, "steady", "faults.spike_deviations=1", "faults.spike_window=32")
    assert (returncode, "rolling back" in output) == (0, False)
    returncode, output = train(recipe, "nervous", *NERVOUS, "faults.max_rollbacks=100")
    assert returncode == 0, output
    spikes = [json.loads(line) for line in (nervous / "bad_steps.jsonl").read_text().splitlines()]
    assert spikes[0] == json.loads((steady / "bad_steps.jsonl").read_text().splitlines()[0])
    first = spikes[0]["step"]
    back_to = (first - 1) // 5 * 5
    checkpoint = nervous / "checkpoints" / f"step_{back_to:08d}"
    assert f"rolling back to {checkpoint}, and continuing with the data after step {first}" in output
    assert {"event": "rollback", "step": first, "to_step": back_to} == history(nervous)[1]

    assert all(line["data/wait_s"] <= line["time/step_s"] for line in metrics(nervous).values())

    shown = curves(nervous)["loss/total"]  # one TensorBoard file per rollback, and one more
    assert [step for step, _ in shown] == list(range(1, len(losses(nervous)) + 1))
    assert [value for _, value in shown] == pytest.approx(losses(nervous))
    page = recipe.parent / "report.html"
    report.main([str(nervous), "--output", str(page)])
    assert f"rolled back from step {first} to {back_to}" in page.read_text()

    assert len(losses(nervous)) == len(losses(steady))
    assert losses(nervous)[:back_to] == losses(steady)[:back_to]
    usual, left_out = samples_by_step(steady), samples_by_step(nervous)
    assert all(left_out[step] == usual[step] for step in range(1, back_to + 1))
    assert left_out[back_to + 1] == usual[first + 1]

    returncode, output = train(recipe, "hopeless", *NERVOUS, "faults.max_rollbacks=0")
    assert returncode == ExitCode.BAD_NUMBERS, output
    assert f"the loss jumped again after faults.max_rollbacks=0 rollbacks to {hopeless}" in output
    assert "Traceback" not in output
    assert history(hopeless)[-1] == {"event": "end", "exit_code": ExitCode.BAD_NUMBERS}
