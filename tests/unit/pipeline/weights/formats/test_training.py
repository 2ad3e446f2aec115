"""Training checkpoints as a format; test_convert.py compares the weights."""

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest

from common.command_line import UserError
from common.shard_format import read_metadata
from pipeline.config.schema import Config, DataConfig
from pipeline.config.shard_folder import keep_tokenizer
from pipeline.weights.checkpoint.folder import seal_checkpoint
from pipeline.weights.checkpoint.identity import identity_problems
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


def keep(run_dir: Path, shards: Path) -> None:
    keep_tokenizer(run_dir, data=DataConfig(shards=str(shards)), metadata=read_metadata(shards))


def shards_with(tokenizer: Path, folder: Path, *, like: Path, ends: str) -> Path:
    """Write metadata like those of other shards, but with a SentencePiece tokenizer, and that tokenizer."""
    folder.mkdir()
    shutil.copy(tokenizer, folder / "tokenizer.model")
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    described = {"kind": "sentencepiece", "sha256": sha256, "bos_id": 1, "eos_id": 2}
    metadata = {**read_metadata(like), "vocab_size": 512, "tokenizer": described, "document_ends": ends}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.mark.parametrize(("ends", "first_token"), [("eos", "eos"), ("both", "bos"), ("none", "none")])
def test_a_run_keeps_its_tokenizer_and_its_first_token(
    tmp_path: Path, sentencepiece_model: Path, byte_shards: Path, ends: str, first_token: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The shards may be gone; even if others are in their place, the run's own are taken."""
    run_dir = tmp_path / "run"
    shards = shards_with(sentencepiece_model, tmp_path / "shards", like=byte_shards, ends=ends)
    checkpoint = run_dir / "checkpoints" / "step_00000007"
    write_checkpoint(checkpoint, tiny_model(vocab_size=512), shards=shards)
    assert open_checkpoint(checkpoint).tokenizer == str(shards / "tokenizer.model")
    keep(run_dir, shards)
    shutil.rmtree(shards)
    source = open_checkpoint(checkpoint)
    assert (source.tokenizer, source.first_token) == (str(run_dir / "tokenizer.model"), first_token)
    assert capsys.readouterr().err == ""
    (run_dir / "tokenizer.model").write_bytes(b"another")
    assert open_checkpoint(checkpoint).tokenizer is None
    assert "is not the tokenizer of the run's shards" in capsys.readouterr().err


def test_a_checkpoint_decides_neither_with_whom_to_speak_nor_where_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("contacted somebody"))
    write_checkpoint(tmp_path / "run", tiny_model(), shards="s3://bucket/shards")
    state = json.loads((tmp_path / "run" / "training_state.json").read_text())
    state["config"]["data"]["cache"] = str(tmp_path / "cache")
    seal_checkpoint(tmp_path / "run", state)
    assert open_checkpoint(tmp_path / "run").tokenizer is None
    assert "its shards, s3://bucket/shards, are not on this machine" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_folders_without_a_whole_checkpoint_are_reported(tmp_path: Path) -> None:
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="young has no whole checkpoint"):
        find_checkpoint(tmp_path / "young")
    write_checkpoint(tmp_path / "torn", tiny_model())
    (tmp_path / "torn" / "training_state.json").write_text("{}")
    with pytest.raises(UserError, match=r"torn is damaged: training_state\.json has"):
        find_checkpoint(tmp_path / "torn")


@pytest.mark.parametrize("state", [{"config": {}}, {"config": {"model": 3}}, {"config": {"model": {}, "data": 3}}])
def test_a_state_without_a_model_is_reported(tmp_path: Path, state: dict[str, object]) -> None:
    folder = exported(tmp_path / "start", tiny_model(), to="deepspeed")
    seal_checkpoint(folder, {"step": 0, **state})
    with pytest.raises(UserError, match=r"training_state\.json describes no model"):
        open_checkpoint(folder)
