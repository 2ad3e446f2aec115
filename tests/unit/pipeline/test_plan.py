"""The plan command: its output, its exit codes, and the sources of its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline import plan
from pipeline.config.recipe import load_config
from pipeline.model.formulas import parameter_count, training_flops_per_token
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "pipeline" / "recipes" / "demo.yaml"
SMALL = ["--config", str(DEMO), "--deepspeed_config", str(REPOSITORY / "ds_configs" / "zero2_bf16.json")]
ON_TWO = [*SMALL, "--num_nodes", "1", "--gpus_per_node", "2"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    plan.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_plan_names_every_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "memory.png"
    plan.main([*ON_TWO, "--plot", str(picture), "--assume", "mfu=0.5"])
    text = capsys.readouterr().out
    for word in ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "tokens/s", "goodput", "USD"):
        assert word in text
    assert "mfu=0.5:" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [picture]


def test_each_moment_has_its_parts_and_the_fullest_decides(capsys: pytest.CaptureFixture[str]) -> None:
    """Also if the start is the fullest, when the memory holds nothing but weights: where activations are recomputed."""
    cluster = ["--num_nodes", "8", "--gpus_per_node", "8"]
    recipe = REPOSITORY / "pipeline" / "recipes" / "7B_200B.yaml"
    arguments = ["--config", str(recipe), *SMALL[2:], *cluster, "train.activation_checkpointing=true"]
    chosen = planned(capsys, *arguments)["chosen"]
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    together = {moment["moment"]: sum(moment[part] for part in parts) for moment in chosen["moments"]}
    assert list(together) == ["start", "loss", "head", "backward", "reduction", "step"]
    assert max(together, key=together.__getitem__) == chosen["memory"]["moment"] == "start"
    plan.main(arguments)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    for part in parts:
        assert [float(cell) for cell in rows[part]] == [
            pytest.approx(moment[part] / 1e9, abs=0.005) for moment in chosen["moments"]
        ]
    assert float(rows["logits"][1]) > 0
    assert float(rows["optimizer"][1]) > 0


def test_numbers_agree_with_the_functions_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *ON_TWO)
    config = load_config(DEMO)
    estimate = found["estimate"]
    assert estimate["parameters"] == parameter_count(config.model)
    flops = estimate["flops_per_token"]
    assert flops["trunk"] + flops["heads"] + flops["unembedding"] == training_flops_per_token(config.model, seq_len=256)
    seconds = estimate["steps"] * estimate["step_s"] / estimate["goodput"]
    assert estimate["days"] == pytest.approx(seconds / 86_400)
    assert estimate["gpu_hours"] == pytest.approx(2 * seconds / 3600)


def test_communication_either_overlaps_or_lengthens_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    """ZeRO-2 reduces during the backward; on links that are a thousand times slower, less of this overlaps."""
    fast, slow = (
        planned(capsys, *ON_TWO, "--assume", f"link_efficiency={efficiency}")["chosen"]["step"]
        for efficiency in ("1", "0.001")
    )
    assert fast["hidden_s"] > 0
    together = [step["communication_s"] + step["hidden_s"] for step in (fast, slow)]
    assert together[1] == pytest.approx(1000 * together[0])
    assert slow["hidden_s"] <= slow["compute_s"]


def test_the_fastest_setup_that_fits_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    setups = planned(capsys, *ON_TWO)["alternatives"]
    fits = [setup["fits"] for setup in setups]
    assert fits == sorted(fits, reverse=True)
    speeds = [setup["tokens_per_s"] for setup in setups if setup["fits"]]
    assert speeds == sorted(speeds, reverse=True)
    assert {setup["pipeline_stages"] for setup in setups} == {1, 2}
    assert {setup["json"] for setup in setups} == {"zero1_bf16", "zero2_bf16", "zero3_bf16", "zero3_bf16_offload"}


def test_a_run_that_does_not_fit_gets_a_plan_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    # the 13B on one GPU: its fp32 weights alone are 52 GB, and its optimizer 156
    with pytest.raises(SystemExit) as end:
        plan.main([*SMALL, "--gpus_per_node", "1", "model.dim=5120", "model.n_layers=40", "model.n_heads=40"])
    text = capsys.readouterr().out
    assert end.value.code == 1
    assert "GB more than the" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SMALL, "--gpus_per_node", "3"], "not a multiple"),
        ([*SMALL, "--gpus_per_node", "0"], "--gpus_per_node must be a whole number from 1 to 1,024, not 0"),
        ([*ON_TWO, "--assume", "price=3"], "there is no assumption 'price'"),
        ([*ON_TWO, "--assume", "mfu=high"], "not a number"),
        ([*ON_TWO, "--assume", "mfu=1.5"], "at most 1"),
        ([*ON_TWO, "train.micro_batch=3"], "unknown key"),
        ([*ON_TWO, "--assume", "pue=0.9"], "at least 1"),
        ([*ON_TWO, "--assume", "fragmentation=-0.1"], "above 0, or 0"),
        ([*ON_TWO, "--assume", "mtbf_gpu_hours=0.001"], "makes no progress"),
        ([*ON_TWO, "--assume", "mtbf_gpu_hours=0.1"], "makes no progress"),
        ([*ON_TWO, "--assume", "restart_s=1e12"], "makes no progress"),
        ([*ON_TWO, "--plot", "absent/memory.png"], "does not exist"),
        ([*ON_TWO, "--plot", "memory.xyz"], "a .png file"),
        ([*ON_TWO, "--plot", "docs"], "a .png file"),
    ],
)
def test_mistakes_are_reported(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.main(arguments)


def test_more_gpus_are_faster_and_each_holds_less(capsys: pytest.CaptureFixture[str]) -> None:
    one, many = (
        planned(capsys, *SMALL, "--num_nodes", nodes, "train.batch_tokens=20971520", "train.total_tokens=2097152000")
        for nodes in ("1", "1280")
    )
    assert many["estimate"]["tokens_per_s"] > 100 * one["estimate"]["tokens_per_s"]
    assert many["estimate"]["mtbf_s"] == pytest.approx(one["estimate"]["mtbf_s"] / 1280)
    assert many["chosen"]["memory"]["optimizer"] < one["chosen"]["memory"]["optimizer"]
