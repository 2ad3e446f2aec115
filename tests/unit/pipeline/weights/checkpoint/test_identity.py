"""The corpus of a checkpoint: which changes are noticed, and what the refusal says."""

from pathlib import Path

import pytest

from pipeline.weights.checkpoint.identity import changed_corpus, other_data_message

CORPUS = {"tokenizer": "aa", "train split": "bb"}


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (CORPUS, []),
        ({**CORPUS, "tokenizer": "cc"}, ["tokenizer"]),
        ({**CORPUS, "train split": "cc"}, ["train split"]),
        ({"tokenizer": "", "train split": ""}, ["tokenizer", "train split"]),
        (None, []),
    ],
)
def test_a_changed_part_of_the_corpus_is_named(now: dict[str, str] | None, changed: list[str]) -> None:
    assert changed_corpus(saved=CORPUS, now=now) == changed
    assert changed_corpus(saved=None, now=now) == []  # an earlier version recorded none


def test_the_refusal_names_both_folders_and_the_ways_on() -> None:
    saved, now = ({"data": {"shards": shards}} for shards in ("old", "new"))
    assert other_data_message(Path("step_1"), ["tokenizer", "train split"], saved=saved, now=now) == (
        "cannot continue from step_1: data.shards=new has another tokenizer and another train split than the shards"
        " that it was trained on (data.shards=old). Name those, set another run.name, or go on with the new ones from"
        " their beginning: --other_data"
    )
