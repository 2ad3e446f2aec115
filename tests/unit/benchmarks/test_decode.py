"""The benchmark of decoding: what it compares is the same model, its counts are right, and its report is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode
from benchmarks.parts.decode_times import acceptance, spread, tokens_per_forward
from benchmarks.parts.decoders import (
    ForcedAcceptance,
    as_llama,
    bytes_of_a_step,
    copy_bandwidth,
    our_decodings,
    transformers_decoding,
)
from common.command_line import UserError
from common.mds import streaming
from pipeline.inference.decoding.blockwise import Generation, decode_blockwise
from pipeline.inference.decoding.decode import Decoder, HeadDrafter
from tests.conftest import run_module
from tests.helpers.decoding import PROMPTS
from tests.helpers.exports import exported
from tests.helpers.references import all_logits, naive_greedy, tiny_model

WAYS = ["autoregressive", "2 heads", "3 heads", "4 heads", "LayerSkip, exit 1, drafts 3", "transformers"]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("tiny") / "export", tiny_model(vocab_size=258))


def command(folder: Path, *more: object) -> list[str]:
    few = ["--max_gen_len", 6, "--warm_up", 0, "--repeats", 2, "--exit_layers", 1, "--n_drafts", 3]
    return list(map(str, ["--ckpt_dir", folder, "--device", "cpu", *few, *more]))


@pytest.mark.parametrize("head_order", ["parallel", "anticausal"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_llama_is_the_same_model(head_order: str, n_kv_heads: int) -> None:
    model = tiny_model(head_order=head_order, n_kv_heads=n_kv_heads)
    tokens = torch.randint(97, (2, 13), generator=torch.Generator().manual_seed(1))
    llama = as_llama(model, max_seq_len=16)
    torch.testing.assert_close(llama(tokens).logits, all_logits(model, tokens)[:, :, 0], atol=2e-5, rtol=1e-4)
    assert llama.lm_head.weight.data_ptr() == model.heads.output.weight.data_ptr()


def test_every_way_gives_the_naive_loops_tokens() -> None:
    model = tiny_model()
    decodings = our_decodings(
        model, max_batch_size=4, max_seq_len=24, exit_layers=[1], draft_lengths=[3], forced_acceptance=None
    )
    decodings["transformers"] = transformers_decoding(model, max_seq_len=24)
    assert list(decodings) == WAYS
    expected = [naive_greedy(model, prompt, n_tokens=9) for prompt in PROMPTS]
    for decoding in decodings.values():
        assert decoding(PROMPTS, 9).token_ids == expected  # prompts of four lengths: transformers' begin with filling


@pytest.mark.parametrize(
    ("rates", "n_forwards"),
    [([1.0], 3), ([0.0], 12), ([1.0, 0.0], 6), ([1.0, 1.0, 0.0], 4), ([0.0, 1.0], 12), ([1.0] * 9, 3)],
)
def test_forced_drafts_stand_whatever_they_are(rates: list[float], n_forwards: int) -> None:
    drafter = HeadDrafter(Decoder(tiny_model(), max_batch_size=4, max_seq_len=32), n_heads_used=4)
    forced = ForcedAcceptance(drafter, rates, generator=torch.Generator().manual_seed(1))
    generation = decode_blockwise(forced, PROMPTS, max_gen_len=13, stop_ids=())
    assert generation.forwards == [n_forwards] * 4


def test_forced_rates_are_those_of_drafts_whose_predecessors_stand() -> None:
    drafter = HeadDrafter(Decoder(tiny_model(), max_batch_size=200, max_seq_len=64), n_heads_used=4)
    forced = ForcedAcceptance(drafter, [0.8, 0.5], generator=torch.Generator().manual_seed(1))
    rates, _ = acceptance([decode_blockwise(forced, [[1]] * 200, max_gen_len=40, stop_ids=())])
    for rate, expected in zip(rates, [0.8, 0.4, 0.2], strict=True):  # of about 3,500 blocks
        assert abs(rate - expected) < 0.04


def test_counts_of_several_generations_add_up() -> None:
    generations = [
        Generation(token_ids=[[1] * 7, [1] * 5], forwards=[3, 1], accepted=[[2, 1], [1, 1]], seconds=1.0),
        Generation(token_ids=[[1] * 5], forwards=[4], accepted=[[0, 0]], seconds=1.0),
    ]
    assert tokens_per_forward(generations) == 14 / 8
    assert acceptance(generations) == ([3 / 8, 2 / 8], 5 / 16)
    assert acceptance([Generation(token_ids=[[1, 1]], forwards=[1], accepted=[[]], seconds=1.0)]) == ([], None)
    quartiles = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (quartiles.lower, quartiles.median, quartiles.upper) == (2.0, 3.0, 4.0)
    assert str(spread([0.12345, 0.5, 1234.5])) == "0.5 (0.312 to 618)"


def test_bytes_of_a_step_are_the_weights_and_caches_of_one_head() -> None:
    model = tiny_model()  # width 32, 2 trunk layers and 4 heads, 4 heads of 8, 2 of keys and values, 97 ids
    config = model.config
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * config.ffn_dim + 2 * 32
    weights = (config.n_trunk_layers + 1) * layer + 32 + 97 * 32
    caches = 5 * 10 * (config.n_trunk_layers + 1) * 2 * 16
    assert bytes_of_a_step(model, batch_size=5, n_cached=10) == 4 * (weights + caches)
    assert bytes_of_a_step(model.bfloat16(), batch_size=5, n_cached=10) == 2 * (weights + caches)
    assert copy_bandwidth(torch.device("cpu")) > 2**20


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


def test_prompts_of_shards_begin_windows(tiny_folder: Path, byte_shards: Path) -> None:
    arguments = decode._parse(command(tiny_folder, "--shards", byte_shards, "--prompt_len", 5, "--batch_sizes", 1, 20))
    prompts = decode._prompts(arguments, tiny_model(vocab_size=258).config)
    dataset = streaming.StreamingDataset(local=str(byte_shards / "val"), batch_size=1)
    beginnings = {tuple(dataset[index]["tokens"][:5].tolist()) for index in range(len(dataset))}
    assert len(prompts) == 20  # the largest batch; fewer, 8, were asked for
    assert {tuple(prompt) for prompt in prompts} <= beginnings
    assert len({tuple(prompt) for prompt in prompts}) > 10


def test_prompts_of_a_file_and_fewer_than_a_batch(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("def f(x):\nimport os\n")
    decode.main(command(tiny_folder, "--prompt_file", tmp_path / "prompts.txt", "--batch_sizes", 3))
    assert "9 of 9" in capsys.readouterr().out  # 8 prompts were asked for, which makes 3 batches of 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--repeats", "0", "--max_gen_len", "1"],
            "--max_gen_len must be at least 2(.|\n)*--repeats must be at least 1",
        ),
        (["--batch_sizes", "2", "0"], "--batch_sizes must be at least 1, not 0"),
        (["--forced_acceptance", "1.5"], "--forced_acceptance must be 0 to 1, not 1.5"),
        ([], "--ckpt_dir needs prompts"),
        (["--json", "/nowhere/times.json"], "there is no folder /nowhere"),
        (["--shards", "{shards}", "--exit_layers", "1", "2"], "--exit_layers: 2 must be 1 to 1"),
        (["--shards", "{shards}", "--split", "test"], "--split test is not in .*; it has train, val"),
        (["--shards", "{shards}", "--prompt_len", "65"], "a window has 64 tokens, fewer than --prompt_len 65"),
        (["--shards", "{shards}", "--n_prompts", "999999"], "windows, and 999999 prompts are needed"),
        (["--prompt_file", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_each_mistake_is_told(tiny_folder: Path, byte_shards: Path, more: list[str], message: str) -> None:
    more = [argument.replace("{shards}", str(byte_shards)) for argument in more]
    with pytest.raises(UserError, match=message):
        decode.main([*command(tiny_folder), *more])


def test_models_that_no_llama_is_are_refused(tmp_path: Path, byte_shards: Path) -> None:
    folder = exported(tmp_path / "linear", tiny_model(vocab_size=258, head_type="linear"))
    with pytest.raises(UserError, match="has linear heads, which transformers' Llama has not"):
        decode.main(command(folder, "--shards", byte_shards))


def test_random_models_take_no_prompts() -> None:
    with pytest.raises(UserError, match="continues random ids; drop --prompt_file and --shards"):
        decode.main(["--size", "0.3B", "--shards", "somewhere"])


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    result = run_module("benchmarks.decode", "--size", "0.3B", "--repeats", 0)
    assert result.returncode == 2
    assert result.stderr == "benchmarks.decode: error: bad arguments: --repeats must be at least 1, not 0\n"
