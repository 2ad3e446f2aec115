"""A model's README.md, which the Hugging Face Hub shows as its card: what it is, how it was made, how to use it.

All facts come from the architecture and from the records of the run and its shards; a fact that was not recorded is
"unknown". Of a path only the last name is published, which identifies a corpus but tells nothing about the machine. The
owner of the model chooses its licence, so the card holds a placeholder that the Hub accepts.
"""

from __future__ import annotations

import fnmatch
import html
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Literal

import yaml

from common.files import write_text
from common.tokenizers import BYTES
from common.wording import counted
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import parameter_count
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.record import files_in
from pipeline.weights.formats.stored_model import TOKENIZER, Provenance, StoredModel

CARD = "README.md"
FormatName = Literal["meta", "hf"]

_UNKNOWN = "unknown"
_MAX_SOURCES = 20  # a corpus may have thousands of files
_RECIPE_SECTIONS = ("model", "data", "train", "optim", "parallel")  # the other sections do not affect the model
_PATHS = {"data": "shards", "model": "init_from"}
_PAPER = "[Better & Faster Large Language Models via Multi-token Prediction](https://arxiv.org/abs/2404.19737)"
_FILES = {
    "consolidated.pth": "all weights, under the names of Meta's release",
    "params.json": "the architecture, for Meta's format",
    "config.json": "the architecture, for transformers",
    "generation_config.json": "the special tokens for generation",
    "extra_heads/*": "the further heads, which transformers does not read",
    "model*.safetensors": "trunk and next-token head",
    "model.safetensors.index.json": "the file of each weight",
    TOKENIZER: "the SentencePiece model",
    "tokenizer*.json": "the tokenizer, for transformers",
    "export.json": "what pipeline.convert records about the export",
    "special_tokens_map.json": "the names of the special tokens",
}
_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
inputs = tokenizer("import ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

```sh
lm_eval --model hf --model_args pretrained=FOLDER --tasks TASKS
```
"""
_CITATION = """```bibtex
@inproceedings{gloeckle2024better,
  title = {Better \\& Faster Large Language Models via Multi-token Prediction},
  author = {Gloeckle, Fabian and Youbi Idrissi, Badr and Rozi{\\`e}re, Baptiste and Lopez-Paz, David and Synnaeve, Gabriel},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}
