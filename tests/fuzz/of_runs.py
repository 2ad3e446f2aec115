"""Readers of what starts a run, and of what a run has left: inputs, records, memories, checkpoints."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common.command_line import UserError
from tests.conftest import REPOSITORY
from tests.fuzz import mutations
from tests.fuzz.reader import Folder, Reader

_OVERRIDES = b"""optim.lr=3e-4
train.total_tokens=1e5
run.name=other
model.n_future_tokens=2
log.prompts=["def f(x):"]
"""
_ASSUMED = b"mfu=0.4\nrestart_s=600\nusd_per_gpu_hour=0\n"


def _inputs(folder: Folder) -> None:
    """Write a recipe, a DeepSpeed JSON, overrides, and assumptions of a plan."""
    from tests.helpers.untrusted import tiny_recipe

    tiny_recipe(folder, shards=folder / "shards")
    shutil.copyfile(REPOSITORY / "ds_configs" / "zero1_fp32.json", folder / "deepspeed.json")
    (folder / "overrides").write_bytes(_OVERRIDES)
    (folder / "assumptions").write_bytes(_ASSUMED)


def _load_inputs(folder: Folder, *, overrides: list[str] | None = None) -> None:
    from pipeline.config.inputs import load_inputs

    given = [*(overrides or []), 'data.shards=""']
    load_inputs(folder / "tiny.yaml", folder / "deepspeed.json", overrides=given, world_size=2)


def _lines(path: Path) -> list[str]:
    """Return the words of a command line that stand in a file; some are no text, as a shell may give them."""
    return [line.decode(errors="surrogateescape") for line in path.read_bytes().split(b"\n") if line]


def _load_overrides(folder: Folder) -> None:
    if (folder / "overrides").is_file():
        _load_inputs(folder, overrides=_lines(folder / "overrides"))


def _assume(folder: Folder) -> None:
    from pipeline.planning.clusters import assumptions_from

    if (folder / "assumptions").is_file():
        assumptions_from(_lines(folder / "assumptions"))


def _plan(folder: Folder) -> None:
    """Plan with a changed recipe, of whose numbers only the ranges are known."""
    from pipeline import plan

    recipe, deepspeed_json = str(folder / "tiny.yaml"), str(folder / "deepspeed.json")
    plan.main(["--config", recipe, "--deepspeed_config", deepspeed_json, "--gpus_per_node", "2"])


def _recorded_run(folder: Folder) -> None:
    from tests.helpers.recorded import GOOD, recorded_run

    recorded_run(folder / "run", GOOD)


def _audit(folder: Folder) -> None:
    from pipeline import audit

    audit.main([str(folder / "run")])


def _remove_after(folder: Folder) -> None:
    from pipeline.data.sample_record import remove_after

    remove_after(folder / "run" / "samples", step=2)


def _run(folder: Folder) -> None:
    """Write the folder of a run, as it may lie there when the run is resumed, reported on or requeued."""
    from tests.helpers.run_folders import write_run_folder

    run = write_run_folder(folder, steps=6, total_steps=40)
    (run / "requeues.json").write_text(json.dumps({"job": "17", "checkpoint": 20, "steps": [21, 25]}))
    (run / "lease.json").write_text(json.dumps({"job": "17", "restart": 1, "token": "0a1b2c3d"}))
    (run / "wandb_id").write_text("0a1b2c3d\n")


def _report(folder: Folder) -> None:
    from pipeline import report

    report.main([str(folder / "try"), "--output", str(folder / "page.html")])


def _requeue(folder: Folder) -> None:
    from pipeline import requeue

    with patch.object(sys, "argv", ["requeue", str(folder / "try"), "--exit_code", "75", "--job", "17"]):
        requeue.main()


def _look_at_the_lease(folder: Folder) -> None:
    from pipeline.runtime.lease import Lease, Lost
    from pipeline.runtime.world import Launch

    lease = Lease(folder / "try", launch=Launch(job="17", restart=2))
    assert isinstance(lease.is_taken_over, bool)
    if (before := lease.holder) is not None:
        before.is_later_than(Launch(job="17", restart=2))
        assert len(str(before)) < 1000
    with suppress(Lost):
        lease.check()


def _tell_changes(folder: Folder) -> None:
    """Compare a run's files with its next launch, as training does."""
    from pipeline.config.schema import Config
    from pipeline.runtime.history import changes_since_last_launch

    changes_since_last_launch(folder / "try", config=Config(), deepspeed_config={"zero_optimization": {"stage": 1}})


def _wandb_id(folder: Folder) -> None:
    from pipeline.monitoring.sinks.wandb import run_id

    run_id(folder / "try")


def _metrics_on_resume(folder: Folder) -> None:
    from pipeline.monitoring.sinks import metrics_file

    metrics_file._cut(folder / "try" / "metrics.jsonl", step=3)


