"""Training checkpoints as a format; test_convert.py compares the weights."""

import json
from pathlib import Path

import pytest

from common.command_line import UserError
from pipeline.config.schema import Config
from pipeline.weights.checkpoint.folder import identity_problems, seal_checkpoint
from pipeline.weights.checkpoint.manifest import damage_of
from pipeline.weights.formats.training import find_checkpoint, open_checkpoint
from tests.helpers.exports import exported, write_checkpoint
from tests.helpers.references import tiny_config, tiny_model


def test_a_written_checkpoint_is_whole_at_step_0_and_of_no_run(tmp_path: Path) -> None:
    folder = exported(tmp_path / "start", tiny_model(), to="deepspeed")
    assert damage_of(folder) is None
    state = json.loads((folder / "training_state.json").read_text())
    assert (state["step"], state["tokens"]) == (0, 0)
    assert open_checkpoint(folder).config == tiny_config()
    problems = identity_problems(saved=state["config"], now=Config(model=tiny_config()).as_dict())
    assert "it was saved with train.seed=None, and this run has 1" in problems
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "training_state.json", "weights_and_moments",
    ]  # fmt: skip


def test_a_checkpoint_knows_its_tokenizer_and_its_context(tmp_path: Path, byte_shards: Path) -> None:
    write_checkpoint(tmp_path / "run", tiny_model(vocab_size=258), shards=byte_shards)
    source = open_checkpoint(tmp_path / "run")
    assert (source.tokenizer, source.seq_len) == ("bytes", 64)
    assert (source.provenance.step, source.provenance.tokens, source.provenance.environment) == (7, 448, None)
    assert source.provenance.shards == json.loads((byte_shards / "metadata.json").read_text())


def test_folders_without_a_whole_checkpoint_are_reported(tmp_path: Path) -> None:
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="young has no whole checkpoint"):
        find_checkpoint(tmp_path / "young")
    write_checkpoint(tmp_path / "torn", tiny_model())
    (tmp_path / "torn" / "training_state.json").write_text("{}")
    with pytest.raises(UserError, match=r"torn is damaged \(training_state\.json has"):
        find_checkpoint(tmp_path / "torn")


@pytest.mark.parametrize("state", [{}, {"config": []}, {"config": {"model": 3}}])
def test_a_state_without_a_model_is_reported(tmp_path: Path, state: dict[str, object]) -> None:
    folder = exported(tmp_path / "start", tiny_model(), to="deepspeed")
    seal_checkpoint(folder, state)
    with pytest.raises(UserError, match=r"training_state\.json describes no model"):
        open_checkpoint(folder)
