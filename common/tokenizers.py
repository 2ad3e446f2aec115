"""Tokenizers: SentencePiece models and raw bytes behind one small interface.

Byte-level ids 0-255 are the bytes themselves; the special ids come after them, so that a byte's id
is its value. `data_prep` encodes corpora with these, `pipeline` decodes generations.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import sentencepiece

from common.command_line import UserError
from common.files import sha256_of_file

BYTES = "bytes"


class Tokenizer(Protocol):
    """Text to ids and back. `sha256` names the exact model file ('' for bytes)."""

    kind: str
    vocab_size: int
    bos_id: int
    eos_id: int
    sha256: str

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without BOS or EOS."""
        ...

    def encode_array(self, text: str) -> npt.NDArray[np.int32]:
        """Return the same ids as an array (tokens,), many times faster on long texts."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of `token_ids`; special ids give nothing."""
        ...


class ByteTokenizer:
    """Raw bytes: ids 0-255 are the bytes, 256 is BOS and 257 is EOS."""

    kind = BYTES
    bos_id = 256
    eos_id = 257
    vocab_size = 258
    sha256 = ""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    def encode_array(self, text: str) -> npt.NDArray[np.int32]:
        return np.frombuffer(text.encode("utf-8", errors="surrogateescape"), dtype=np.uint8).astype(np.int32)

    def decode(self, token_ids: list[int]) -> str:
        return bytes(i for i in token_ids if i < self.bos_id).decode("utf-8", errors="replace")


class SentencePieceTokenizer:
    """A SentencePiece model file, as Llama 2 has it."""

    kind = "sentencepiece"

    def __init__(self, path: Path) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.sha256 = sha256_of_file(path)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_array(self, text: str) -> npt.NDArray[np.int32]:
        return self._processor.encode(text, out_type="numpy")

    def decode(self, token_ids: list[int]) -> str:
        return self._processor.decode(token_ids)


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that `name` means: the word `bytes`, or the path of a SentencePiece model.

    Raises:
        UserError: the file is missing, or is not a SentencePiece model with an EOS id.
    """
    if name == BYTES:
        return ByteTokenizer()
    path = Path(name)
    if not path.is_file():
        raise UserError(f"tokenizer {name!r} is not a file; give a SentencePiece model or the word 'bytes'")
    try:
        tokenizer = SentencePieceTokenizer(path)
    except (RuntimeError, OSError) as error:
        raise UserError(f"tokenizer {name!r} is not a SentencePiece model ({error})") from error
    if tokenizer.eos_id < 0:
        raise UserError(f"tokenizer {name!r} has no EOS id, which joins documents; train it with eos_id >= 0")
    return tokenizer
