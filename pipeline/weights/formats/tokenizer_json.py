"""A tokenizer as Hugging Face's tools read it, with the very ids of the one that the model was trained with.

    tokenizer.json             the tokenizer: pieces, merges, what becomes of spaces
    tokenizer_config.json      how transformers, and with it vLLM and lm-eval, use it
    special_tokens_map.json    the names of the special tokens, for older tools
    tokenizer.model            the SentencePiece model itself, unchanged (not for bytes)

tokenizer.json ranks pairs of neighbours, SentencePiece what they make: `common.sentencepiece_model` says why the ids
are the same, and of which models they are not.

Special tokens are not looked for in text (`split_special_tokens`): there, `</s>` is four characters like any others.
Among ids they are special as ever, and `skip_special_tokens` drops them. Who reads tokenizer.json without transformers
has to say so again: `tokenizer.encode_special_tokens = True`.

The ids of a text decode to what SentencePiece, or the bytes, decode to. Where ids cut a character's bytes short, there
may be another number of replacement characters.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from common.command_line import UserError, raise_if_any
from common.sentencepiece_model import PROBES, SPACE, merges, obstacles, parsed
from common.tokenizers import BYTES, ByteTokenizer, Tokenizer, load_tokenizer
from pipeline.weights.formats.stored_model import TOKENIZER

FirstToken = Literal["bos", "eos", "none"]


def write_tokenizer_files(tokenizer_model: Path | None, folder: Path, *, first_token: FirstToken) -> None:
    """Write the files of a SentencePiece model, or of bytes where there is none, into a folder, which may hold others.

    `first_token` is what `tokenizer(text)` puts before a text, and so do vLLM and lm-eval unless told otherwise: what
    stood before a document in training. For models trained here that is EOS, for Meta's BOS. With "eos", EOS is the BOS
    token too, as in GPT-2, since lm-eval takes that one where it has nothing to begin with. With "none" there is no BOS
    token, and lm-eval takes EOS.

    Raises:
        UserError: the file is no SentencePiece model, or one that tokenizer.json cannot be; says why.
        RuntimeError: what was written gives other ids than it should; a defect of this module.
    """
    reference = load_tokenizer(BYTES if tokenizer_model is None else str(tokenizer_model))
    if first_token == "bos" and reference.bos_id < 0:
        raise UserError(f"{tokenizer_model} has no BOS to begin with; take eos or none as the first token")
    if tokenizer_model is None:
        tokenizer, names = _byte_level()
    else:
        tokenizer, names = _sentencepiece(tokenizer_model)
        shutil.copyfile(tokenizer_model, folder / TOKENIZER)
    _save(tokenizer, names, folder, first_token=first_token)
    _verify(folder, reference, first_token=first_token)


def _byte_level() -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Return the tokenizer whose ids are the bytes, and BOS and EOS after them; and these two's names.

    `tokenizers` writes each byte as a character (GPT-2's table); where nothing is merged, it stays a token.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = {"bos": "<s>", "eos": "</s>"}
    ids = {character: byte for byte, character in bytes_to_unicode().items()}
    ids |= {names["bos"]: ByteTokenizer.bos_id, names["eos"]: ByteTokenizer.eos_id}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(names.values()))
    return tokenizer, names


def _sentencepiece(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Return the tokenizer of a SentencePiece model, and the names of its special tokens.

    Raises:
        UserError: tokenizer.json cannot give its ids.
    """
    proto = parsed(path.read_bytes())
    raise_if_any(obstacles(proto), heading=f"{path} has no tokenizer.json of the same ids")
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
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [piece.piece for piece in proto.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    )
    return tokenizer, names


def _save(tokenizer: tokenizers.Tokenizer, names: dict[str, str], folder: Path, *, first_token: FirstToken) -> None:
    """Write tokenizer.json and the files beside it."""
    from transformers import PreTrainedTokenizerFast

    first = names.get(first_token)
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"],
            pair=[first, "$A", first, "$B:1"],
            special_tokens=[(first, tokenizer.token_to_id(first))],
        )
    named = {f"{name}_token": piece for name, piece in names.items()} | {"bos_token": first}
    # Not LlamaTokenizerFast, which transformers 5 would rebuild by rules of its own.
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,  # else decoding drops the space before a comma
        model_input_names=["input_ids", "attention_mask"],  # the default has token_type_ids, which Llama refuses
    ).save_pretrained(folder)


def _verify(folder: Path, reference: Tokenizer, *, first_token: FirstToken) -> None:
    """Compare what transformers loads from `folder` with `reference`, on texts and on the whole vocabulary as one."""
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
        raise RuntimeError(f"{folder}: the number of ids, and EOS, are {wanted}, but transformers has {found}")