def _checkpoint(folder: Folder) -> None:
    from tests.helpers.exports import exported
    from tests.helpers.references import tiny_model

    exported(folder / "checkpoint", tiny_model(vocab_size=258), to="deepspeed")


def _open_checkpoint(folder: Folder) -> None:
    from pipeline.weights.formats.training import open_checkpoint

    stored = open_checkpoint(folder / "checkpoint")
    stored.read("trunk.tok_embeddings.weight")


def _open_sealed(folder: Folder) -> None:
    """Open a checkpoint after writing a manifest that fits it, as an attacker would."""
    from pipeline.weights.checkpoint import manifest

    checkpoint = folder / "checkpoint"
    sound = (folder / "sound.json") if (folder / "sound.json").exists() else None
    if sound is None:
        shutil.copyfile(checkpoint / manifest.MANIFEST, folder / "sound.json")
    names = [name for name in manifest.files_in(checkpoint) if (checkpoint / name).stat().st_size < 1 << 30]
    manifest.write_manifest(checkpoint, manifest.entries_of(checkpoint, names))
    _open_checkpoint(folder)


def _in_run(name: str, read: Callable[[Folder], object], **more: Any) -> Reader:
    return Reader(file=f"try/{name}", make=_run, read=read, **more)


def _in_checkpoint(name: str, read: Callable[[Folder], object], **more: Any) -> Reader:
    return Reader(file=f"checkpoint/{name}", make=_checkpoint, read=read, **more)


LINES = 256 << 20  # of zeros, which are read to their end
_EXITS = (UserError, SystemExit)
_words = mutations.words_of_a_command
READERS: dict[str, Reader] = {
    "recipe": Reader(file="tiny.yaml", make=_inputs, read=_load_inputs, changes=mutations.yaml_file),
    "recipe, plan": Reader(
        file="tiny.yaml", make=_inputs, read=_plan, changes=mutations.yaml_file, allowed=_EXITS, examples=40
    ),
    "DeepSpeed JSON": Reader(file="deepspeed.json", make=_inputs, read=_load_inputs),
    "DeepSpeed JSON, plan": Reader(file="deepspeed.json", make=_inputs, read=_plan, allowed=_EXITS, examples=40),
    "overrides": Reader(file="overrides", make=_inputs, read=_load_overrides, changes=_words, most_bytes=1000),
    "--assume": Reader(file="assumptions", make=_inputs, read=_assume, changes=_words, most_bytes=1000),
    "samples, audit": Reader(
        file="run/samples/rank_00000.jsonl", make=_recorded_run, read=_audit, changes=mutations.json_lines,
        allowed=_EXITS, most_bytes=LINES,
    ),
    "samples, resumed": Reader(
        file="run/samples/rank_00000.jsonl", make=_recorded_run, read=_remove_after, changes=mutations.json_lines,
        most_bytes=LINES,
    ),
    "config.yaml, audit": Reader(
        file="run/config.yaml", make=_recorded_run, read=_audit, changes=mutations.yaml_file, allowed=_EXITS
    ),
    "config.yaml, report": _in_run("config.yaml", _report, changes=mutations.yaml_file),
    "config.yaml, resumed": _in_run("config.yaml", _tell_changes, changes=mutations.yaml_file),
    "ds_config.json, report": _in_run("ds_config.json", _report),
    "ds_config.json, resumed": _in_run("ds_config.json", _tell_changes),
    "environment.json, report": _in_run("environment.json", _report),
    "metrics.jsonl, report": _in_run("metrics.jsonl", _report, changes=mutations.json_lines, most_bytes=LINES),
    "metrics.jsonl, resumed": _in_run(
        "metrics.jsonl", _metrics_on_resume, changes=mutations.json_lines, most_bytes=LINES
    ),
    "metrics.jsonl, requeue": _in_run(
        "metrics.jsonl", _requeue, changes=mutations.json_lines, most_bytes=LINES, allowed=_EXITS
    ),
    "history.jsonl, report": _in_run("history.jsonl", _report, changes=mutations.json_lines, most_bytes=LINES),
    "requeues.json": _in_run("requeues.json", _requeue, allowed=_EXITS),
    "lease.json": _in_run("lease.json", _look_at_the_lease),
    "wandb_id": _in_run("wandb_id", _wandb_id, changes=mutations.binary, allowed=(UserError, ValueError)),
    "manifest.json": _in_checkpoint("manifest.json", _open_checkpoint),
    "training_state.json": _in_checkpoint("training_state.json", _open_sealed),
    ".metadata": _in_checkpoint("weights_and_moments/.metadata", _open_sealed, changes=mutations.binary),
    "weights of a checkpoint": _in_checkpoint(
        "weights_and_moments/__0_0.distcp", _open_sealed, changes=mutations.binary
    ),
}  # fmt: skip
