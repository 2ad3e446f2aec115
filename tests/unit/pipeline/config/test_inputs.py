"""All inputs of a run: every problem and contradiction is reported in one message, before torch is imported."""

import json
import re
import shutil
from pathlib import Path

import pytest

from common.command_line import UserError
from pipeline.config.inputs import load_inputs
from tests.conftest import run_module
from tests.helpers.recipes import ZERO1, write_json, write_recipe_over


def test_good_inputs_are_returned_filled(tmp_path: Path, byte_shards: Path) -> None:
    inputs = load_inputs(
        write_recipe_over(byte_shards, directory=tmp_path), ZERO1, overrides=["train.seed=3"], world_size=2
    )
    assert inputs.config.train.seed == 3
    assert inputs.deepspeed_config["gradient_accumulation_steps"] == 2
    assert inputs.metadata == json.loads((byte_shards / "metadata.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("override", "data_ranks"),
    [
        ("parallel.pipeline_stages=1", 4),
        ("parallel.pipeline_stages=2", 2),
        ("parallel.sequence_parallel_size=2", 2),
        ("parallel.tensor_parallel_size=4", 1),
    ],
)
def test_the_batch_is_split_over_replicas(tmp_path: Path, byte_shards: Path, override: str, data_ranks: int) -> None:
    """A step has 16 sequences, a micro batch 4."""
    inputs = load_inputs(write_recipe_over(byte_shards, directory=tmp_path), ZERO1, overrides=[override], world_size=4)
    assert inputs.data_ranks == data_ranks
    assert inputs.deepspeed_config["gradient_accumulation_steps"] == 4 // data_ranks


def test_problems_of_all_three_inputs_are_reported_together(tmp_path: Path) -> None:
    recipe, missing = write_recipe_over(tmp_path / "none", directory=tmp_path), tmp_path / "none.json"
    with pytest.raises(UserError) as error:
        load_inputs(recipe, missing, overrides=["optim.lr=-1"], world_size=3)
    heading, *problems = str(error.value).split("\n  - ")
    assert heading == f"recipe {recipe} with {missing}:"
    assert [problem.split("=")[0].split(" cannot")[0].split(" does")[0] for problem in problems] == [
        "optim.lr",
        "train.batch_tokens",
        f"DeepSpeed config {missing}",
        f"{tmp_path}/none/metadata.json",
    ]


def test_every_impossible_layout_is_named_in_one_error(tmp_path: Path, byte_shards: Path) -> None:
    recipe = write_recipe_over(byte_shards, directory=tmp_path)
    settings = {"zero_optimization": {"stage": 3}, "wall_clock_breakdown": True}
    json_path = write_json(tmp_path / "ds.json", {**settings, "gradient_clipping": 9})
    with pytest.raises(UserError) as error:
        load_inputs(recipe, json_path, overrides=["parallel.pipeline_stages=8"], world_size=12)
    assert str(error.value).split("\n  - ") == [
        f"recipe {recipe} with {json_path}:",
        "parallel.pipeline_stages=8 must divide the run's 12 ranks: each replica of the model takes that many",
        "parallel.pipeline_stages=8 must be at most 7: the model's layers, and its unembedding",
        'gradient_clipping=9 contradicts the recipe\'s 1.0; write "auto" there',
        "parallel.pipeline_stages=8 with ZeRO-3: pipelines accumulate whole gradients over their micro batches, so "
        "they work with ZeRO-0 or ZeRO-1 (ds_configs/zero1_bf16.json)",
        "parallel.pipeline_stages=8 with wall_clock_breakdown: DeepSpeed's timers stop pipelines; the recipe's "
        "profile.steps records times",
    ]


@pytest.mark.parametrize("override", ["model.dim=wide", "data.seq_len=0", "train.micro_batch_size=x", "optim.clip=0"])
def test_a_wrong_value_is_one_problem(tmp_path: Path, byte_shards: Path, override: str) -> None:
    """What would follow from the default in its place is not reported."""
    recipe = write_recipe_over(byte_shards, directory=tmp_path)
    json_path = write_json(tmp_path / "ds.json", {"gradient_clipping": 0.5, "zero_optimization": {"stage": 1}})
    with pytest.raises(UserError) as error:
        load_inputs(recipe, json_path, overrides=["optim.clip=0.5", override], world_size=1)
    assert str(error.value).startswith(f"recipe {recipe} with {json_path}: {override.split('=')[0]}=")


def test_what_has_no_effect_is_told(tmp_path: Path, byte_shards: Path) -> None:
    recipe, json_path = write_recipe_over(byte_shards, directory=tmp_path), tmp_path / "ds.json"
    write_json(json_path, {"steps_per_print": 5, "zero_optimization": {"stage": 1}})
    inputs = load_inputs(recipe, json_path, overrides=[], world_size=1)
    assert [line.split(":")[0] for line in inputs.without_effect] == ["steps_per_print has no effect"]
    assert inputs.deepspeed_config["steps_per_print"] is None


@pytest.mark.parametrize(("n_nodes", "fits"), [(1, True), (8, True), (128, True), (6, False), (100, False)])
def test_canonical_nodes_must_divide_or_be_a_multiple_of_the_nodes(
    tmp_path: Path, byte_shards: Path, n_nodes: int, fits: bool
) -> None:
    def load() -> None:
        load_inputs(
            write_recipe_over(byte_shards, directory=tmp_path), ZERO1, overrides=[], world_size=1, n_nodes=n_nodes
        )

    if fits:
        load()
    else:
        with pytest.raises(
            UserError, match=f"num_canonical_nodes=64 must divide, or be a multiple of, the run's {n_nodes} nodes"
        ):
            load()


def test_the_command_reports_mistakes_before_it_imports_torch(tmp_path: Path, byte_shards: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(byte_shards, shards)
    metadata = json.loads((shards / "metadata.json").read_text(encoding="utf-8"))
    write_json(shards / "metadata.json", {**metadata, "seq_len": 64})
    recipe = write_recipe_over(shards, directory=tmp_path)
    json_path = write_json(tmp_path / "ds.json", {"gradient_clipping": 9, "fp16": {"enabled": True}})
    run_dir = tmp_path / "runs"
    result = run_module(
        "pipeline.train", "--config", recipe, "--deepspeed_config", json_path, f"run.dir={run_dir}", "optim.lr=-1",
        PYTHONPROFILEIMPORTTIME="1",
    )  # fmt: skip
    # Python's shared-memory tracker, a process of its own, writes its imports between these and the message.
    imported = {line.rpartition("|")[2].strip() for line in re.findall("import time:.*\n", result.stderr)}
    message = re.sub("import time:.*\n", "", result.stderr).strip()
    assert result.returncode == 2
    assert result.stdout == ""
    assert message == (
        f"pipeline.train: error: recipe {recipe} with {json_path}:\n"
        "  - optim.lr=-1 must be a number above 0 and at most 100\n"
        "  - fp16.enabled=true is refused: the heads' gradients are computed before the loss is scaled, and would "
        "underflow; bf16 works; leave it out\n"
        "  - data.seq_len=32, but the shards have seq_len=64"
    )
    assert "pipeline.config.inputs" in imported
    assert imported.isdisjoint({"torch", "deepspeed", "streaming", "transformers"})
    assert not run_dir.exists()


def test_the_command_names_all_mistakes_and_makes_no_run_directory(tmp_path: Path, byte_shards: Path) -> None:
    done = run_module(
        "pipeline.train", "--config", write_recipe_over(byte_shards, directory=tmp_path), "--deepspeed_config", ZERO1,
        f"run.dir={tmp_path}/runs", "train.eval_every_steps=0", "profile.steps=[16,17]", "log.every_steps=0",
        "log.previews_every_steps=2", "log.preview_tokens=40",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        "profile.steps=[16, 17] must be the first and the last step to record, within the run's 16 steps" in done.stderr
    )
    assert "log.every_steps=0 must be a whole number from 1 to" in done.stderr
    assert "log.prompts: the longest takes 48 tokens" in done.stderr
    assert not (tmp_path / "runs").exists()
