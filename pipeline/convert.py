"""Weights for other tools: a training checkpoint to the format of Meta's release, and back into a model.

    python -m pipeline.convert --input runs/demo --to meta --output exports/demo

A Meta folder holds `consolidated.pth` (one flat dict of weights), `params.json` (the architecture) and, for models
with a SentencePiece vocabulary, `tokenizer.model`. There the next-token head is the last of `layers`, and the others
are `extra_heads`; the names apart, the weights are ours unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UserError, exit_on_user_error, raise_if_any
from common.files import write_json, written_whole
from pipeline.config import ModelConfig, model_from_dict, model_problems

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong arguments do without
    import torch
    from torch import Tensor

    from pipeline.model import MultiTokenModel

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
WEIGHTS, PARAMS, TOKENIZER = "consolidated.pth", "params.json", "tokenizer.model"
# Meta's name for a single part of a model-parallel checkpoint; other Llama tools write it.
_WEIGHTS_NAMES = (WEIGHTS, "consolidated.00.pth")
_PARAMS_KEYS = ("dim", "ffn_dim_multiplier", "multiple_of", "n_future_tokens", "n_heads", "n_kv_heads", "n_layers",
                "norm_eps", "rope_theta", "vocab_size")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the input is no checkpoint, or the output folder holds something else.
    """
    arguments = _parse(argv)
    check_output(arguments.output)
    checkpoint = find_checkpoint(arguments.input)

    from pipeline.checkpoint import read_checkpoint
    from pipeline.engine import consolidated_weights

    state = read_checkpoint(checkpoint).state
    config = model_from_dict(state["config"]["model"])
    shards = Path(state["config"]["data"]["shards"])
    tokenizer = shards / TOKENIZER
    if not shards.is_dir():
        print(f"warning: the run's shards, {shards}, are not here, so their {TOKENIZER} is not copied", file=sys.stderr)

    with published_folder(arguments.output) as folder:
        print(f"reading {checkpoint} (step {state['step']:,})", flush=True)
        weights = with_dtype(consolidated_weights(checkpoint), torch_dtype(arguments.dtype))
        print(f"writing {arguments.output}", flush=True)
        WRITERS[arguments.to](weights, config, folder)
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, folder / TOKENIZER)
    vocabulary = arguments.output / TOKENIZER if tokenizer.is_file() else "bytes"
    print(
        f"finished; to try it (documents were joined by EOS, hence --first_token):\n  python -m pipeline.generate "
        f"--ckpt_dir {arguments.output} --tokenizer_path {vocabulary} --first_token eos --max_seq_len 128"
    )


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` is, or the newest whole one of the run directory that it is.

    Raises:
        UserError: it is neither, or has no whole checkpoint.
    """
    is_checkpoint = (path / "training_state.json").is_file()
    if not is_checkpoint and not (path / "checkpoints").is_dir():
        raise UserError(f"--input {path} is neither a run directory (runs/NAME) nor a checkpoint (.../step_00001000)")
    from pipeline.checkpoint import checkpoint_damage, newest_whole_checkpoint

    if is_checkpoint:
        damage = checkpoint_damage(path)
        if damage is not None:
            raise UserError(f"--input {path} is damaged ({damage}); give the run directory to take an older checkpoint")
        return path
    checkpoint = newest_whole_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise UserError(f"--input {path}: no whole checkpoint in its checkpoints/ yet")
    return checkpoint


def meta_name(name: str, *, n_trunk_layers: int) -> str:
    """Return the Meta format's name of one of our weights."""
    module, _, rest = name.partition(".")
    if module == "heads" and rest.startswith("layers."):
        _, index, rest = rest.split(".", 2)
        return f"layers.{n_trunk_layers}.{rest}" if index == "0" else f"extra_heads.{int(index) - 1}.{rest}"
    return rest


def own_name(name: str, *, n_trunk_layers: int) -> str:
    """Return our name of one of the Meta format's weights; inverse of `meta_name`."""
    module, _, rest = name.partition(".")
    if module == "extra_heads":
        index, _, rest = rest.partition(".")
        return f"heads.layers.{int(index) + 1}.{rest}"
    if name.startswith(f"layers.{n_trunk_layers}."):
        return f"heads.layers.0.{rest.partition('.')[2]}"
    return f"heads.{name}" if module in ("norm", "output") else f"trunk.{name}"


def meta_params(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of params.json, with exactly the keys of Meta's release."""
    values = dataclasses.asdict(config)
    values |= {"n_kv_heads": config.kv_heads, "ffn_dim_multiplier": config.ffn_dim_multiplier or 1.0}
    return {key: values[key] for key in _PARAMS_KEYS}


def read_meta_params(ckpt_dir: Path) -> ModelConfig:
    """Return the architecture that `ckpt_dir/params.json` describes; needs no torch.

    Raises:
        UserError: the file is missing or no such description.
    """
    path = ckpt_dir / PARAMS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{ckpt_dir} has no {PARAMS}; give a folder that `pipeline.convert --to meta` wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object, not a {type(values).__name__}")
    unknown = [f"unknown key {key!r}" for key in values if key not in _PARAMS_KEYS]
    missing = [f"missing key {key!r}" for key in ("dim", "n_layers", "n_heads", "vocab_size") if key not in values]
    raise_if_any(unknown + missing, heading=str(path))
    config = model_from_dict({"n_future_tokens": 1, **values}, source=str(path))  # 1 is Meta's default, not ours
    raise_if_any(model_problems(config), heading=str(path))
    return config


def write_meta(weights: Mapping[str, Tensor], config: ModelConfig, folder: Path) -> None:
    """Write `weights` (by our names) and params.json into an existing folder."""
    import torch

    renamed = {meta_name(name, n_trunk_layers=config.n_trunk_layers): weight for name, weight in weights.items()}
    raise_if_any(weight_problems(renamed, config), heading="the checkpoint's weights are not those of its config")
    with written_whole(folder / WEIGHTS) as partial:
        torch.save(renamed, partial)
    write_json(folder / PARAMS, meta_params(config))


WRITERS: dict[str, Callable[[Mapping[str, Tensor], ModelConfig, Path], None]] = {"meta": write_meta}
"""What `--to` may name: each writes weights and their config into an empty folder."""


def load_meta_model(ckpt_dir: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> MultiTokenModel:
    """Return the model of a Meta folder, for decoding, with `dtype` or that of the file.

    Raises:
        UserError: a file is missing or unreadable, or weights are missing, unexpected or of another shape.
    """
    import torch

    from pipeline.model import MultiTokenModel

    config = read_meta_params(ckpt_dir)
    paths = [ckpt_dir / name for name in _WEIGHTS_NAMES if (ckpt_dir / name).is_file()]
    if not paths:
        raise UserError(f"{ckpt_dir} has no {' or '.join(_WEIGHTS_NAMES)}")
    try:
        weights = torch.load(paths[0], map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not its own
        raise UserError(f"{paths[0]} is not a file of weights ({' '.join(str(error).split())[:200]})") from error
    weights.pop("rope.freqs", None)  # older Llama files carry the rotary frequencies, which follow from the config
    raise_if_any(weight_problems(weights, config), heading=f"{paths[0]} does not fit {PARAMS}")
    renamed = {own_name(name, n_trunk_layers=config.n_trunk_layers): weight for name, weight in weights.items()}
    with torch.device("meta"):
        model = MultiTokenModel(config)
    model.load_state_dict(renamed, assign=True)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def weight_problems(weights: Mapping[str, Tensor], config: ModelConfig) -> list[str]:
    """Return what keeps weights (by Meta's names) from being the model of `config`, one line each."""
    expected = meta_shapes(config)
    problems = [f"missing key {name!r}" for name in expected if name not in weights]
    problems += [f"unexpected key {name!r}" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        if tuple(weights[name].shape) != expected[name]:
            problems.append(f"{name!r} has shape {tuple(weights[name].shape)}, not {expected[name]}")
    return problems


def meta_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return every weight of the Meta format, by name, with its shape."""
    import torch

    from pipeline.model import MultiTokenModel

    with torch.device("meta"):
        weights = MultiTokenModel(config).state_dict()
    rename = functools.partial(meta_name, n_trunk_layers=config.n_trunk_layers)
    return {rename(name): tuple(weight.shape) for name, weight in weights.items()}


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that `--dtype` names."""
    import torch

    return getattr(torch, DTYPES[name])


def with_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights cast, each with storage of its own (torch.save writes whole storages, shared or not)."""
    from tqdm import tqdm

    bar = tqdm(weights.items(), desc=f"casting to {dtype}", unit="tensor", disable=None)
    cast = {name: weight.detach().to(dtype).contiguous() for name, weight in bar}
    return {name: w if w.untyped_storage().nbytes() == w.nbytes else w.clone() for name, w in cast.items()}


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds anything but an earlier export.

    Raises:
        UserError: it does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(names - {WEIGHTS, PARAMS, TOKENIZER})
    if foreign:
        raise UserError(f"--output {folder} holds {foreign[0]!r}, which is no export; give a new or empty folder")


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success it takes its place, whole, else it is removed.

    Raises:
        UserError: no folder can be made there.
    """
    folder = folder.resolve()
    partial, former = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror})") from error
    try:
        yield partial
        if folder.exists():
            folder.replace(former)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not folder.exists():
            former.replace(folder)
        shutil.rmtree(former, ignore_errors=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    input_help = "a run directory (its newest whole checkpoint is taken) or one checkpoint folder"
    parser.add_argument("--input", required=True, type=Path, metavar="RUN_OR_DIR", help=input_help)
    parser.add_argument("--to", required=True, choices=list(WRITERS), help="the format to write")
    output_help = "folder to write; an earlier export there is replaced as a whole"
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=output_help)
    dtype_help = "precision of the weights written (default: %(default)s, as Meta's release)"
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help=dtype_help)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="pipeline.convert")
