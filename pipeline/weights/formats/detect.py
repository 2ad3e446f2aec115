"""Which format a folder has, and the weights that a run starts from."""

from collections.abc import Collection
from pathlib import Path

from common.command_line import UserError
from common.tokenizers import load_tokenizer
from pipeline.config.model import ModelConfig
from pipeline.weights.formats import huggingface, meta, training
from pipeline.weights.formats.source import Format, Source, check_start

FORMATS = {"meta": meta.FORMAT, "hf": huggingface.FORMAT, "deepspeed": training.FORMAT}
"""By the names that `pipeline.convert --to` knows."""
EXPORTS = ("meta", "hf")
"""Those that decoding reads."""
_LOOKS = {
    "meta": "params.json and consolidated.pth",
    "hf": "config.json and model.safetensors",
    "deepspeed": "a run directory, or one of its checkpoints",
}


def starting_weights(config: ModelConfig, *, tokenizer_sha256: str) -> Source:
    """Return the weights that a fresh run begins with.

    Args:
        config: of the run, with `init_from`.
        tokenizer_sha256: of the run's shards; '' for bytes.

    Raises:
        UserError: `model.init_from` holds no weights, or they do not fit the run or its tokenizer.
    """
    assert config.init_from is not None
    path = Path(config.init_from)
    source = format_of(path).open(path)
    check_start(source, config)
    if source.tokenizer is not None and load_tokenizer(source.tokenizer).sha256 != tokenizer_sha256:
        raise UserError(
            f"model.init_from={path} was trained with {source.tokenizer}, which is not the tokenizer of data.shards;"
            " write the shards with it"
        )
    return source


def format_of(path: Path, *, among: Collection[str] = tuple(FORMATS)) -> Format:
    """Return the format of the folder `path`.

    Raises:
        UserError: it has none of those asked for.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    for name in among:
        if FORMATS[name].is_at(path):
            return FORMATS[name]
    if FORMATS["deepspeed"].is_at(path):
        raise UserError(f"{path} is a run or a checkpoint; export it first: python -m pipeline.convert --input {path}")
    expected = "; ".join(f"{_LOOKS[name]} ({name})" for name in among)
    raise UserError(f"{path} holds no model; expected is a folder with one of: {expected}")
