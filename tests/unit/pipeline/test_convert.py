"""The command: conversion between all formats, refusals, and an output folder that is replaced as a whole or not."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from pipeline import convert
from pipeline.weights.checkpoint.folder import SHARDED
from pipeline.weights.formats import meta
from pipeline.weights.formats.detect import format_of
from pipeline.weights.formats.export import torch_dtype
from pipeline.weights.formats.meta import meta_params, meta_shapes
from pipeline.weights.formats.record import FirstToken
from pipeline.weights.formats.stored_model import first_token_in, load_model, shapes_by_name
from tests.helpers.exports import exported, write_checkpoint
from tests.helpers.references import all_logits, every_kind_of_heads, tiny_model
from tests.helpers.untrusted import reseal


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two whole checkpoints and a damaged one; their weights have seeds 1, 2 and 3."""
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(checkpoints / f"step_{step:08d}", tiny_model(seed=step), shards=tmp_path / "shards")
    (checkpoints / "step_00000003" / SHARDED / "__0_0.distcp").write_bytes(b"torn")
    return tmp_path / "runs" / "tiny"


def run(source: Path, output: Path, *more: str, to: str = "meta") -> None:
    convert.main(["--input", str(source), "--to", to, "--output", str(output), *more])


def values(folder: Path) -> dict[str, torch.Tensor]:
    """Return every weight of a folder by our names."""
    source = format_of(folder).open(folder)
    return {name: source.read(name) for name in shapes_by_name(source.config)}


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert actual[name].dtype == weight.dtype
        assert torch.equal(actual[name], weight), name


def test_a_run_is_exported_from_its_newest_whole_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    run(run_dir, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"README.md", "consolidated.pth", "export.json", "params.json"}
    assert json.loads((tmp_path / "out" / "params.json").read_text()) == meta_params(tiny_model().config)
    weights = torch.load(tmp_path / "out" / "consolidated.pth", weights_only=True)
    assert weights.keys() == meta_shapes(tiny_model().config).keys()
    tokens, model = torch.arange(20).view(2, 10), load_model(format_of(tmp_path / "out").open(tmp_path / "out"))
    assert torch.equal(all_logits(model, tokens), all_logits(tiny_model(seed=2), tokens))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@every_kind_of_heads
def test_round_trips_are_bit_exact(tmp_path: Path, heads: dict[str, Any]) -> None:
    """Through every format and back; models that are not Llamas skip Hugging Face's format."""
    model = tiny_model(**heads)
    write_checkpoint(tmp_path / "run", model)
    formats = ["meta", "hf", "deepspeed"] if heads["head_type"] == "transformer" else ["meta", "deepspeed"]
    route = [*formats, *reversed(formats), formats[0]]
    for index, (source, to) in enumerate(zip(["run", *map(str, range(len(route)))], route, strict=False)):
        run(tmp_path / source, tmp_path / str(index), to=to)
        assert_same_bits(values(tmp_path / str(index)), dict(model.state_dict()))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_kept_except_in_checkpoints(tmp_path: Path, dtype: str) -> None:
    write_checkpoint(tmp_path / "run", tiny_model())
    run(tmp_path / "run", tmp_path / "meta", "--dtype", dtype)
    run(tmp_path / "meta", tmp_path / "hf", to="hf")
    run(tmp_path / "hf", tmp_path / "again")
    expected = {name: weight.to(torch_dtype(dtype)) for name, weight in tiny_model().state_dict().items()}
    assert_same_bits(values(tmp_path / "hf"), expected)
    assert (tmp_path / "meta" / "consolidated.pth").read_bytes() == (
        tmp_path / "again" / "consolidated.pth"
    ).read_bytes()
    run(tmp_path / "hf", tmp_path / "checkpoint", to="deepspeed")
    assert_same_bits(values(tmp_path / "checkpoint"), {name: weight.float() for name, weight in expected.items()})
    with pytest.raises(UserError, match="training checkpoints are always fp32"):
        run(tmp_path / "hf", tmp_path / "bf16", "--dtype", dtype, to="deepspeed")


def test_a_missing_tokenizer_is_warned_about(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, tmp_path / "out")
    captured = capsys.readouterr()
    assert f"its shards, {tmp_path}/shards, are not on this machine" in captured.err
    assert "give one with --tokenizer_path" in captured.err
    assert "--tokenizer_path TOKENIZER" in captured.out


def test_every_format_keeps_the_tokenizer(
    tmp_path: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "run", tiny_model(vocab_size=512))
    run(tmp_path / "run", tmp_path / "meta", "--tokenizer_path", str(sentencepiece_model))
    run(tmp_path / "meta", tmp_path / "hf", to="hf")
    run(tmp_path / "hf", tmp_path / "checkpoint", to="deepspeed")
    run(tmp_path / "checkpoint", tmp_path / "again")
    for folder in ("meta", "hf", "checkpoint", "again"):
        assert (tmp_path / folder / "tokenizer.model").read_bytes() == sentencepiece_model.read_bytes()
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (2, 2)  # EOS precedes documents in runs
    assert f"--tokenizer_path {tmp_path}/again/tokenizer.model" in capsys.readouterr().out


def test_byte_level_runs_are_exported_as_such(
    tmp_path: Path, byte_shards: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "run", tiny_model(vocab_size=258), shards=byte_shards)
    run(tmp_path / "run", tmp_path / "out")
    assert "--tokenizer_path bytes --max_seq_len" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        "| training tokens | 448 |",
        "| optimizer steps | 7 |",
        "| sequence length in training | 64 |",
        "`json`",
    ):
        assert fact in card
    with pytest.raises(UserError, match=r"tokenizer .* has 512 ids, but the model has 258"):
        run(tmp_path / "run", tmp_path / "other", "--tokenizer_path", str(sentencepiece_model))


