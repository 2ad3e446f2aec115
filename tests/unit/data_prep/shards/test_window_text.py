"""The text of windows: marks, and shades that do not change the text."""

import itertools
import re

import numpy as np
import pytest

from common.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from data_prep import train_tokenizer
from data_prep.shards.window_text import marked_text
from tests.helpers.shard_writing import STDLIB

TEXT = "  def f(x):\n\treturn '☃é數🎉' + x  # two  spaces\n\n" + (STDLIB / "heapq.py").read_text()[:3000]


def test_a_mark_shows_where_a_document_ends() -> None:
    window = np.array([*b"ab", 257, *b"c\n", 257, 257, *b"d"], dtype=np.uint16)
    assert marked_text(window, ByteTokenizer()) == "ab⟦EOS⟧\nc\n⟦EOS⟧\n⟦EOS⟧\nd"


def test_every_special_token_has_its_mark() -> None:
    """Also BOS, and the sentinels, without which a document rearranged for fill-in-the-middle cannot be read."""
    window = np.array([256, *b"a", 257, 256, 258, *b"b", 259, *b"c", 260, *b"d", 261, 257], dtype=np.uint16)
    sentinels = {"prefix": 258, "suffix": 259, "middle": 260, "end": 261}
    expected = "⟦BOS⟧a⟦EOS⟧\n⟦BOS⟧⟦PREFIX⟧b⟦SUFFIX⟧c⟦MIDDLE⟧d⟦END⟧⟦EOS⟧\n"
    assert marked_text(window, ByteTokenizer(vocab_size=262), sentinels=sentinels) == expected
    shaded = marked_text(window, ByteTokenizer(vocab_size=262), sentinels=sentinels, style="color")
    assert re.sub(r"\x1b\[[0-9;]*m", "", shaded) == expected


def test_documents_do_not_command_the_terminal() -> None:
    """But for the colors of our own; text that looks like a password in a URL stays."""
    text = "a\x1b[2Jb\r\x9bc \u202ed\thttps://u:p@h/\n"
    escaped = "a\\x1b[2Jb\\r\\x9bc \\u202ed\thttps://u:p@h/\n"
    window = np.array([*text.encode()], dtype=np.uint16)
    assert marked_text(window, ByteTokenizer()) == escaped
    shaded = marked_text(window, ByteTokenizer(), style="color")
    assert re.sub(r"\x1b\[[0-9;]*m", "", shaded).replace("↵", "") == escaped


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "bytes":
        return load_tokenizer("bytes")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    source = str(STDLIB / "asyncio")
    train_tokenizer.main(["--input", source, "--output", str(path), "--vocab_size", "600"])
    return load_tokenizer(str(path))


def test_shades_show_every_token_and_do_not_change_the_text(tokenizer: Tokenizer) -> None:
    ids, more = tokenizer.encode(TEXT), tokenizer.encode("x = 1\n")
    window = np.array([*ids, tokenizer.eos_id, *more], dtype=np.uint16)
    shaded = marked_text(window, tokenizer, style="color")
    without = re.sub(r"\x1b\[[0-9;]*m", "", shaded).replace("↵\n", "\n")
    assert without == marked_text(window, tokenizer)
    *of_ids, last = (re.findall(r"\x1b\[97;48;5;(\d+)m", run) for run in shaded.split("⟦EOS⟧"))
    assert len(last) == len(more)
    (shades,) = of_ids
    assert all(one != other for one, other in itertools.pairwise(shades))
    n_joined = sum(len(character.encode()) - 1 for character in TEXT)  # bytes of one character share a shade
    assert len(ids) - n_joined <= len(shades) <= len(ids)
