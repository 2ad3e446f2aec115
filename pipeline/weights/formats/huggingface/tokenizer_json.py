"""A tokenizer in the files that Hugging Face's tools read, with exactly the ids of the tokenizer used in training.

    tokenizer.json             the tokenizer: pieces, merges, the treatment of spaces
    tokenizer_config.json      how transformers, and with it vLLM and lm-eval, use it
    special_tokens_map.json    the names of the special tokens, for older tools
    tokenizer.model            the SentencePiece model itself, unchanged (not for bytes)

tokenizer.json ranks pairs of neighbouring pieces, SentencePiece ranks the pieces that they form.
`common.sentencepieces.sentencepiece_model` explains why the ids are the same, and for which models they are not.

Special tokens are not recognised in text (`split_special_tokens`): `</s>` in a text is four ordinary characters. Their
ids are still special, and `skip_special_tokens` drops them. Programs that read tokenizer.json without transformers must
set `tokenizer.encode_special_tokens = True` for the same behaviour.

Decoding gives the same text as SentencePiece or the bytes. Where byte pieces are no whole character, the number of
replacement characters may differ. The decoder of `tokenizers` replaces every byte of such a run of byte pieces, also a
line end beside half a character. So byte pieces of ASCII become characters before it sees them. Only a longer character
that is spelled in bytes, right beside a broken one, is still replaced with it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from common.command_line import UserError, raise_if_any
from common.sentencepieces.sentencepiece_model import PROBES, SPACE, merges, obstacles, parsed
from common.tokenizers import BYTES, ByteTokenizer, Tokenizer, load_tokenizer, read_model
from pipeline.weights.formats.record import FirstToken
from pipeline.weights.formats.stored_model import TOKENIZER

_Parts = tuple[tokenizers.Tokenizer, dict[str, str], dict[str, bool]]
"""A tokenizer, the names of its special tokens, and further settings for tokenizer_config.json."""


def write_tokenizer_files(tokenizer_model: Path | None, folder: Path, *, first_token: FirstToken) -> None:
    """Write the tokenizer's files into a folder, which may hold other files.

    Args:
        tokenizer_model: a SentencePiece model; None for bytes.
        folder: the folder, which must exist.
        first_token: the token before each document in training, EOS for models trained here and BOS for Meta's.
            `tokenizer(text)` puts it before every text, and so do vLLM and lm-eval by default. With "eos", EOS is also
            the BOS token, as in GPT-2, because lm-eval uses the BOS token where it has no context. With "none" there
            is no BOS token, and lm-eval uses EOS.

    Raises:
        UserError: the file is not a SentencePiece model, or tokenizer.json cannot express it; says why.
        RuntimeError: the written files give other ids than the reference, which is a defect of this module.
    """
    reference = load_tokenizer(BYTES if tokenizer_model is None else str(tokenizer_model))
    if first_token == "bos" and reference.bos_id < 0:
        raise UserError(f"{tokenizer_model} has no BOS; use eos or none as the first token")
    if tokenizer_model is None:
        tokenizer, names, settings = _byte_level()
    else:
        tokenizer, names, settings = _sentencepiece(tokenizer_model)
        shutil.copyfile(tokenizer_model, folder / TOKENIZER)
    _save(tokenizer, names, settings, folder, first_token=first_token)
    _verify(folder, reference, first_token=first_token)


def _byte_level() -> _Parts:
    """Return the byte-level tokenizer and the names of its special tokens BOS and EOS, whose ids follow the bytes.

    `tokenizers` maps each byte to a character (GPT-2's table); without merges, each character is a token.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = {"bos": "<s>", "eos": "</s>"}
    ids = {character: byte for byte, character in bytes_to_unicode().items()}
    ids |= {names["bos"]: ByteTokenizer.bos_id, names["eos"]: ByteTokenizer.eos_id}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(names.values()))
    return tokenizer, names, {}


def _sentencepiece(path: Path) -> _Parts:
    """Return the tokenizer of a SentencePiece model, the names of its special tokens, and its settings.

    Raises:
        UserError: tokenizer.json cannot give the same ids; says why.
    """
    proto = parsed(read_model(path))
    raise_if_any(obstacles(proto), heading=f"{path} cannot be written as a tokenizer.json with the same ids")
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    names = {
        name: proto.pieces[index].piece
        for name in ("unk", "bos", "eos", "pad")
        if (index := getattr(proto.trainer_spec, f"{name}_id")) >= 0
    }
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges(proto), byte_fallback=True, unk_token=names["unk"])
    )
    has_prefix = proto.normalizer_spec.add_dummy_prefix  # a space before every text
    prepend = [normalizers.Prepend(SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    ascii_ = [
        decoders.Replace(tokenizers.Regex(f"^<0x{byte:02X}>$"), chr(byte))
        for byte in range(128)
        if chr(byte) not in ids and f"<0x{byte:02X}>" in ids  # a byte that has a piece never comes as a byte piece
    ]
    steps = [decoders.Replace(SPACE, " "), *ascii_, decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [piece.piece for piece in proto.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    )
    # llama.cpp puts a space before every text unless this is written
    return tokenizer, names, {} if has_prefix else {"add_prefix_space": False}


def _save(
    tokenizer: tokenizers.Tokenizer, names: dict[str, str], settings: dict[str, bool], folder: Path,
    *, first_token: FirstToken,
) -> None:  # fmt: skip
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    from transformers import PreTrainedTokenizerFast

    first = names.get(first_token)
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"],
            pair=[first, "$A", first, "$B:1"],
            special_tokens=[(first, tokenizer.token_to_id(first))],
        )
    named = {f"{name}_token": piece for name, piece in names.items()} | {"bos_token": first}
    # Not LlamaTokenizerFast, which transformers 5 would rebuild by its own rules.
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        **settings,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,  # otherwise decoding drops the space before a comma
        model_input_names=["input_ids", "attention_mask"],  # the default has token_type_ids, which Llama refuses
    ).save_pretrained(folder)


def _verify(folder: Path, reference: Tokenizer, *, first_token: FirstToken) -> None:
    """Compare the tokenizer that transformers loads from `folder` with `reference`, on texts and the whole vocabulary.

    Raises:
        RuntimeError: they differ.
    """
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(str(folder))
    first = {"bos": [reference.bos_id], "eos": [reference.eos_id], "none": []}[first_token]
    for text in (*PROBES, "".join(sorted(written.get_vocab()))):
        ids, expected = written(text, add_special_tokens=False).input_ids, reference.encode(text)
        is_same = ids == expected and written.decode(ids, skip_special_tokens=True) == reference.decode(expected)
        if not is_same or written(text).input_ids != [*first, *expected]:
            raise RuntimeError(f"{folder}: {text[:80]!r} has the ids {expected[:20]}, but transformers has {ids[:20]}")
    found, wanted = (len(written), written.eos_token_id), (reference.vocab_size, reference.eos_id)
    if found != wanted:
        raise RuntimeError(f"{folder}: (number of ids, EOS) should be {wanted}, but transformers has {found}")
