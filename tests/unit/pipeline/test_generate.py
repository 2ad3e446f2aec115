"""The command: its output formats, its comparison, and one clear line for each mistake."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from common.tokenizers import ByteTokenizer, load_tokenizer
from pipeline import generate
from pipeline.inference.decoding.prompts import DEFAULT_PROMPTS
from pipeline.inference.decoding.session import Decoding, Session
from pipeline.weights.formats.record import FirstToken, write_record
from tests.conftest import REPOSITORY, run_module
from tests.helpers.exports import exported
from tests.helpers.heavy import HEAVY
from tests.helpers.references import naive_greedy, tiny_model
from tests.helpers.scripted import scripted_model

QUICKSTART = (
    "torchrun --nproc_per_node 1 -m pipeline.generate --ckpt_dir 7B_200B_4/ --tokenizer_path tokenizer.model "
    "--max_seq_len 128 --max_batch_size 2"
)


@pytest.fixture(scope="module")
def ckpt_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random byte-level model with four heads."""
    return exported(tmp_path_factory.mktemp("bytes_4") / "export", tiny_model(vocab_size=ByteTokenizer.vocab_size))


@pytest.fixture(scope="module")
def scripted_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model that says "bcdé" after "a"."""
    return exported(tmp_path_factory.mktemp("scripted") / "export", scripted_model("abcdé"))


def arguments(ckpt_dir: Path, *more: object) -> list[str]:
    return ["--ckpt_dir", str(ckpt_dir), "--device", "cpu", *map(str, more)]


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
    assert [result["prompt"] for result in plain] == list(DEFAULT_PROMPTS)
    assert [result["decoding"] for result in plain] == ["autoregressive"] * 2
    assert [result["tokens_per_forward"] for result in plain] == [1.0] * 2


@pytest.mark.parametrize("more", [[], ["--decoding", "autoregressive"], ["--json"], ["--temperature", "0.5"]], ids=str)
def test_weights_that_are_nan_end_with_an_error(tmp_path: Path, more: list[str]) -> None:
    model = tiny_model(vocab_size=ByteTokenizer.vocab_size)
    with torch.no_grad():
        model.heads.norm.weight[0] = torch.nan
    folder = exported(tmp_path / "export", tiny_model(vocab_size=ByteTokenizer.vocab_size))
    weights = torch.load(folder / "consolidated.pth", weights_only=True)  # an export refuses such weights
    torch.save(weights | {"norm.weight": model.heads.norm.weight.detach()}, folder / "consolidated.pth")
    with pytest.raises(UserError, match=r"cannot be loaded: 'heads\.norm\.weight' has 1 value that is not finite"):
        generate.main(arguments(folder, "--prompt", "def", *more))


def test_the_seed_decides_the_completions(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(ckpt_dir, "--prompt", "x", "--temperature", "1", "--top_p", "1", "--max_gen_len", "20")
    first, again, other = (objects(capsys, *command, "--seed", seed)[0]["completion"] for seed in "112")
    assert first == again != other


def test_stop_texts_end_a_completion(scripted_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(scripted_dir, "--prompt", "a", "--prompt", "c", "--stop", "dé", "--stop", "nowhere")
    assert [result["completion"] for result in objects(capsys, *command)] == ["bc", ""]


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_one_prompt_streams_what_several_print_at_once(
    scripted_dir: Path, capsys: pytest.CaptureFixture[str], prompts: list[str]
) -> None:
    generate.main(arguments(scripted_dir, *[part for prompt in prompts for part in ("--prompt", prompt)]))
    lines = capsys.readouterr().out.splitlines()
    for index, prompt in enumerate(prompts):
        of_prompt = lines[4 * index : 4 * index + 4]
        assert of_prompt[:2] == [prompt, f"> {'bcdé'[index:]}"]
        assert of_prompt[2].startswith(f"[{6 - index} tokens, ")
        assert of_prompt[3] == "=" * 50
    assert len(lines) == 4 * len(prompts)


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
    batches = Session.batches

    def noted(self: Session, prompts: Any, decoding: Decoding) -> Any:
        used.append(decoding.n_heads_used)
        return batches(self, prompts, decoding)

    monkeypatch.setattr(Session, "batches", noted)
    generate.main(arguments(ckpt_dir, "--prompt", "def", "--max_gen_len", 3, "--n_heads_used", 3, "--compare"))
    assert sorted(used[:2]) == [1, 3]  # the warm-up
    assert used[2:] == [3, 1]


def test_comparison_of_sampled_text_does_not_compare_tokens(ckpt_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(ckpt_dir, "--prompt", "def", "--max_gen_len", 5, "--compare", "--temperature", 1, "--json")
    generate.main(command)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "self-speculative" in err
    assert "token for token" not in err


@pytest.mark.parametrize("to", ["meta", "hf"])
@pytest.mark.parametrize("first_token", [None, "eos"])
def test_both_formats_use_the_tokenizer_in_their_folder(
    tmp_path: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str], to: str, first_token: str | None
) -> None:
    model = tiny_model(vocab_size=512)
    folder = exported(tmp_path / "export", model, to=to)
    shutil.copy(sentencepiece_model, folder / "tokenizer.model")
    more = ["--first_token", first_token] if first_token else []
    result = objects(capsys, *arguments(folder, "--prompt", "def f", "--max_gen_len", 6, *more))[0]
    ids = load_tokenizer(str(sentencepiece_model)).encode("def f")
    expected = naive_greedy(model, [2 if first_token else 1, *ids], n_tokens=6)
    assert result["token_ids"] == (expected[: expected.index(2) + 1] if 2 in expected else expected)


@pytest.mark.parametrize(("recorded", "given", "first_id"), [("eos", None, 2), ("bos", None, 1), ("eos", "bos", 1)])
def test_the_first_token_is_that_of_the_export_unless_an_option_says_another(
    tmp_path: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str], recorded: FirstToken,
    given: str | None, first_id: int,
) -> None:  # fmt: skip
    model = tiny_model(vocab_size=512)
    folder = exported(tmp_path / "export", model)
    shutil.copy(sentencepiece_model, folder / "tokenizer.model")
    write_record(folder, first_token=recorded, seq_len=None)
    more = ["--first_token", given] if given else []
    result = objects(capsys, *arguments(folder, "--prompt", "def f", "--max_gen_len", 6, *more))[0]
    ids = load_tokenizer(str(sentencepiece_model)).encode("def f")
    expected = naive_greedy(model, [first_id, *ids], n_tokens=6)
    assert result["token_ids"] == (expected[: expected.index(2) + 1] if 2 in expected else expected)


def test_prompts_of_a_file_follow_those_of_the_command_line(
    ckpt_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo words\n")
    command = arguments(ckpt_dir, "--prompt", "zero", "--prompt_file", tmp_path / "prompts.txt", "--max_gen_len", 1)
    assert [result["prompt"] for result in objects(capsys, *command)] == ["zero", "one", "two words"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n_heads_used", "5"], "--n_heads_used 5 must be 1 to 4"),
        (["--n_heads_used", "0"], "--n_heads_used must be a whole number from 1 to .*, not 0"),
        (["--decoding", "autoregressive", "--n_heads_used", "2"], "needs --decoding self_speculative"),
        (["--decoding", "autoregressive", "--compare"], "--compare compares self_speculative decoding"),
        (["--temperature", "-1"], "--temperature must be a number at least 0 .* not -1"),
        (["--temperature", "nan"], "--temperature must be a number at least 0 .* not nan"),
        (["--top_p", "0"], "--top_p must be a number above 0 and at most 1, not 0"),
        (["--top_p", "1.5"], "--top_p must be a number above 0 and at most 1, not 1.5"),
        (["--seed", "-1"], r"--seed must be a whole number from 0 to .*, not -1"),
        (["--stop", ""], "--stop '' would end every completion"),
        (["--max_batch_size", "0", "--max_seq_len", "0"], "max_seq_len must be a whole number(.|\n)*max_batch_size"),
        (["--interactive", "--json", "--prompt", "x"], "text; leave out --prompt\n.* leave out --json"),
        (["--interactive", "--compare"], "--interactive reads prompts and prints text; leave out --compare"),
        (["--prompt", "x" * 300], "has 301 tokens, which leaves no room in --max_seq_len 256; raise it above 301"),
        (["--prompt", "", "--first_token", "none"], "a prompt is empty"),
        (["--prompt_file", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--tokenizer_path", "nowhere.model"], "nowhere.model cannot be read: No such file"),
        (["--tokenizer_path", "{tokenizer}"], "has 512 ids, but the model has vocab_size 258"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--max_seq_len", "1" + "0" * 30], "--max_seq_len must be a whole number from 1 to .*, not 10"),
        (["--max_seq_len", "1e9"], "not enough memory: the weights take"),
        (["--ckpt_dir", "{tmp}"], "holds no model; expected a folder with one of: params.json"),
        (["--ckpt_dir", "{tmp}/run"], "is a run or a checkpoint; export it first: python -m pipeline.convert"),
    ],
)
def test_each_mistake_is_reported(
    ckpt_dir: Path, sentencepiece_model: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    places = {"{tmp}": str(tmp_path), "{tokenizer}": str(sentencepiece_model)}
    for place, path in places.items():
        more = [argument.replace(place, path) for argument in more]
    with pytest.raises(UserError, match=message):
        generate.main([*arguments(ckpt_dir), *more])


def test_missing_weights_and_keys_are_reported(ckpt_dir: Path, tmp_path: Path) -> None:
    weights = torch.load(ckpt_dir / "consolidated.pth", weights_only=True)
    del weights["extra_heads.0.attention.wq.weight"]
    torch.save(weights, tmp_path / "consolidated.pth")
    with pytest.raises(UserError, match=r"has no params.json"):
        generate.main(arguments(tmp_path))
    params = json.loads((ckpt_dir / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(UserError, match=r"missing key 'extra_heads.0.attention.wq.weight'"):
        generate.main(arguments(tmp_path))
    del params["dim"]
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(UserError, match=r"params.json: missing key 'dim'"):
        generate.main(arguments(tmp_path))


def test_launchers_are_refused_for_several_processes_and_interactive_use(
    ckpt_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match=r"--interactive needs the terminal; start python"):
        generate.main(arguments(ckpt_dir, "--interactive"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this command runs in 1 process, not 2"):
        generate.main(arguments(ckpt_dir))


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("pipeline.generate", ["--ckpt_dir", "/nowhere", "--tokenizer_path", "bytes"]),
        ("pipeline.generate", ["--ckpt_dir", "/nowhere", "--temperature", "-1"]),
        ("pipeline.convert", ["--input", "/nowhere", "--to", "meta", "--output", "/tmp/never-written"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_without_the_heavy_libraries(module: str, flags: list[str]) -> None:
    result = run_module(module, *flags, PYTHONPROFILEIMPORTTIME="1")
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert result.stdout == ""
    assert [line for line in lines if not line.startswith("import time:")] == lines[-1:]
    assert lines[-1].startswith(f"{module}: error: ")
    assert {line.rpartition("|")[2].strip() for line in lines[:-1]}.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("piped", "code", "out", "err"),
    [
        ("ab\n", 0, "ab\n> cdé\n[5 tokens, ", ""),
        ("\n", 2, "", "standard input is empty; it must hold the texts to continue\n"),
    ],
)
def test_a_piped_text_is_a_prompt(scripted_dir: Path, piped: str, code: int, out: str, err: str) -> None:
    command = [sys.executable, "-m", "pipeline.generate", *arguments(scripted_dir, "--prompt_file", "-")]
    done = subprocess.run(
        command, cwd=REPOSITORY, input=piped, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(out)
    assert done.stderr.endswith(err)


def test_it_ends_quietly_when_the_pipe_is_closed(scripted_dir: Path) -> None:
    """As with `| head -1`; the output is larger than the buffer of the pipe."""
    prompts = ["--prompt", "a"] * 100
    command = [sys.executable, "-m", "pipeline.generate", *arguments(scripted_dir, *prompts, "--max_batch_size", 1)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    assert process.stdout.readline() == "a\n"
    process.stdout.close()
    assert process.wait(timeout=300) == -signal.SIGPIPE
    assert len(process.stderr.read().splitlines()) == 1  # the line about loading


def test_the_model_cards_quickstart(tmp_path: Path, sentencepiece_model: Path) -> None:
    """Word for word, from its own folder; it does not wait for standard input, which stays open here."""
    exported(tmp_path / "7B_200B_4", tiny_model(vocab_size=512))
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    reading, writing = os.pipe()  # like the standard input of an idle shell
    done = subprocess.run(
        QUICKSTART.split(), cwd=tmp_path, stdin=reading, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    os.close(reading)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    for prompt in DEFAULT_PROMPTS:
        assert prompt in done.stdout
    assert "no --prompt, --prompt_file or --interactive: completing two small programs" in done.stderr
