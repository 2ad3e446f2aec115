"""A loaded model that continues prompts: batches, a stream, stop texts, and too little memory."""

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from common.tokenizers import ByteTokenizer
from pipeline.inference.decoding import memory as decoding_memory
from pipeline.inference.decoding.decode import Decoder
from pipeline.inference.decoding.memory import DecodingMemory
from pipeline.inference.decoding.prompts import Prompt, encode_prompts
from pipeline.inference.decoding.session import Decoding, Session, choose_heads, choose_precision
from tests.conftest import REPOSITORY
from tests.helpers.exports import exported
from tests.helpers.references import naive_greedy, tiny_config, tiny_model
from tests.helpers.scripted import scripted_model

SCRIPT = "0é1😀2数3 fin"


def session(folder: Path, **changes: int) -> Session:
    sizes = {"max_batch_size": 2, "max_seq_len": 64, "n_heads_used": 4, **changes}
    return Session(folder, ByteTokenizer(), device="cpu", dtype="fp32", **sizes)


def up_to_eos(token_ids: list[int]) -> list[int]:
    eos_id = ByteTokenizer.eos_id
    return token_ids[: token_ids.index(eos_id) + 1] if eos_id in token_ids else token_ids


def prompts(*texts: str) -> list[Prompt]:
    return encode_prompts(texts, ByteTokenizer(), first_token=None)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("tiny") / "export", tiny_model(vocab_size=258))


@pytest.fixture(scope="module")
def scripted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("scripted") / "export", scripted_model(SCRIPT))


def test_prompts_are_continued_in_batches(tiny_folder: Path) -> None:
    texts = ["def f(x):", "é", "import os\n", "x", "y"]
    batches = list(session(tiny_folder).batches(prompts(*texts), Decoding(n_heads_used=3, max_gen_len=12)))
    assert [len(batch.completions) for batch in batches] == [2, 2, 1]
    assert all(batch.seconds > 0 for batch in batches)
    completions = [completion for batch in batches for completion in batch.completions]
    model = tiny_model(vocab_size=258)
    for text, completion in zip(texts, completions, strict=True):
        expected = up_to_eos(naive_greedy(model, [257, *text.encode()], n_tokens=12))
        assert (completion.prompt, completion.token_ids) == (text, expected)
        assert completion.completion == ByteTokenizer().decode(expected)
        assert completion.decoding == "self_speculative"


def test_a_stream_comes_in_whole_characters(scripted_folder: Path) -> None:
    """Blocks of four tokens start and end within characters."""
    told: list[str] = []
    completion = session(scripted_folder).stream(prompts("0")[0], Decoding(n_heads_used=4), on_text=told.append)
    assert completion.completion == "".join(told) == SCRIPT[1:]
    assert completion.tokens_per_forward > 3
    assert len(told) > 3
    assert "" not in told
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(told)


def test_a_stream_ends_with_an_unfinished_character(scripted_folder: Path) -> None:
    told: list[str] = []
    decoding = Decoding(n_heads_used=1, max_gen_len=4, stops=("1😀",))
    completion = session(scripted_folder).stream(prompts("0")[0], decoding, on_text=told.append)
    assert told == ["é", "1\N{REPLACEMENT CHARACTER}"]
    assert completion.completion == "é1\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("n_heads_used", [1, 2, 3, 4])
def test_a_stop_text_cuts_the_same_however_many_tokens_come_at_once(scripted_folder: Path, n_heads_used: int) -> None:
    decoding = Decoding(n_heads_used=n_heads_used, stops=("3 f", "nowhere"))
    (batch,) = session(scripted_folder).batches(prompts("0", "3"), decoding)
    stopped, other = batch.completions
    assert stopped.completion == "é1😀2数"
    assert stopped.token_ids == list("é1😀2数3 f".encode())
    assert other.completion == " fin"
    assert other.token_ids[-1] == ByteTokenizer.eos_id
    told: list[str] = []
    session(scripted_folder).stream(prompts("0")[0], decoding, on_text=told.append)
    assert "".join(told) == stopped.completion


def test_nothing_is_decoded_after_a_stop_text(scripted_folder: Path) -> None:
    loaded = session(scripted_folder)
    forwards: list[object] = []
    loaded.decoder.model.trunk.tok_embeddings.register_forward_hook(lambda *_: forwards.append(None))
    decoding = Decoding(n_heads_used=1, stops=("1",))
    completion = loaded.stream(prompts("0")[0], decoding, on_text=lambda text: None)
    assert completion.completion == "é"
    assert len(forwards) == len(completion.token_ids) == 3


def test_the_seed_decides_the_completions(tiny_folder: Path) -> None:
    loaded = session(tiny_folder)
    decoding = Decoding(n_heads_used=4, temperature=1.0, seed=7)
    first, again, other = (
        [
            completion.completion
            for batch in loaded.batches(prompts("a", "a", "a"), how)
            for completion in batch.completions
        ]
        for how in (decoding, decoding, replace(decoding, seed=8))
    )
    assert first == again != other
    assert len(set(first)) == 3
    streamed = [loaded.stream(prompts("a")[0], decoding, on_text=lambda text: None) for _ in range(2)]
    assert streamed[0].token_ids == streamed[1].token_ids


