"""The shards and the recipe must agree: sequence length, vocabulary, tokenizer, number of windows, prompts."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from common.shard_format import read_metadata
from common.tokenizers import SentencePieceTokenizer
from data_prep import upload_shards
from pipeline.config.schema import DataConfig
from pipeline.config.shard_folder import (
    evaluation_windows,
    folder_here,
    local_folder,
    preview_problems,
    shard_problems,
)
from tests.helpers.recipes import config_over, with_log
from tests.helpers.s3_server import S3Server


def test_shards_of_another_sequence_length_vocabulary_and_lookahead_are_refused(byte_shards: Path) -> None:
    metadata = read_metadata(byte_shards)
    assert shard_problems(metadata, config_over(byte_shards), data_ranks=2) == []
    other = {**metadata, "seq_len": 64, "vocab_size": 300, "lookahead": 3}
    assert shard_problems(other, config_over(byte_shards), data_ranks=2) == [
        "data.seq_len=32, but the shards have seq_len=64",
        "model.vocab_size=258, but the shards' tokenizer has 300",
        "model.n_future_tokens=4 is more than the shards' lookahead=3; write shards with a larger --lookahead",
    ]


def test_the_lookahead_may_equal_the_number_of_heads(byte_shards: Path) -> None:
    metadata = {**read_metadata(byte_shards), "lookahead": 4}
    assert shard_problems(metadata, config_over(byte_shards, n_future_tokens=4), data_ranks=1) == []
    assert len(shard_problems(metadata, config_over(byte_shards, n_future_tokens=5), data_ranks=1)) == 1


def test_a_changed_tokenizer_is_noticed(tmp_path: Path, byte_shards: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "tokenizer.model").write_bytes(b"abc")
    of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2's example
    metadata = read_metadata(byte_shards)
    metadata["tokenizer"] = {**metadata["tokenizer"], "kind": "sentencepiece", "sha256": of_abc}
    assert shard_problems(metadata, config_over(shards), data_ranks=1) == []
    (shards / "tokenizer.model").write_bytes(b"abd")
    assert shard_problems(metadata, config_over(shards), data_ranks=1) == [
        f"{shards / 'tokenizer.model'} is not the tokenizer that wrote the shards (its SHA-256 differs from "
        "metadata.json)"
    ]


def test_splits_must_fill_one_step_and_one_validation(byte_shards: Path) -> None:
    metadata = read_metadata(byte_shards)
    small = {**metadata, "splits": {"train": {"windows": 15}, "val": {"windows": 8}}}
    assert shard_problems(small, config_over(byte_shards), data_ranks=2) == [
        "the train split has 15 windows, but one step takes 16; write more data"
    ]
    no_val = {**metadata, "splits": {"train": {"windows": 64}}}
    assert shard_problems(no_val, config_over(byte_shards), data_ranks=2) == [
        "the val split has 0 windows, but one micro batch on 2 replicas takes 8; write more data "
        "or set train.eval_every_steps=0"
    ]
    assert shard_problems(no_val, config_over(byte_shards, eval_every_steps=0), data_ranks=2) == []


@pytest.mark.parametrize(("windows", "fits"), [(63, False), (64, True)])
def test_each_canonical_node_needs_a_window(byte_shards: Path, windows: int, fits: bool) -> None:
    """With fewer, mosaicml-streaming fails with "the number of samples assigned to a canonical node is 0"."""
    metadata = {**read_metadata(byte_shards), "splits": {"train": {"windows": windows}, "val": {"windows": 8}}}
    assert shard_problems(metadata, config_over(byte_shards), data_ranks=2) == [
        "data.num_canonical_nodes=64 needs as many train windows, but there are 63; set it to 1"
    ] * (not fits)


@pytest.mark.parametrize(
    ("val_windows", "data_ranks", "expected"),
    [  # micro batches of 4 sequences of 32 tokens; eval_tokens=640 is 20 windows
        (1000, 1, 20),
        (1000, 2, 16),  # whole micro batches on both ranks
        (15, 1, 12),  # no more than the split has
        (1000, 8, 32),  # at least one micro batch on each, although that exceeds eval_tokens
    ],
)
def test_evaluation_windows(val_windows: int, data_ranks: int, expected: int) -> None:
    metadata = {"seq_len": 32, "splits": {"val": {"windows": val_windows}}}
    assert evaluation_windows(metadata, config_over().train, data_ranks=data_ranks) == expected


def test_previews_are_at_most_as_long_as_sequences(byte_shards: Path) -> None:
    """EOS, the longest prompt and its continuation must fit into a sequence of 32 tokens."""
    metadata, prompts = read_metadata(byte_shards), ("x", "def größe")  # the second has 11 bytes
    fits = with_log(config_over(byte_shards), previews_every_steps=1, prompts=prompts, preview_tokens=20)
    assert shard_problems(metadata, fits, data_ranks=2) == []
    long = with_log(config_over(byte_shards), previews_every_steps=1, prompts=prompts, preview_tokens=21)
    assert shard_problems(metadata, long, data_ranks=2) == [
        "log.prompts: the longest takes 33 tokens, including EOS before it and log.preview_tokens=21 after it, but"
        " data.seq_len=32; shorten one of them"
    ]
    unseen = with_log(config_over(byte_shards), prompts=prompts, preview_tokens=21)
    assert shard_problems(metadata, unseen, data_ranks=2) == []


def test_prompts_are_counted_in_tokens_of_the_shards_tokenizer(tmp_path: Path, sentencepiece_model: Path) -> None:
    metadata = {"tokenizer": {"kind": "sentencepiece"}}
    text = "for name in names:\n    print(name)\n" * 3
    n_tokens = len(SentencePieceTokenizer(sentencepiece_model).encode(text))
    config = with_log(config_over(tmp_path), previews_every_steps=1, prompts=(text,), preview_tokens=5)
    assert preview_problems(metadata, data=config.data, log=config.log) == [
        f"log.previews_every_steps needs {tmp_path}/tokenizer.model, which does not exist; set it to 0"
    ]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    fits = replace(config.data, seq_len=1 + n_tokens + 5)
    assert preview_problems(metadata, data=fits, log=config.log) == []
    (problem,) = preview_problems(metadata, data=replace(config.data, seq_len=n_tokens + 5), log=config.log)
    assert problem.startswith(f"log.prompts: the longest takes {1 + n_tokens + 5} tokens")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    (problem,) = preview_problems(metadata, data=fits, log=config.log)
    assert problem.startswith(f"log.previews_every_steps: tokenizer '{tmp_path}/tokenizer.model'")


def test_shards_that_a_stranger_names_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("contacted somebody"))
    assert folder_here(DataConfig(shards="s3://bucket/shards", cache=str(tmp_path / "cache"))) is None
    assert folder_here(DataConfig(shards="s3://bucket/shards")) is None
    assert folder_here(DataConfig(shards="gs://bucket/shards")) is None
    assert not (tmp_path / "cache").exists()
    assert folder_here(DataConfig(shards="data/shards")) == Path("data/shards")


def test_the_mirror_of_shards_is_found_without_asking(s3: S3Server, byte_shards: Path, tmp_path: Path) -> None:
    upload_shards.main([str(byte_shards), f"s3://{s3.bucket}/shards"])
    data = DataConfig(shards=f"s3://{s3.bucket}/shards/", cache=str(tmp_path / "cache"))
    mirror = local_folder(data)
    s3.client().delete_object(Bucket=s3.bucket, Key="shards/metadata.json")
    assert folder_here(data) == mirror
    (mirror / "metadata.json").write_bytes((mirror / "metadata.json").read_bytes() + b" ")
    assert folder_here(data) is None
