"""The DeepSpeed JSON: unknown and refused keys, wrong values, and settings that do not go together."""

from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline.config.deepspeed import checked, deepspeed_problems, load_deepspeed_config
from pipeline.config.deepspeed_keys import TABLE
from pipeline.config.schema import ParallelConfig
from tests.helpers.recipes import write_json


def problems_of(values: dict[str, Any]) -> list[str]:
    """Return the problems of a DeepSpeed JSON by itself."""
    found = checked(values)
    return found.problems + deepspeed_problems(found.values, ParallelConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"scheduler": {"type": "WarmupLR"}},
            "scheduler is refused: the learning rate belongs to the recipe's optim",
        ),
        ({"fp16": {"enabled": True}}, "fp16.enabled=true is refused: the heads' gradients are computed"),
        ({"fp16": {"enabled": "auto"}}, "fp16.enabled='auto' is refused: the heads' gradients"),
        ({"bf16": {"enabled": True}}, "bf16 without ZeRO does not train exactly; use ZeRO-1"),
        (
            {"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}},
            "optimizer.params.torch_adam=false is refused: checkpoints hold the state of torch's AdamW; leave it out",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device='nvme' must be 'none' or 'cpu': checkpoints need the",
        ),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel is refused: it belongs to the recipe"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 must be a whole number from 0 to 3"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage='auto' must be a whole number from 0 to 3"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage=true must be a whole number from 0 to 3"),
        ({"zero_optimization": True}, "zero_optimization=true must be a JSON object"),
        ({"optimizer": {"type": "Adam"}}, "optimizer.type='Adam' must be 'AdamW': the recipe's weight decay is"),
        ({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}, "bf16.enabled='auto' must be true or false"),
        ({"bf16": None}, "bf16=null must be a JSON object; leave it out"),
        ({"gradient_cliping": 1.0}, "unknown key gradient_cliping; did you mean gradient_clipping?"),
        (
            {"zero_optimization": {"stge": 1}},
            "unknown key zero_optimization.stge; did you mean",
        ),
        ({"\x1b[2J" * 50: 1}, "unknown key '\\x1b[2J"),
        ({"optimizer": {"params": []}}, "optimizer.params=[] must be a JSON object"),
        (
            {"optimizer": {"params": {"amsgrad": True}}},
            "optimizer.params.amsgrad=true is refused: checkpoints do",
        ),
        (
            {"optimizer": {"params": {"fused": True, "foreach": True}}},
            "optimizer.params.foreach=true with optimizer.params.fused=true: leave one of them out",
        ),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": -1}},
            "zero_optimization.reduce_bucket_size=-1 must be a whole number from 1 to 1,000,000,000,000,000",
        ),
        (
            {"zero_optimization": {"stage": 2, "allgather_bucket_size": 3}},
            "zero_optimization.allgather_bucket_size=3 must be a whole number from 2 to 1,000,000,000,000,000, a",
        ),
        (
            {"zero_optimization": {"stage": 1, "round_robin_gradients": True}},
            "zero_optimization.round_robin_gradients=true is refused: checkpoints would hold other weights",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": None}},
            "zero_optimization.offload_optimizer=null must be a JSON object; leave it out",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "zero_optimization.offload_optimizer.ratio=0.5 is refused: it needs DeepSpeed's CPU Adam",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param needs ZeRO-3, not 2",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer needs ZeRO-1, 2, 3, not 0",
        ),
        (
            {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}},
            "data_types.grad_accum_dtype='bf16' needs bf16.enabled=true",
        ),
        ({"communication_data_type": "bf16"}, "communication_data_type='bf16' needs bf16.enabled=true"),
        (
            {"bf16": {"enabled": True}, "bfloat16": {}, "zero_optimization": {"stage": 1}},
            "bfloat16 is the old name of bf16; leave one of them out",
        ),
        (
            {"autotuning": {"enabled": True}},
            "autotuning is refused: it ends the run after a few steps",
        ),
        ({"elasticity": {"enabled": True}}, "elasticity is refused: DeepSpeed has removed it"),
    ],
)
def test_each_unsupported_setting_is_one_line(values: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(values)
    assert problem.startswith(message)
    assert len(problem) < 400


def test_bf16_master_weights_are_refused_with_their_moments() -> None:
    values = {
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        "zero_optimization": {"stage": 1},
    }
    assert problems_of(values) == [
        "bf16.bf16_master_weights_and_grads=true is refused: checkpoints hold fp32 weights; leave it out",
        "bf16.bf16_optimizer_states=true is refused: checkpoints hold fp32 moments; leave it out",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"fp16": {"enabled": False}, "bf16": {"enabled": False}},
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"bfloat16": {"enabled": True}, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}},
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "none"}}},
        {
            "flops_profiler": {"enabled": False},
            "wandb": {},
            "amp": {"enabled": False},
            "optimizer": {"params": {"lr": "auto", "amsgrad": False}},
        },
    ],
)
def test_similar_supported_settings_are_accepted(values: dict[str, Any]) -> None:
    assert problems_of(values) == []


