"""What cannot be watched of a run is refused with all else that is wrong, before anything is allocated."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.shard_format import read_metadata
from common.tokenizers import SentencePieceTokenizer
from pipeline.config.inputs import preview_problems, shard_problems
from pipeline.config.ranks import parallel_problems
from pipeline.config.recipe import read_config
from pipeline.config.schema import Config, LogConfig
from tests.conftest import run_module
from tests.unit.pipeline.config.test_inputs import ZERO1, config_of, write_recipe
from tests.unit.pipeline.config.test_ranks import parallel
from tests.unit.pipeline.config.test_schema import write_recipe as write_complete_recipe


def watched(config: Config, **log: Any) -> Config:
    return replace(config, log=LogConfig(**log))


def test_previews_are_at_most_as_long_as_sequences(byte_shards: Path) -> None:
    """EOS, the longest prompt in bytes, and what continues it; sequences have 32 tokens."""
    metadata, prompts = read_metadata(byte_shards), ("x", "def größe")  # of 11 bytes
    fits = watched(config_of(byte_shards), previews_every_steps=1, prompts=prompts, preview_tokens=20)
    assert shard_problems(metadata, fits, data_ranks=2) == []
    long = watched(config_of(byte_shards), previews_every_steps=1, prompts=prompts, preview_tokens=21)
    assert shard_problems(metadata, long, data_ranks=2) == [
        "log.prompts: the longest takes 33 tokens, with EOS before it and log.preview_tokens=21 behind it, but"
        " data.seq_len=32; shorten one of them"
    ]
    unseen = watched(config_of(byte_shards), prompts=prompts, preview_tokens=21)
    assert shard_problems(metadata, unseen, data_ranks=2) == []


def test_prompts_are_counted_in_the_shards_own_tokens(tmp_path: Path, sentencepiece_model: Path) -> None:
    metadata = {"tokenizer": {"kind": "sentencepiece"}}
    text = "for name in names:\n    print(name)\n" * 3
    n_tokens = len(SentencePieceTokenizer(sentencepiece_model).encode(text))
    config = watched(config_of(tmp_path), previews_every_steps=1, prompts=(text,), preview_tokens=5)
    assert preview_problems(metadata, config) == [
        f"log.previews_every_steps needs {tmp_path}/tokenizer.model, which does not exist; set it to 0"
    ]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    fits = replace(config, data=replace(config.data, seq_len=1 + n_tokens + 5))
    assert preview_problems(metadata, fits) == []
    (problem,) = preview_problems(metadata, replace(config, data=replace(config.data, seq_len=n_tokens + 5)))
    assert problem.startswith(f"log.prompts: the longest takes {1 + n_tokens + 5} tokens")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    (problem,) = preview_problems(metadata, fits)
    assert problem.startswith(f"log.previews_every_steps: tokenizer '{tmp_path}/tokenizer.model'")


@pytest.mark.parametrize(
    ("sizes", "log", "problems"),
    [
        (
            {"pipeline_stages": 2},
            {"previews_every_steps": 5, "grad_norms_every_steps": 5},
            [
                "log.previews_every_steps with parallel.pipeline_stages: no rank has the whole of a short text; set it"
                " to 0",
                "log.grad_norms_every_steps with parallel.pipeline_stages: no rank has whole gradients; set it to 0",
            ],
        ),
        (
            {"sequence_parallel_size": 2},
            {"previews_every_steps": 5, "grad_norms_every_steps": 5},
            [
                "log.previews_every_steps with parallel.sequence_parallel_size: no rank has the whole of a short text;"
                " set it to 0"
            ],
        ),
        (
            {"tensor_parallel_size": 2},
            {"previews_every_steps": 5, "grad_norms_every_steps": 5},
            ["log.grad_norms_every_steps with parallel.tensor_parallel_size: no rank has whole gradients; set it to 0"],
        ),
        ({"pipeline_stages": 2}, {}, []),
    ],
)
def test_what_no_rank_can_see(sizes: dict[str, Any], log: dict[str, Any], problems: list[str]) -> None:
    assert parallel_problems(watched(parallel(**sizes), **log), world_size=4) == problems


def test_wandb_is_asked_for_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_complete_recipe(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    _, problems = read_config(recipe, ["log.wandb=project"])
    assert problems == ["log.wandb='project' needs the package wandb: pip install wandb, or leave it out"]
    assert read_config(recipe)[1] == []
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_config(recipe, ["log.wandb=project"])[1] == []


def test_the_front_door_names_all_of_it_and_makes_no_run(tmp_path: Path, byte_shards: Path) -> None:
    done = run_module(
        "pipeline.train", "--config", write_recipe(tmp_path, byte_shards), "--deepspeed_config", ZERO1,
        f"run.dir={tmp_path}/runs", "train.eval_every_steps=0", "profile.steps=[16,17]", "log.every_steps=0",
        "log.previews_every_steps=2", "log.preview_tokens=40",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "profile.steps=[16, 17] must be the first and the last step to record, of the run's 16" in done.stderr
    assert "log.every_steps=0: Input should be greater than 0" in done.stderr
    assert "log.prompts: the longest takes 48 tokens" in done.stderr
    assert not (tmp_path / "runs").exists()
