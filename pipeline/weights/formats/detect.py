"""The formats by name, and which of them a folder has."""

import shlex
from collections.abc import Collection
from pathlib import Path

from common.command_line import UserError
from pipeline.weights.formats import meta, training
from pipeline.weights.formats.export import Format
from pipeline.weights.formats.huggingface import folder as huggingface
from pipeline.weights.formats.publish import former_of

FORMATS = {"meta": meta.FORMAT, "hf": huggingface.FORMAT, "deepspeed": training.FORMAT}
"""The formats, by their names for `pipeline.convert --to`."""
EXPORTS = ("meta", "hf")
"""The formats that inference reads."""
_LOOKS = {
    "meta": "params.json and consolidated.pth",
    "hf": "config.json and model.safetensors",
    "deepspeed": "a run directory, or one of its checkpoints",
}


def format_of(path: Path, *, among: Collection[str] = tuple(FORMATS)) -> Format:
    """Return the format of the folder `path`.

    Args:
        path: the folder.
        among: names of the formats to consider.

    Raises:
        UserError: the folder has none of these formats.
    """
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist{_moved_aside(path)}")
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for name in among:
        if FORMATS[name].is_at(path):
            return FORMATS[name]
    if FORMATS["deepspeed"].is_at(path):
        command = f"python -m pipeline.convert --input {shlex.quote(str(path))} --to meta --output FOLDER"
        raise UserError(f"{path} is a run or a checkpoint; export it first: {command}")
    expected = "; ".join(f"{_LOOKS[name]} ({name})" for name in among)
    raise UserError(f"{path} holds no model; expected a folder with one of: {expected}")


def _moved_aside(path: Path) -> str:
    """Return what to do if a conversion was killed when it had moved the export at `path` aside; else nothing."""
    former = former_of(path)
    return f"; a conversion that was killed has left it as {former}: rename that folder" if former.is_dir() else ""