def test_deepspeed_sees_only_what_is_supported() -> None:
    found = checked(
        {
            "zero_optimization": {"stage": 1.0, "reduce_bucket_size": 5e8, "round_robin_gradients": False},
            "fp16": {"enabled": False, "loss_scale": "none of DeepSpeed's"},
            "steps_per_print": 10,
            "comms_logger": {},
        }
    )
    assert found.problems == []
    assert found.values == {"zero_optimization": {"stage": 1, "reduce_bucket_size": 500_000_000}, "fp16": {}}
    assert isinstance(found.values["zero_optimization"]["reduce_bucket_size"], int)
    assert found.without_effect == [
        "fp16.loss_scale has no effect: only fp16 reads it, which is refused",
        "steps_per_print has no effect: the run's own log reports, every log.every_steps of the recipe",
    ]


@pytest.mark.parametrize("stages", [1, 2])
def test_deepspeeds_timers_and_pipelines_do_not_go_together(stages: int) -> None:
    problems = deepspeed_problems({"wall_clock_breakdown": True}, ParallelConfig(pipeline_stages=stages))
    assert [problem[:58] for problem in problems] == [
        "parallel.pipeline_stages=2 with wall_clock_breakdown: Deep" for _ in range(stages - 1)
    ]


@pytest.mark.parametrize(
    ("stage", "sizes", "message"),
    [
        (0, {"pipeline_stages": 2}, None),
        (1, {"pipeline_stages": 2}, None),
        (2, {"pipeline_stages": 2}, "parallel.pipeline_stages=2 with ZeRO-2: pipelines accumulate whole gradients"),
        (3, {"pipeline_stages": 2}, "parallel.pipeline_stages=2 with ZeRO-3: pipelines accumulate whole gradients"),
        (0, {"tensor_parallel_size": 2}, "parallel.tensor_parallel_size above 1 needs ZeRO-1, 2 or 3"),
        (1, {"tensor_parallel_size": 2}, None),
        (3, {"tensor_parallel_size": 2}, None),
        (0, {"sequence_parallel_size": 2}, None),
        (3, {"sequence_parallel_size": 2}, None),
    ],
)
def test_each_layout_accepts_the_zero_stages_that_it_works_with(
    stage: int, sizes: dict[str, Any], message: str | None
) -> None:
    problems = deepspeed_problems({"zero_optimization": {"stage": stage}}, ParallelConfig(**sizes))
    assert [problem[: len(message or "")] for problem in problems] == ([] if message is None else [message])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory; see ds_configs/"),
        ('{"bf16": ', "is not JSON: Expecting value"),
        ('["auto"]', "must be a JSON object, not ['auto']"),
        ('{"bf16": {}, "bf16": {}}', "is not JSON: the key 'bf16' stands twice"),
        ('{"zero_optimization": {"stage": 1, "reduce_bucket_size": NaN}}', "holds nan, which is not a finite number"),
        ('{"gradient_clipping": 1e400}', "holds inf, which is not a finite number"),
        ('{"a":' * 100 + "1" + "}" * 100, "is nested deeper than 64 levels"),
    ],
)
def test_a_file_that_is_not_such_a_json_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_deepspeed_config(path)
    assert str(error.value).startswith(f"DeepSpeed config {path} {message}")


@pytest.mark.parametrize("section", [key for key, row in TABLE.items() if isinstance(row, dict)])
@pytest.mark.parametrize("value", [None, True, "auto", [], 1])
def test_a_section_that_is_no_object_is_one_problem(tmp_path: Path, section: str, value: object) -> None:
    path = write_json(tmp_path / "ds.json", {section: value})
    with pytest.raises(UserError, match=rf"^DeepSpeed config {path}: {section}=.* must be a JSON object"):
        load_deepspeed_config(path)
