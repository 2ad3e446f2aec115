"""Tokenizers: SentencePiece models and raw bytes behind one small interface.

The id of a byte is its value, 0 to 255; special ids come after the bytes. `data_prep` encodes corpora with these
tokenizers, and `pipeline` decodes generated text.

Whole corpora are encoded with gigatoken (`common.sentencepieces.fast_tokens`) if it supports the model: it takes a
tenth of the time for the same ids. SentencePiece remains the reference and the fallback.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import sentencepiece

from common.command_line import UserError
from common.sentencepieces import fast_tokens
from common.sentencepieces.fast_tokens import IdArray
from common.small_files import BadFileError, read_small_file

BYTES = "bytes"
_WANTED = "give a SentencePiece model or the word 'bytes'"
_MOST_BYTES = 256 << 20  # of a model; the largest public ones have some 10 MB
FIM_BYTE_IDS = 262  # vocabulary of bytes with the fill-in-the-middle sentinels (`data_prep.tokens.fim`)
Engine = Literal["gigatoken", "sentencepiece"]


class Tokenizer(Protocol):
    """Converts text to ids and back."""

    kind: str
    vocab_size: int
    bos_id: int
    eos_id: int
    sha256: str
    """SHA-256 of the model file; empty for bytes."""
    versions: dict[str, str]
    """Versions of the packages that `encode_array` uses."""
    is_reference: bool
    """True if `encode_array` uses the implementation that defines the ids."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without BOS and EOS, from the implementation that defines them."""
        ...

    def encode_array(self, text: str) -> IdArray:
        """Return the same ids as an array, shape (tokens,); many times faster on long texts."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of `token_ids`; special ids are left out."""
        ...


class ByteTokenizer:
    """Raw bytes: ids 0-255 are the bytes, 256 is BOS, 257 is EOS; a vocabulary of 262 has sentinels from 258 to 261."""

    kind = BYTES
    bos_id = 256
    eos_id = 257
    vocab_size = 258
    sha256 = ""
    is_reference = True

    def __init__(self, *, vocab_size: int = vocab_size) -> None:
        self.vocab_size = vocab_size
        self.versions: dict[str, str] = {}

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    def encode_array(self, text: str) -> IdArray:
        return np.frombuffer(text.encode("utf-8", errors="surrogateescape"), dtype=np.uint8)

    def decode(self, token_ids: list[int]) -> str:
        return bytes(i for i in token_ids if i < self.bos_id).decode("utf-8", errors="replace")


class SentencePieceTokenizer:
    """A SentencePiece model file, such as Llama 2's, or `variant`, a serialized model that is used in its place."""

    kind = "sentencepiece"
    is_reference = True

    def __init__(self, path: Path, *, variant: bytes | None = None) -> None:
        stored = read_model(path)
        self._model = stored if variant is None else variant
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.sha256 = hashlib.sha256(stored).hexdigest()
        self.versions = {"sentencepiece": sentencepiece.__version__}

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_array(self, text: str) -> IdArray:
        return self._processor.encode(text, out_type="numpy")

    def decode(self, token_ids: list[int]) -> str:
        return self._processor.decode([i for i in token_ids if i < self.vocab_size])  # models may have padding ids


class GigatokenTokenizer(SentencePieceTokenizer):
    """A SentencePiece model whose `encode_array` uses gigatoken.

    Raises:
        EngineUnavailable: gigatoken does not support this model, or is not installed.
    """

    is_reference = False

    def __init__(self, path: Path, *, variant: bytes | None = None) -> None:
        super().__init__(path, variant=variant)
        self._encode_fast = fast_tokens.fast_encoder(self._model)
        self.versions |= {fast_tokens.NAME: fast_tokens.version()}

    def encode_array(self, text: str) -> IdArray:
        return self._encode_fast(text)


def load_tokenizer(
    name: str, *, engine: Engine = "sentencepiece", vocab_size: int | None = None, variant: bytes | None = None
) -> Tokenizer:
    """Return the tokenizer with a given name.

    Args:
        name: the word `bytes`, or the path of a SentencePiece model.
        engine: the implementation of `encode_array`.
        vocab_size: vocabulary of the model that uses the tokenizer, if known; it decides whether bytes have sentinels.
        variant: a serialized model that is used in place of the file's.

    Raises:
        EngineUnavailable: `engine` is gigatoken, which does not support this model.
        UserError: the file is missing, or is not a SentencePiece model with an EOS id.
    """
    if name == BYTES:
        return ByteTokenizer(vocab_size=FIM_BYTE_IDS) if vocab_size == FIM_BYTE_IDS else ByteTokenizer()
    try:
        kind = GigatokenTokenizer if engine == "gigatoken" else SentencePieceTokenizer
        tokenizer = kind(Path(name), variant=variant)
    except (RuntimeError, UnicodeDecodeError) as error:  # an assertion of SentencePiece, whose text may be damaged
        raise UserError(f"tokenizer {name!r} is not a SentencePiece model; {_WANTED}") from error
    if tokenizer.eos_id < 0:
        raise UserError(f"tokenizer {name!r} has no EOS id, which separates documents; train it with eos_id >= 0")
    return tokenizer


def read_model(path: Path) -> bytes:
    """Return the content of a file that may be a SentencePiece model.

    Raises:
        UserError: it cannot be read, or is certainly another file.
    """
    try:
        stored = read_small_file(path, what="tokenizer", most_bytes=_MOST_BYTES)
    except BadFileError as error:
        inside = path / "tokenizer.model"
        raise UserError(f"{error}; {f'give {inside}' if os.path.isfile(inside) else _WANTED}") from error
    if not stored:  # SentencePiece would load it as a model without ids
        raise UserError(f"tokenizer {path} is empty; {_WANTED}")
    if stored.startswith(b"{"):
        raise UserError(
            f"tokenizer {path} is JSON, as a tokenizer.json of Hugging Face, and not a SentencePiece model; give the"
            " tokenizer.model that it was made from"
        )
    return stored
