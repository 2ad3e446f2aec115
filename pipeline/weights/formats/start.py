"""The weights that a fresh run starts from (`model.init_from`), which may have more heads than the run, or fewer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import UserError, raise_if_any
from common.tokenizers import load_tokenizer
from common.wording import counted
from pipeline.config.model import ModelConfig
from pipeline.weights.formats.detect import format_of
from pipeline.weights.formats.stored_model import StoredModel
from pipeline.weights.formats.values import Conversion

if TYPE_CHECKING:
    import torch

_SHARED = ("dim", "n_heads", "kv_heads", "head_dim", "ffn_dim", "vocab_size", "norm_eps", "rope_theta", "head_type")


def starting_weights(config: ModelConfig, *, tokenizer_sha256: str) -> StoredModel:
    """Return the model whose weights a fresh run starts from.

    Args:
        config: the run's model, with `init_from` set.
        tokenizer_sha256: hash of the tokenizer of the run's shards; '' for bytes.

    Raises:
        UserError: `model.init_from` is not a model, or its architecture or tokenizer does not fit the run.
    """
    assert config.init_from is not None
    path = Path(config.init_from)
    stored = format_of(path).open(path)
    check_start(stored, config)
    if stored.tokenizer is not None and load_tokenizer(stored.tokenizer).sha256 != tokenizer_sha256:
        raise UserError(
            f"model.init_from={path} was trained with {stored.tokenizer}, which is not the tokenizer of data.shards;"
            " write the shards with that tokenizer"
        )
    return stored


def check_start(stored: StoredModel, config: ModelConfig) -> None:
    """Check that a run can start from these weights; the number of heads may differ.

    Raises:
        UserError: the architectures differ in more than the number of heads; lists every difference.
    """
    theirs = stored.config
    problems = [
        f"its {field} is {getattr(theirs, field)}, and this run's is {getattr(config, field)}"
        for field in _SHARED
        if getattr(theirs, field) != getattr(config, field)
    ]
    several = min(theirs.n_future_tokens, config.n_future_tokens) > 1
    for field in ("head_order", "replicated_unembedding"):
        if several and getattr(theirs, field) != getattr(config, field):
            problems.append(f"its {field} is {getattr(theirs, field)}, and this run's is {getattr(config, field)}")
    if theirs.n_trunk_layers != config.n_trunk_layers:
        n_layers = config.n_layers + theirs.n_trunk_layers - config.n_trunk_layers
        problems.append(
            f"its trunk has {counted(theirs.n_trunk_layers, 'layer')}, and this run's {config.n_trunk_layers}; heads"
            f" are counted in n_layers: set model.size=null model.dim={theirs.dim} model.n_heads={theirs.n_heads}"
            f" model.n_layers={n_layers}"
        )
    raise_if_any(problems, heading=f"model.init_from={stored.path} does not fit")


def fill(model: torch.nn.Module, stored: StoredModel, *, new_heads: str) -> None:
    """Copy the stored weights into a model, which may have more heads or fewer.

    Args:
        model: the whole model, or a pipeline stage with some of its weights; named as in `pipeline.model.network`.
        stored: fits the model; see `check_start`.
        new_heads: "copy" starts additional heads as copies of the stored next-token head; "fresh" leaves them as they
            were initialised.

    Raises:
        UserError: a value is not finite.
    """
    import torch

    conversion = Conversion()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            origin = _origin(name, n_heads=stored.config.n_future_tokens, new_heads=new_heads)
            if origin is not None:
                weight.copy_(conversion.converted(stored.read(origin), name=origin))
    conversion.finish(heading=f"model.init_from={stored.path} cannot be used")


def _origin(name: str, *, n_heads: int, new_heads: str) -> str | None:
    """Return which weight of a stored model with `n_heads` heads to copy into the weight `name`, or None for none."""
    kind, _, rest = name.removeprefix("heads.").partition(".")
    if name.startswith("trunk.") or kind not in ("layers", "extra_outputs"):
        return name
    index, _, rest = rest.partition(".")
    head = int(index) + (kind == "extra_outputs")  # extra_outputs.0 is the second head's unembedding
    if head < n_heads:
        return name
    if new_heads == "fresh":
        return None
    return f"heads.layers.0.{rest}" if kind == "layers" else f"heads.output.{rest}"