@pytest.mark.parametrize("first_token", ["bos", "eos", "none"])
def test_the_first_token_travels_through_every_format(
    tmp_path: Path, sentencepiece_model: Path, first_token: FirstToken, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "start", tiny_model(vocab_size=512))
    shutil.copy(sentencepiece_model, tmp_path / "start" / "tokenizer.model")
    run(tmp_path / "start", tmp_path / "0", "--first_token", first_token)
    route = ["hf", "hf", "meta", "deepspeed", "hf", "deepspeed", "meta", "hf"]
    for index, to in enumerate(route):
        run(tmp_path / str(index), tmp_path / str(index + 1), to=to)
        assert first_token_in(tmp_path / str(index + 1)) == first_token
        if to == "hf":
            tokenizer = json.loads((tmp_path / str(index + 1) / "tokenizer_config.json").read_text())
            expected = {"bos": "<s>", "eos": "</s>", "none": None}[first_token]
            assert tokenizer.get("bos_token") == expected
    assert "does not say which token" not in capsys.readouterr().err


def test_a_first_token_that_is_not_known_is_warned_about(
    tmp_path: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "start", tiny_model(vocab_size=512))
    shutil.copy(sentencepiece_model, tmp_path / "start" / "tokenizer.model")
    run(tmp_path / "start", tmp_path / "out")
    assert f"{tmp_path}/start does not say which token precedes each document; the output says bos" in (
        capsys.readouterr().err
    )
    assert first_token_in(tmp_path / "out") == "bos"


def test_the_printed_command_can_be_pasted(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, tmp_path / "my export's")
    *_, command = capsys.readouterr().out.splitlines()
    words = shlex.split(command)
    assert words[words.index("--ckpt_dir") + 1] == str(tmp_path / "my export's")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert.main(["--input", str(run_dir), "--to", "meta", "--output", name])
    assert "argument --output: the name is empty; give a path" in capsys.readouterr().err


def test_the_training_length_travels_and_an_option_sets_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "0", tiny_model())
    for index, to in enumerate(("meta", "deepspeed", "hf", "meta", "hf")):
        run(tmp_path / str(index), tmp_path / str(index + 1), to=to)
        assert format_of(tmp_path / str(index + 1)).open(tmp_path / str(index + 1)).seq_len == 64
    run(tmp_path / "1", tmp_path / "longer", "--seq_len", "8e3", to="hf")
    assert json.loads((tmp_path / "longer" / "config.json").read_text())["max_position_embeddings"] == 8000


def test_a_padded_vocabulary_is_accepted_with_a_word(
    tmp_path: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, vocab_size in (("padded", 576), ("other", 2000)):
        exported(tmp_path / name, tiny_model(vocab_size=vocab_size))
        shutil.copy(sentencepiece_model, tmp_path / name / "tokenizer.model")
    run(tmp_path / "padded", tmp_path / "out", to="hf")
    assert "the model has 576 ids, and " in capsys.readouterr().err
    with pytest.raises(UserError, match="has 512 ids, but the model has 2000"):
        run(tmp_path / "other", tmp_path / "refused")


def test_an_earlier_export_is_replaced_as_a_whole(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(run_dir, out, to="hf")
    run(run_dir, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "consolidated.pth",
        "export.json",
        "params.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_failed_export_leaves_the_earlier_one(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(run_dir, tmp_path / "out")
    before = (tmp_path / "out" / "params.json").stat().st_ino

    def full_disk(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(meta, "write_json", full_disk)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        run(run_dir, tmp_path / "out")
    assert (tmp_path / "out" / "params.json").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_failed_replacement_restores_the_earlier_export(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(run_dir, tmp_path / "out")
    before = (tmp_path / "out" / "params.json").stat().st_ino
    replace = Path.replace

    def failing_replace(self: Path, target: Path) -> Path:
        if self.name.startswith(".out.partial"):
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing_replace)
    with pytest.raises(UserError, match=r"cannot be written: Input/output error"):
        run(run_dir, tmp_path / "out")
    assert (tmp_path / "out" / "params.json").stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_wrong_inputs_and_outputs_are_reported(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    cases = [
        (tmp_path / "nowhere", tmp_path / "out", "does not exist"),
        (tmp_path / "notes", tmp_path / "out", "holds no model; expected a folder with one of: params.json"),
        (tmp_path / "young", tmp_path / "out", "no whole checkpoint"),
        (run_dir / "checkpoints" / "step_00000003", tmp_path / "out", "is damaged"),
        (run_dir, tmp_path / "notes", "holds 'diary.txt', and no export of pipeline.convert"),
        (run_dir, tmp_path / "file", "is a file; give a folder"),
        (run_dir, tmp_path / "file" / "out", "cannot be written"),
    ]
    for source, output, message in cases:
        with pytest.raises(UserError, match=message):
            run(source, output)
    assert (tmp_path / "notes" / "diary.txt").exists()
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_not_exported(run_dir: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "odd", tiny_model())
    write_checkpoint(tmp_path / "other", tiny_model(vocab_size=50))
    shutil.copy(tmp_path / "odd" / "training_state.json", tmp_path / "other")
    reseal(tmp_path / "other")
    with pytest.raises(UserError, match=r"'heads.output.weight' has shape \(50, 32\), not \(97, 32\)"):
        run(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()
