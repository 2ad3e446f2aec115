"""The command line of generation: its output contract, its comparison, and one clear line for each mistake."""

import io
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from common.command_line import UserError
from common.tokenizers import ByteTokenizer, load_tokenizer
from pipeline import generate
from pipeline.convert import write_meta
from tests.conftest import run_module
from tests.unit.references import naive_greedy, tiny_model


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random byte-level model with four heads."""
    folder = tmp_path_factory.mktemp("bytes_4")
    model = tiny_model(vocab_size=ByteTokenizer.vocab_size)
    write_meta(model.state_dict(), model.config, folder)
    return folder


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a hat and a bat"] * 20), model_writer=model, vocab_size=40,
        model_type="bpe", bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def arguments(ckpt_dir: Path, *more: object) -> list[str]:
    return ["--ckpt_dir", str(ckpt_dir), "--tokenizer_path", "bytes", "--device", "cpu", *map(str, more)]


def objects(capsys: pytest.CaptureFixture[str], *command: str) -> list[dict[str, Any]]:
    generate.main([*command, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_is_one_object_per_prompt(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["def f(x):", "é", "import os\n"]
    more = [part for prompt in prompts for part in ("--prompt", prompt)]
    results = objects(capsys, *arguments(ckpt_dir, *more, "--max_gen_len", 12, "--max_batch_size", 2))
    assert [result["prompt"] for result in results] == prompts
    model = tiny_model(vocab_size=ByteTokenizer.vocab_size)
    for prompt, result in zip(prompts, results, strict=True):
        keys = ["prompt", "completion", "token_ids", "decoding", "tokens_per_forward", "tokens_per_s"]
        assert list(result) == keys
        prompt_ids = [ByteTokenizer.eos_id, *prompt.encode()]
        assert result["token_ids"] == naive_greedy(model, prompt_ids, n_tokens=12)
        assert result["completion"] == ByteTokenizer().decode(result["token_ids"])
        assert result["decoding"] == "self_speculative"
        assert 1 <= result["tokens_per_forward"] <= 4
        assert result["tokens_per_s"] > 0


def test_both_decodings_give_the_same_greedy_tokens(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(ckpt_dir, "--max_seq_len", 128)
    fast = objects(capsys, *command, "--decoding", "self_speculative", "--n_heads_used", "2")
    plain = objects(capsys, *command, "--decoding", "autoregressive")
    assert [result["token_ids"] for result in fast] == [result["token_ids"] for result in plain]
    assert [result["prompt"] for result in plain] == list(generate.DEFAULT_PROMPTS)
    assert [result["decoding"] for result in plain] == ["autoregressive"] * 2
    assert [result["tokens_per_forward"] for result in plain] == [1.0] * 2


def test_the_seed_decides_the_samples(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(ckpt_dir, "--prompt", "x", "--temperature", "1", "--top_p", "1", "--max_gen_len", "20")
    first, again, other = (objects(capsys, *command, "--seed", seed)[0]["token_ids"] for seed in "112")
    assert first == again != other


def test_text_output_and_comparison(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(arguments(ckpt_dir, "--prompt", "def", "--prompt", "class A", "--max_gen_len", 9, "--compare"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "def"
    assert sum(line.startswith("[9 tokens, ") and " tokens per forward, " in line for line in lines) == 2
    assert lines[-2].startswith("self-speculative ")
    assert lines[-2].endswith(" times")
    assert lines[-1] == "same token for token: 2 of 2 completions"


def test_comparison_is_with_one_head(ckpt_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    generations = generate._Session.generations

    def noted(self: Any, *args: Any, n_heads_used: int, **kwargs: Any) -> Any:
        used.append(n_heads_used)
        return generations(self, *args, n_heads_used=n_heads_used, **kwargs)

    monkeypatch.setattr(generate._Session, "generations", noted)
    generate.main(arguments(ckpt_dir, "--prompt", "def", "--max_gen_len", 3, "--n_heads_used", 3, "--compare"))
    assert sorted(used[:2]) == [1, 3]  # the warm-up
    assert used[2:] == [3, 1]


def test_comparison_of_samples_says_nothing_of_sameness(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(ckpt_dir, "--prompt", "def", "--max_gen_len", 5, "--compare", "--temperature", 1, "--json")
    generate.main(command)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "self-speculative" in err
    assert "token for token" not in err


def test_a_sentencepiece_completion_keeps_its_leading_space(sentencepiece_model: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_model))
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode("the cat")]
    token_ids = [*tokenizer.encode("sat on"), tokenizer.eos_id]
    assert tokenizer.decode(token_ids) == "sat on"
    assert generate._text_after(prompt_ids, token_ids, tokenizer) == " sat on"


@pytest.mark.parametrize("first_token", [None, "bos", "eos", "none"])
def test_first_token_leads_the_prompt(
    sentencepiece_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first_token: str | None
) -> None:
    model = tiny_model(vocab_size=40)
    write_meta(model.state_dict(), model.config, tmp_path)
    command = ["--ckpt_dir", str(tmp_path), "--tokenizer_path", str(sentencepiece_model), "--max_gen_len", "6"]
    more = ["--first_token", first_token] if first_token else []
    result = objects(capsys, *command, "--prompt", "the mat", "--device", "cpu", *more)[0]
    tokenizer = load_tokenizer(str(sentencepiece_model))
    lead = {None: [1], "bos": [1], "eos": [2], "none": []}[first_token]
    expected = naive_greedy(model, lead + tokenizer.encode("the mat"), n_tokens=6)
    if 2 in expected:
        expected = expected[: expected.index(2) + 1]
    assert result["token_ids"] == expected


@pytest.mark.parametrize(
    ("name", "contents"),
    [("prompts.txt", "one\n\ntwo words\n"), ("p.jsonl", '{"prompt": "one"}\n{"prompt": "two words"}')],
)
def test_prompts_of_a_file_follow_those_of_the_command_line(
    ckpt_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, contents: str
) -> None:
    (tmp_path / name).write_text(contents)
    command = arguments(ckpt_dir, "--prompt", "zero", "--prompt_file", tmp_path / name, "--max_gen_len", 1)
    assert [result["prompt"] for result in objects(capsys, *command)] == ["zero", "one", "two words"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n_heads_used", "5"], "--n_heads_used 5 must be 1 to 4"),
        (["--n_heads_used", "0"], "--n_heads_used must be at least 1, not 0"),
        (["--decoding", "autoregressive", "--n_heads_used", "2"], "needs --decoding self_speculative"),
        (["--decoding", "autoregressive", "--compare"], "--compare compares self_speculative decoding"),
        (["--temperature", "-1"], "--temperature must be 0 .* not -1"),
        (["--temperature", "nan"], "--temperature must be 0 .* not nan"),
        (["--top_p", "0"], "--top_p must be above 0 and at most 1, not 0"),
        (["--top_p", "1.5"], "--top_p must be above 0 and at most 1, not 1.5"),
        (["--max_batch_size", "0", "--max_seq_len", "0"], "max_seq_len must be at least 1(.|\n)*max_batch_size"),
        (["--prompt", "x" * 300], "has 301 tokens, which leaves no room in --max_seq_len 256"),
        (["--prompt", "", "--first_token", "none"], "a prompt is empty"),
        (["--prompt_file", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompt_file", "{tmp}/empty.txt"], "empty.txt is empty"),
        (["--prompt_file", "{tmp}/latin.txt"], "latin.txt is not UTF-8"),
        (["--prompt_file", "{tmp}/list.jsonl"], 'must hold a JSON object with a "prompt" on every line'),
        (["--tokenizer_path", "nowhere.model"], "is not a file"),
        (["--tokenizer_path", "{vocabulary}"], "has 40 ids, but the model has vocab_size 258"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--ckpt_dir", "{tmp}"], "has no params.json"),
    ],
)
def test_each_mistake_is_told(
    ckpt_dir: Path, sentencepiece_model: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "list.jsonl").write_text("[1]")
    places = {"{tmp}": str(tmp_path), "{vocabulary}": str(sentencepiece_model)}
    for place, path in places.items():
        more = [argument.replace(place, path) for argument in more]
    with pytest.raises(UserError, match=message):
        generate.main([*arguments(ckpt_dir), *more])


def test_missing_weights_are_named(ckpt_dir: Path, tmp_path: Path) -> None:
    weights = torch.load(ckpt_dir / "consolidated.pth", weights_only=True)
    del weights["extra_heads.0.attention.wq.weight"]
    torch.save(weights, tmp_path / "consolidated.pth")
    (tmp_path / "params.json").write_bytes((ckpt_dir / "params.json").read_bytes())
    with pytest.raises(UserError, match=r"missing key 'extra_heads.0.attention.wq.weight'"):
        generate.main(arguments(tmp_path, "--max_seq_len", 200))


def test_several_processes_are_refused(ckpt_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process generates, not 2"):
        generate.main(arguments(ckpt_dir))


def timed(module: str, *flags: object) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.perf_counter()
    return run_module(module, *flags), time.perf_counter() - started


@pytest.mark.parametrize("module", ["pipeline.generate", "pipeline.convert"])
def test_help_answers_without_torch(module: str) -> None:
    result, seconds = timed(module, "--help")
    assert result.returncode == 0
    assert f"python -m {module} " in result.stdout
    assert seconds < 1.5


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("pipeline.generate", ["--ckpt_dir", "/nowhere", "--tokenizer_path", "bytes"]),
        ("pipeline.convert", ["--input", "/nowhere", "--to", "meta", "--output", "/tmp/never-written"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(module: str, flags: list[str]) -> None:
    result, seconds = timed(module, *flags)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"{module}: error: ")
    assert seconds < 1.5


def test_torchrun_runs_the_quickstart(ckpt_dir: Path) -> None:
    result = run_module(
        "torch.distributed.run", "--nproc_per_node", "1", "-m", "pipeline.generate", *arguments(ckpt_dir),
        "--max_seq_len", "128", "--max_batch_size", "2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for prompt in generate.DEFAULT_PROMPTS:
        assert prompt in result.stdout