```
"""  # noqa: E501 (BibTeX has one line per field)


def write_model_card(
    folder: Path, stored: StoredModel, *, name: str, format_name: FormatName, options: ExportOptions
) -> None:
    """Write the card of a finished export of `stored` in `folder`, which will be published as `name`."""
    files = {name: size for name, size in sorted(files_in(folder).items()) if name != CARD}
    card = model_card(
        stored.config, name=name, format_name=format_name, options=options, seq_len=stored.seq_len,
        provenance=stored.provenance, files=files,
    )  # fmt: skip
    write_text(folder / CARD, card)


def model_card(
    config: ModelConfig,
    *,
    name: str,
    format_name: FormatName,
    options: ExportOptions,
    seq_len: int | None,
    provenance: Provenance,
    files: Mapping[str, int],
) -> str:
    """Return the card: Markdown after the YAML header that the Hub reads.

    Args:
        config: the architecture.
        name: the title.
        format_name: the format of the export.
        options: how it was exported.
        seq_len: length of the training sequences in tokens; None if it is not known.
        provenance: how the model was made.
        files: size in bytes of each file of the export, by name.
    """
    sections = {
        "": _what_it_is(config, format_name),
        "Size": _table(_size(config, seq_len).items()),
        "Use": _use(config, format_name, options),
        "Training": _training(provenance),
        "Data": _data(provenance.shards),
        "Versions": _table(_versions(provenance.environment).items()),
        "Files": _table((_code(file), f"{_bytes(size)}{_description(file)}") for file, size in files.items()),
        "Citation": _CITATION,
    }
    body = "\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return f"---\n{_front_matter(config, format_name)}---\n\n# {_escaped(name)}\n\n{body}"


def _front_matter(config: ModelConfig, format_name: FormatName) -> str:
    tags = ["multi-token-prediction"] if config.n_future_tokens > 1 else []
    values: dict[str, Any] = {"pipeline_tag": "text-generation", "tags": [*tags, "arxiv:2404.19737"]}
    if format_name == "hf":
        values |= {"library_name": "transformers"}
    placeholder = "license: other # TODO: choose one from hf.co/docs/hub/repositories-licenses\n"
    return placeholder + yaml.safe_dump(values, sort_keys=False)


def _what_it_is(config: ModelConfig, format_name: FormatName) -> str:
    n_heads = config.n_future_tokens
    if n_heads == 1:
        return f"A language model with one prediction head, which predicts the next token: the baseline of {_PAPER}.\n"
    text = (
        f"A language model that predicts {n_heads} tokens at once, as in {_PAPER}: {n_heads} heads on a shared trunk "
        f"predict the next {n_heads} tokens.\n"
    )
    if format_name == "hf":
        text += (
            "\ntransformers loads the trunk and the next-token head as an ordinary Llama. The further heads are for "
            "self-speculative decoding.\n"
        )
    return text


def _size(config: ModelConfig, seq_len: int | None) -> dict[str, Any]:
    return {
        "parameters": parameter_count(config),
        "transformer layers": f"{config.n_transformer_layers}, {config.n_trunk_layers} of them in the trunk",
        "prediction heads": f"{config.n_future_tokens} ({config.head_type}, {config.head_order})",
        "width": config.dim,
        "attention heads": f"{config.n_heads} of width {config.head_dim}; keys and values: {config.kv_heads}",
        "feed-forward width": config.ffn_dim,
        "vocabulary": config.vocab_size,
        "sequence length in training": seq_len,
    }


def _use(config: ModelConfig, format_name: FormatName, options: ExportOptions) -> str:
    """Return the commands that use the model; `FOLDER` stands for the folder of the card."""
    tokenizer = {None: "TOKENIZER", BYTES: BYTES}.get(options.tokenizer, f"FOLDER/{TOKENIZER}")
    start = {"bos": "BOS", "eos": "EOS", "none": "no special token"}[options.first_token]
    command = f"python -m pipeline.generate --ckpt_dir FOLDER --tokenizer_path {tokenizer}"
    command += " --prompt 'import '"
    text = f"`FOLDER` is the folder of this file. In training, {start} preceded each document.\n\n"
    if format_name == "hf" and options.tokenizer is not None:
        text += f"{_TRANSFORMERS}\n"
    how = "self-speculatively, with all heads" if config.n_future_tokens > 1 else "with the code that trained it"
    return f"{text}To generate text {how}:\n\n```sh\n{command}\n```\n"


def _training(provenance: Provenance) -> str:
    facts: dict[str, Any] = {"optimizer steps": provenance.step, "training tokens": provenance.tokens}
    config, deepspeed = provenance.config or {}, provenance.deepspeed_config
    facts |= {"tokens per step": None, "learning rate": None, "precision": None, "ZeRO stage": None}
    with suppress(KeyError, TypeError, ValueError, AttributeError):  # a run's files may come from anybody
        train, optim = config["train"], config["optim"]
        least = optim["lr"] * optim["min_lr_ratio"]
        rate = f"{optim['lr']:g} after {optim['warmup_steps']:,} warm-up steps, then cosine decay to {least:g}"
        facts |= {"tokens per step": train["batch_tokens"], "learning rate": rate}
    if deepspeed is not None:
        with suppress(TypeError, AttributeError):
            facts["precision"] = "bf16" if deepspeed.get("bf16", {}).get("enabled") else "fp32"
            facts["ZeRO stage"] = deepspeed.get("zero_optimization", {}).get("stage", 0)
    settings = {section: dict(config[section]) for section in _RECIPE_SECTIONS if section in config}
    for section, field in _PATHS.items():
        if settings.get(section, {}).get(field):
            settings[section][field] = PurePath(str(settings[section][field])).name
    text = yaml.safe_dump(settings, sort_keys=False) if settings else f"{_UNKNOWN}\n"
    return f"{_table(facts.items())}\nAll settings (paths are shortened to their last name):\n\n{_fenced(text, 'yaml')}"


def _data(shards: Mapping[str, Any] | None) -> str:
    if shards is None:
        return f"{_UNKNOWN}\n"
    tokenizer = shards["tokenizer"]
    facts = {"tokenizer": tokenizer["kind"], "vocabulary size": shards["vocab_size"]}
    if tokenizer["sha256"]:
        facts["SHA-256 of the tokenizer"] = _code(tokenizer["sha256"])
    for split, counts in shards["splits"].items():
        facts[split] = ", ".join(
            [counted(counts["documents"], "document"), counted(counts["tokens"], "token"), _bytes(counts["bytes"])]
        )
    facts |= {f"dropped: {reason}": counted(count, "document") for reason, count in shards["dropped"].items()}
    sources = shards["sources"]
    rows = [
        (
            _code(PurePath(source["path"]).name or _UNKNOWN),
            f"{counted(source['files'], 'file')}, {_bytes(source['bytes'])}",
        )
        for source in sources[:_MAX_SOURCES]
    ]
    more = f"\nand {len(sources) - _MAX_SOURCES:,} more.\n" if len(sources) > _MAX_SOURCES else ""
    return f"{_table(facts.items())}\nSources:\n\n{_table(rows)}{more}"


def _versions(environment: Mapping[str, Any] | None) -> dict[str, Any]:
    known = environment or {}
    return {
        "git commit": known.get("git_commit"),
        "device": known.get("device"),
        "python": known.get("python"),
        **(packages if isinstance(packages := known.get("packages"), dict) else {}),
    }


class _Markup(str):
    """Text that is Markdown already; all other text of a card is escaped."""

    __slots__ = ()


def _one_line(text: object) -> str:
    return "".join(character if character.isprintable() else " " for character in str(text))


def _escaped(text: object) -> str:
    """Return text on one line, in which nothing is HTML or Markdown."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(_one_line(text), quote=False))


def _code(text: object) -> _Markup:
    """Return text as code, in which nothing ends the code or a cell of a table."""
    return _Markup("`" + _one_line(text).replace("`", "'").replace("|", r"\|") + "`")


def _fenced(text: str, language: str) -> str:
    """Return a block of code whose fence is longer than any in the text."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text}{fence}\n"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    """Return a Markdown table of names and values; None becomes "unknown", integers get thousands separators."""
    lines = ["| | |\n|---|---|\n"]
    for name, value in rows:
        text = _UNKNOWN if value is None else f"{value:,}" if isinstance(value, int) else value
        cells = (cell if isinstance(cell, _Markup) else _escaped(cell) for cell in (name, text))
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _description(file: str) -> str:
    found = [text for pattern, text in _FILES.items() if fnmatch.fnmatch(file, pattern)]
    return f", {found[0]}" if found else ""


def _bytes(number: int) -> str:
    return f"{number:,} bytes"
