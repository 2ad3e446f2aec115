"""Tokenizers: SentencePiece models and raw bytes behind one small interface.

Byte-level ids 0-255 are the bytes themselves; the special ids come after them, so that a byte's id
is its value. `data_prep` encodes corpora with these, `pipeline` decodes generations.

Whole corpora are encoded by gigatoken (`common.fast_tokens`) where it can do a model, a tenth of the time for the same
ids; SentencePiece stays the reference, and what is fallen back to.
"""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import sentencepiece

from common import fast_tokens
from common.command_line import UserError
from common.fast_tokens import IdArray
from common.files import sha256_of_file

BYTES = "bytes"
FIM_BYTE_IDS = 262  # of bytes with the sentinels of fill-in-the-middle (`data_prep.tokens.fim`)
Engine = Literal["gigatoken", "sentencepiece"]


class Tokenizer(Protocol):
    """Text to ids and back. `sha256` names the exact model file ('' for bytes).

    `versions` has what `encode_array` goes by; `is_reference` says that it is what defines the ids.
    """

    kind: str
    vocab_size: int
    bos_id: int
    eos_id: int
    sha256: str
    versions: dict[str, str]
    is_reference: bool

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without BOS or EOS, by what defines them."""
        ...

    def encode_array(self, text: str) -> IdArray:
        """Return the same ids as an array (tokens,), many times faster on long texts."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of `token_ids`; special ids give nothing."""
        ...


class ByteTokenizer:
    """Raw bytes: ids 0-255 are the bytes, 256 is BOS and 257 is EOS; 258 to 261, where there are as many, sentinels."""

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
    """A SentencePiece model file, as Llama 2 has it; or `variant` of it, a serialized model that goes by its name."""

    kind = "sentencepiece"
    is_reference = True

    def __init__(self, path: Path, *, variant: bytes | None = None) -> None:
        self._model = path.read_bytes() if variant is None else variant
        if not self._model:
            raise OSError("the file is empty")  # of which SentencePiece would make a model without ids
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.sha256 = sha256_of_file(path)
        self.versions = {"sentencepiece": sentencepiece.__version__}

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_array(self, text: str) -> IdArray:
        return self._processor.encode(text, out_type="numpy")

    def decode(self, token_ids: list[int]) -> str:
        return self._processor.decode(token_ids)


class GigatokenTokenizer(SentencePieceTokenizer):
    """A SentencePiece model whose arrays come from gigatoken.

    Raises:
        EngineUnavailable: gigatoken cannot do this model, or is not installed.
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
    """Return the tokenizer that `name` means: the word `bytes`, or the path of a SentencePiece model.

    Args:
        name: of the tokenizer.
        engine: what computes arrays of ids.
        vocab_size: of the model that it is for, if that is known: bytes come with sentinels, and without.
        variant: of the file, a serialized model that goes by its name.

    Raises:
        EngineUnavailable: `engine` is gigatoken, and cannot do this model.
        UserError: the file is missing, or is not a SentencePiece model with an EOS id.
    """
    if name == BYTES:
        return ByteTokenizer(vocab_size=FIM_BYTE_IDS) if vocab_size == FIM_BYTE_IDS else ByteTokenizer()
    path = Path(name)
    if not path.is_file():
        raise UserError(f"tokenizer {name!r} is not a file; give a SentencePiece model or the word 'bytes'")
    try:
        kind = GigatokenTokenizer if engine == "gigatoken" else SentencePieceTokenizer
        tokenizer = kind(path, variant=variant)
    except (RuntimeError, OSError) as error:
        raise UserError(f"tokenizer {name!r} is not a SentencePiece model ({error})") from error
    if tokenizer.eos_id < 0:
        raise UserError(f"tokenizer {name!r} has no EOS id, which joins documents; train it with eos_id >= 0")
    return tokenizer
