"""The report, the prompts and the mistakes of the benchmark of decoding."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode
from common.command_line import UserError
from common.mds import streaming
from tests.conftest import run_module
from tests.helpers.exports import exported
from tests.helpers.references import tiny_model

WAYS = ["autoregressive", "2 heads", "3 heads", "4 heads", "LayerSkip, exit 1, drafts 3", "transformers"]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("tiny") / "export", tiny_model(vocab_size=258))


def command(folder: Path, *more: object) -> list[str]:
    few = ["--max_gen_len", 6, "--warm_up", 0, "--repeats", 2, "--exit_layers", 1, "--n_drafts", 3]
    return list(map(str, ["--ckpt_dir", folder, "--device", "cpu", *few, *more]))


def test_report_of_shards(tiny_folder: Path, byte_shards: Path, tmp_path: Path, capsys: Any) -> None:
    files = ["--json", tmp_path / "times.json", "--plot", tmp_path / "times.png"]
    prompts = ["--shards", byte_shards, "--prompt_len", 5, "--n_prompts", 2]
    decode.main(command(tiny_folder, *prompts, "--batch_sizes", 1, 3, *files))
    record = json.loads((tmp_path / "times.json").read_text())
    assert [(way["batch_size"], way["decoding"]) for way in record["times"]] == [
        (b, way) for b in (1, 3) for way in WAYS
    ]
    for way in record["times"]:
        assert way["n_sequences"] == way["n_same"] == (2 if way["batch_size"] == 1 else 3)
        ratio = way["over_autoregressive"]["median"] / way["tokens_per_forward"]
        assert way["efficiency"] == pytest.approx(ratio)
        assert len(way["accepted"]) == {"2": 1, "3": 2, "4": 3, "L": 3}.get(way["decoding"][0], 0)
    assert [floor["batch_size"] for floor in record["floors"]] == [1, 3]
    assert record["arguments"]["shards"] == str(byte_shards)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert [sum(line.startswith(f"| {size} ") for line in printed.splitlines()) for size in (1, 3)] == [len(WAYS)] * 2
    assert printed.count("An autoregressive step of batches of") == 2


def test_prompts_of_shards_are_the_beginnings_of_windows(tiny_folder: Path, byte_shards: Path) -> None:
    arguments = decode._parser().parse_args(
        command(tiny_folder, "--shards", byte_shards, "--prompt_len", 5, "--batch_sizes", 1, 20)
    )
    prompts = decode._prompts(arguments, tiny_model(vocab_size=258).config)
    dataset = streaming.StreamingDataset(local=str(byte_shards / "val"), batch_size=1)
    beginnings = {tuple(dataset[index]["tokens"][:5].tolist()) for index in range(len(dataset))}
    assert len(prompts) == 20  # the largest batch; --n_prompts is 8
    assert {tuple(prompt) for prompt in prompts} <= beginnings
    assert len({tuple(prompt) for prompt in prompts}) > 10


def test_prompts_of_a_file_and_fewer_than_a_batch(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("def f(x):\nimport os\n")
    decode.main(command(tiny_folder, "--prompt_file", tmp_path / "prompts.txt", "--batch_sizes", 3))
    assert "9 of 9" in capsys.readouterr().out  # --n_prompts is 8, which makes 3 batches of 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--repeats", "0", "--max_gen_len", "1"],
            "--repeats must be a whole number from 1(.|\n)*--max_gen_len must be a whole number from 2",
        ),
        (["--batch_sizes", "2", "0"], "--batch_sizes must be a whole number from 1 to .*, not 0"),
        (["--forced_acceptance", "1.5"], "--forced_acceptance must be a number .*, not 1.5"),
        ([], "--ckpt_dir needs prompts"),
        (["--json", "/nowhere/times.json"], "there is no folder /nowhere"),
        (["--shards", "{shards}", "--exit_layers", "1", "2"], "--exit_layers: 2 must be 1 to 1"),
        (["--shards", "{shards}", "--split", "test"], "--split test is not in .*; it has train, val"),
        (["--shards", "{shards}", "--prompt_len", "65"], "a window has 64 tokens, fewer than --prompt_len 65"),
        (["--shards", "{shards}", "--n_prompts", "999999"], "windows, and 999999 prompts are needed"),
        (["--prompt_file", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_each_mistake_is_reported(tiny_folder: Path, byte_shards: Path, more: list[str], message: str) -> None:
    more = [argument.replace("{shards}", str(byte_shards)) for argument in more]
    with pytest.raises(UserError, match=message):
        decode.main([*command(tiny_folder), *more])


def test_models_that_llama_cannot_represent_are_refused(tmp_path: Path, byte_shards: Path) -> None:
    folder = exported(tmp_path / "linear", tiny_model(vocab_size=258, head_type="linear"))
    with pytest.raises(UserError, match="has linear heads, which transformers' Llama does not support"):
        decode.main(command(folder, "--shards", byte_shards))


def test_random_models_take_no_prompts() -> None:
    with pytest.raises(UserError, match="continues random ids; drop --prompt_file and --shards"):
        decode.main(["--size", "0.3B", "--shards", "somewhere"])


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    result = run_module("benchmarks.decode", "--size", "0.3B", "--repeats", 0)
    assert result.returncode == 2
    assert result.stderr == (
        "benchmarks.decode: error: bad arguments: --repeats must be a whole number from 1 to 1,000,000, not 0\n"
    )
