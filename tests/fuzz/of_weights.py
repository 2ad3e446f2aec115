"""Readers of exports in Hugging Face's and Meta's formats, and of tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import mutations
from tests.fuzz.reader import Folder, Reader


def _huggingface(folder: Folder) -> None:
    """Write an export with further heads, with an index and the settings of a tokenizer."""
    from tests.helpers.exports import exported
    from tests.helpers.references import tiny_model

    export = exported(folder / "export", tiny_model(vocab_size=258), to="hf")
    names = dict.fromkeys(_names_in(export / "model.safetensors"), "model.safetensors")
    (export / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    (export / "tokenizer_config.json").write_text(json.dumps(settings))


def _names_in(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _meta(folder: Folder) -> None:
    """Write an export in Meta's format, with its record."""
    from pipeline.weights.formats.record import write_record
    from tests.helpers.exports import exported
    from tests.helpers.references import tiny_model

    export = exported(folder / "export", tiny_model(vocab_size=258))
    write_record(export, first_token="eos", seq_len=64)


def _load(folder: Folder) -> None:
    """Load a model and choose its tokenizer, as generate does."""
    from pipeline.inference.decoding.prompts import matching_tokenizer
    from pipeline.weights.formats.detect import EXPORTS, format_of
    from pipeline.weights.formats.stored_model import load_model

    stored = format_of(folder / "export", among=EXPORTS).open(folder / "export")
    matching_tokenizer(None, folder / "export", stored.config)
    load_model(stored)


def _tokenizer(folder: Folder) -> None:
    from tests.helpers.sentencepiece_models import small_code_model

    small_code_model(folder / "tokenizer.model")


def _load_tokenizer(folder: Folder) -> None:
    from common.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "tokenizer.model"))
    tokenizer.decode(tokenizer.encode("def f(x): return x"))


def _load_fim_tokenizer(folder: Folder) -> None:
    from data_prep.tokens.fim import load_fim_tokenizer

    load_fim_tokenizer(str(folder / "tokenizer.model"), engine="sentencepiece")


def _fim_model(folder: Folder) -> None:
    from data_prep.tokens.fim import SENTINEL_PIECES
    from tests.helpers.sentencepiece_models import small_code_model

    small_code_model(folder / "tokenizer.model", user_defined_symbols=list(SENTINEL_PIECES))


def _write_tokenizer_json(folder: Folder) -> None:
    from pipeline.weights.formats.huggingface.tokenizer_json import write_tokenizer_files

    out = folder / "written"
    out.mkdir(exist_ok=True)
    write_tokenizer_files(folder / "tokenizer.model", out, first_token="eos")


def _of(make: Callable[[Folder], None], name: str, *, changes: mutations.Changes = mutations.json_file) -> Reader:
    return Reader(file=f"export/{name}", make=make, read=_load, changes=changes)


READERS: dict[str, Reader] = {
    "config.json": _of(_huggingface, "config.json"),
    "tokenizer_config.json": _of(_huggingface, "tokenizer_config.json"),
    "model.safetensors.index.json": _of(_huggingface, "model.safetensors.index.json"),
    "model.safetensors": _of(_huggingface, "model.safetensors", changes=mutations.binary),
    "header of model.safetensors": _of(_huggingface, "model.safetensors", changes=mutations.safetensors_header),
    "header of the further heads": _of(
        _huggingface, "extra_heads/model.safetensors", changes=mutations.safetensors_header
    ),
    "params.json": _of(_meta, "params.json"),
    "record of an export": _of(_meta, "export.json"),
    "consolidated.pth": _of(_meta, "consolidated.pth", changes=mutations.binary),
    "tokenizer.model": Reader(
        file="tokenizer.model", make=_tokenizer, read=_load_tokenizer, changes=mutations.binary
    ),
    "tokenizer.model, to fill in the middle": Reader(
        file="tokenizer.model", make=_fim_model, read=_load_fim_tokenizer, changes=mutations.binary
    ),
    "tokenizer.model, as tokenizer.json": Reader(
        file="tokenizer.model", make=_tokenizer, read=_write_tokenizer_json, changes=mutations.binary, examples=15
    ),
}  # fmt: skip
