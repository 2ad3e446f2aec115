"""What a model is: the recipe's model section, the paper's sizes, and what one field demands of another."""

import dataclasses
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from common.command_line import UserError

# Paper, Table S14: name -> (dim, n_layers, n_heads). `n_layers` counts the heads.
MODEL_SIZES = {
    "0.3B": (1024, 18, 16),
    "0.6B": (1280, 27, 20),
    "1.3B": (2048, 24, 16),
    "3B": (2560, 36, 20),
    "7B": (4096, 32, 32),
    "13B": (5120, 40, 40),
}

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Architecture (paper §2 and Table S14; Llama 2's block). Field names are Meta's params.json.

    size: a row of `MODEL_SIZES`, which fills dim, n_layers and n_heads; or None to give those three.
    dim: width of the residual stream.
    n_layers: transformer layers of the n = 1 model, its head included. Heads of more tokens take the place of
        trunk layers, so that every n has as many parameters.
    n_heads: attention heads.  n_kv_heads: key/value heads (grouped queries); None means n_heads.
    vocab_size: tokens; at most 65,536, since shards hold uint16.
    n_future_tokens: prediction heads; 1 is the ordinary next-token baseline.
    head_type: one transformer layer per head, or one matrix (then all n_layers are the trunk's).
    head_order: every head reads the trunk's output (parallel); or the head before it, from the nearest token to the
        furthest (causal) or back (anticausal) (appendix B).
    replicated_unembedding: an unembedding of its own for each head, as byte-level models have (Table S13).
    shorten_trunk: false keeps the trunk of n = 1: n - 1 layers more in all ("+layers" of Tables S4 and S6).
    multiple_of, ffn_dim_multiplier: Llama's rule for the feed-forward width (see `ffn_dim`).
    norm_eps: epsilon of RMSNorm.  rope_theta: base of the rotary frequencies.
    init_from: weights to start from instead of random ones: a run, a checkpoint or an export with the same trunk. It
        may have fewer heads (to finetune a baseline, appendix D) or more, which are dropped (§3.6).
    new_heads: how heads begin that init_from lacks: as copies of its next-token head, or fresh, which is random.
    """

    size: Literal["0.3B", "0.6B", "1.3B", "3B", "7B", "13B"] | None = None
    dim: int = Field(default=0, ge=0)
    n_layers: int = Field(default=0, ge=0)
    n_heads: int = Field(default=0, ge=0)
    n_kv_heads: int | None = Field(default=None, gt=0)
    vocab_size: int = Field(default=32_000, gt=0, le=65_536)
    n_future_tokens: int = Field(default=4, gt=0)
    head_type: Literal["transformer", "linear"] = "transformer"
    head_order: Literal["parallel", "causal", "anticausal"] = "parallel"
    replicated_unembedding: bool = False
    shorten_trunk: bool = True
    multiple_of: int = Field(default=256, gt=0)
    ffn_dim_multiplier: float | None = Field(default=None, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    init_from: str | None = None
    new_heads: Literal["copy", "fresh"] = "copy"

    @property
    def n_trunk_layers(self) -> int:
        """Transformer layers that all heads share."""
        if self.head_type == "linear":
            return self.n_layers
        return self.n_layers - (self.n_future_tokens if self.shorten_trunk else 1)

    @property
    def n_transformer_layers(self) -> int:
        """Transformer layers of trunk and heads together."""
        return self.n_trunk_layers + (self.n_future_tokens if self.head_type == "transformer" else 0)

    @property
    def n_unembeddings(self) -> int:
        """Unembedding matrices: one for all heads, or one for each."""
        return self.n_future_tokens if self.replicated_unembedding else 1

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads, the default resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of SwiGLU's hidden layer: 8/3 dim, scaled, rounded up to `multiple_of` (Llama 2's rule)."""
        hidden = int((self.ffn_dim_multiplier or 1.0) * int(8 * self.dim / 3))
        return self.multiple_of * -(-hidden // self.multiple_of)


def resolve_model(model: ModelConfig) -> ModelConfig:
    """Return `model` with `size` expanded into dim, n_layers and n_heads."""
    if model.size is None:
        return model
    dim, n_layers, n_heads = MODEL_SIZES[model.size]
    return dataclasses.replace(model, dim=dim, n_layers=n_layers, n_heads=n_heads)


def max_stages(model: ModelConfig) -> int:
    """Return the largest number of pipeline stages: one layer each, and a last one of norm and unembedding alone."""
    return model.n_trunk_layers + model.n_future_tokens + 1


def model_from_dict(values: dict[str, Any], *, source: str = "model") -> ModelConfig:
    """Return the architecture that plain values describe, such as the model section of a saved config.

    Raises:
        UserError: a value is wrong; the message begins with `source`.
    """
    try:
        return resolve_model(TypeAdapter(ModelConfig).validate_python(values))
    except ValidationError as error:
        problems = [f"{details['loc'][-1]}={details['input']!r}: {details['msg']}" for details in error.errors()]
        raise UserError(f"{source}: {'; '.join(problems)}") from error


def model_problems(model: ModelConfig) -> list[str]:
    """Return what is impossible about a resolved architecture, one line each."""
    if 0 in (model.dim, model.n_layers, model.n_heads):
        return ["model: give model.size, or all of model.dim, model.n_layers and model.n_heads"]
    problems = []
    if model.dim % (2 * model.n_heads):
        problems.append(f"model.dim={model.dim} over model.n_heads={model.n_heads} must be an even head width")
    if model.n_heads % model.kv_heads:
        problems.append(f"model.n_heads={model.n_heads} must be a multiple of model.n_kv_heads={model.kv_heads}")
    if model.n_trunk_layers < 0:
        problems.append(
            f"model.n_future_tokens={model.n_future_tokens} heads need as many layers, but model.n_layers="
            f"{model.n_layers} (heads are counted in it)"
        )
    if model.head_type == "linear" and not model.shorten_trunk:
        problems.append("model.shorten_trunk=false means nothing with model.head_type=linear, which shortens no trunk")
    return problems