def test_precision_follows_the_device() -> None:
    assert choose_precision("cpu", None) == ("cpu", "fp32")
    assert choose_precision("cpu", "bf16") == ("cpu", "bf16")
    expected = ("cuda", "bf16") if torch.cuda.is_available() else ("cpu", "fp32")
    assert choose_precision(None, None) == expected
    with pytest.raises(UserError, match=r"--device abacus cannot be used: Expected one of"):
        choose_precision("abacus", None)


def test_the_number_of_heads_is_checked() -> None:
    config = tiny_config()
    assert choose_heads(None, config, decoding="self_speculative") == 4
    assert choose_heads(2, config, decoding="self_speculative") == 2
    assert choose_heads(None, config, decoding="autoregressive") == 1
    assert choose_heads(1, config, decoding="autoregressive") == 1
    with pytest.raises(UserError, match="--n_heads_used 5 must be 1 to 4"):
        choose_heads(5, config, decoding="self_speculative")
    with pytest.raises(UserError, match="--n_heads_used 2 needs --decoding self_speculative"):
        choose_heads(2, config, decoding="autoregressive")


def memory(**changes: Any) -> DecodingMemory:
    sizes = {"device": "cpu", "dtype": "fp32", "max_batch_size": 3, "max_seq_len": 100, "n_heads_used": 4, **changes}
    return DecodingMemory(config=tiny_config(), **sizes)


def test_the_memory_of_weights_and_caches_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with a real decoder, to the byte."""
    model = tiny_model()
    decoder = Decoder(model, max_batch_size=3, max_seq_len=100, max_drafts=0)
    stored = [value for layer in decoder._caches._layers.values() for value in vars(layer).values()]
    tensors = [*model.parameters(), *(value for value in stored if isinstance(value, torch.Tensor))]
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    monkeypatch.setattr(decoding_memory, "_bytes_left", lambda device: n_bytes)
    memory().check()
    memory(dtype="bf16", max_seq_len=200).check()
    monkeypatch.setattr(decoding_memory, "_bytes_left", lambda device: n_bytes - 1)
    with pytest.raises(UserError, match=r"take 0\.0 GB in fp32 and the caches 0\.0 GB, but cpu has 0\.0 GB left"):
        memory().check()
    memory(n_heads_used=3).check()


def test_the_advice_names_only_options_that_help() -> None:
    with pytest.raises(UserError) as caught:
        memory(max_seq_len=10**12).check()
    assert str(caught.value).endswith(
        "left; lower --max_batch_size (3) or --max_seq_len (1000000000000), or use --dtype bf16, or use fewer heads "
        "(--n_heads_used 4)"
    )
    with pytest.raises(UserError) as caught:
        memory(max_seq_len=10**12, dtype="bf16", n_heads_used=1).check()
    assert str(caught.value).endswith("left; lower --max_batch_size (3) or --max_seq_len (1000000000000)")


def test_errors_of_the_allocator_are_explained() -> None:
    with pytest.raises(UserError, match=r"not enough memory on cpu; lower --max_batch"), memory().shortage_explained():
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="must match"), memory().shortage_explained():
        torch.ones(2) + torch.ones(3)


def test_a_memory_limit_of_the_process_is_reported(tiny_folder: Path) -> None:
    """With a real limit: the machine has enough memory, but the process may not use it."""
    limit, per_token = 3 * 2**29, 7 * 2 * 2 * 8 * 4  # layers, keys and values, key heads, width, bytes
    command = [sys.executable, "-m", "pipeline.generate", "--ckpt_dir", str(tiny_folder), "--device", "cpu", "--prompt"]
    command += ["x", "--max_batch_size", "1", "--max_seq_len", str(limit // per_token)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pipeline.generate: error: not enough memory on cpu; lower --max_b")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("n_heads_used", [1, 4])
def test_logits_that_are_nan_end_decoding_with_their_prompt_named(tiny_folder: Path, n_heads_used: int) -> None:
    loaded = session(tiny_folder, n_heads_used=n_heads_used)
    with torch.no_grad():
        loaded.decoder.model.trunk.tok_embeddings.weight["é".encode()[0]] = torch.nan
    message = r"the model computes logits that are not finite in fp32, for prompt 'é' after 3 tokens; look for nan"
    with pytest.raises(UserError, match=message):
        list(loaded.batches(prompts("x", "é"), Decoding(n_heads_used=n_heads_used, max_gen_len=2)))


def test_sampled_texts_do_not_depend_on_the_batch_size(tiny_folder: Path) -> None:
    texts, decoding = ["def f(x):", "é", "x", "import os\n", "y"], Decoding(n_heads_used=4, temperature=1.0, seed=3)
    by_size = [
        [
            completion.token_ids
            for batch in session(tiny_folder, max_batch_size=size).batches(prompts(*texts), decoding)
            for completion in batch.completions
        ]
        for size in (1, 2, 5)
    ]
    assert by_size[0] == by_size[1] == by_size[2]
    streamed = session(tiny_folder).stream(prompts(texts[0])[0], decoding, on_text=lambda text: None)
    assert streamed.token_ids == by_size[0][0]
