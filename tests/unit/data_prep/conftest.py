"""Fixtures of the tests that run data_prep's commands."""

from pathlib import Path

import pytest

from tests.helpers.shard_writing import make_corpus, model_arguments, written_files


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small corpus, which the test may change."""
    return make_corpus(tmp_path / "corpus")


@pytest.fixture
def model(sentencepiece_model: Path) -> Path:
    return sentencepiece_model


@pytest.fixture
def reference(corpus: Path, model: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files that one uninterrupted run of one worker writes, with exact deduplication."""
    out = tmp_path / "reference"
    return written_files(model_arguments(corpus, model, out, dedup="exact"), out)
