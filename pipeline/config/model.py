"""The model section of a recipe: its fields, the sizes of the paper, and checks between the fields."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from common.command_line import UserError
from pipeline.config.values import Number, PathText, Whole, declarations, wrong

# Paper, Table S14: name -> (dim, n_layers, n_heads). `n_layers` counts the heads.
MODEL_SIZES = {
    "0.3B": (1024, 18, 16),
    "0.6B": (1280, 27, 20),
    "1.3B": (2048, 24, 16),
    "3B": (2560, 36, 20),
    "7B": (4096, 32, 32),
    "13B": (5120, 40, 40),
}
if TYPE_CHECKING:
    ModelSize = str
else:  # pydantic checks the names at run time; mypy cannot read a Literal that is made from a table
    ModelSize = Literal[tuple(MODEL_SIZES)]

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Architecture: the paper's section 2 and Table S14 on Llama 2's transformer block. Field names are Meta's
    params.json."""

    size: ModelSize | None = None
    """A size of the paper's Table S14, which sets dim, n_layers and n_heads; null to set those three yourself."""
    dim: Whole = Field(default=0, ge=0, le=2**20)
    """Width of the residual stream. Needed, with n_layers and n_heads, if there is no size."""
    n_layers: Whole = Field(default=0, ge=0, le=10_000)
    """Transformer layers of the n = 1 model, including its head. Each further head replaces a trunk layer, so that
    models have the same number of parameters for every n."""
    n_heads: Whole = Field(default=0, ge=0, le=65_536)
    """Attention heads."""
    n_kv_heads: Whole | None = Field(default=None, ge=1, le=65_536)
    """Key/value heads (grouped-query attention); null means n_heads."""
    vocab_size: Whole = Field(default=32_000, ge=1, le=65_536)
    """Tokens in the vocabulary; at most 65,536, because shards hold uint16."""
    n_future_tokens: Whole = Field(default=4, ge=1, le=1024)
    """Prediction heads (the paper's n); 1 is the next-token baseline."""
    head_type: Literal["transformer", "linear"] = "transformer"
    """Each head is a transformer layer, or a single matrix (then all n_layers belong to the trunk; the paper's
    appendix B)."""
    head_order: Literal["parallel", "causal", "anticausal"] = "parallel"
    """Input of the heads: the trunk's output ("parallel"), the output of the head for the token before ("causal"), or
    that of the head for the token after ("anticausal"); see the paper's appendix B."""
    replicated_unembedding: bool = False
    """True gives each head its own unembedding, as in the paper's byte-level models (Table S13)."""
    shorten_trunk: bool = True
    """False keeps the trunk of n = 1, so that the model has n - 1 layers more ("+layers" in Tables S4 and S6)."""
    multiple_of: Whole = Field(default=256, ge=1, le=2**20)
    """The feed-forward width, 8/3 of dim, is rounded up to a multiple of this."""
    ffn_dim_multiplier: Number | None = Field(default=None, gt=0, le=1000)
    """Factor on the feed-forward width before it is rounded up; null means 1."""
    norm_eps: Number = Field(default=1e-5, gt=0, le=1)
    """Epsilon of RMSNorm."""
    rope_theta: Number = Field(default=10_000.0, ge=1, le=1e12)
    """Base of the rotary frequencies."""
    init_from: PathText | None = None
    """Weights to start from, instead of random ones: a run, a checkpoint or an export with the same trunk. It may have
    fewer heads (to finetune a baseline, the paper's appendix D) or more heads, which are dropped (its section 3.6)."""
    new_heads: Literal["copy", "fresh"] = "copy"
    """Initial weights of heads that init_from does not have: copies of its next-token head, or fresh random weights."""

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
        """Unembedding matrices: one that all heads share, or one for each head."""
        return self.n_future_tokens if self.replicated_unembedding else 1

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads, with the default resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Feed-forward width (Llama 2's rule): 8/3 dim x ffn_dim_multiplier, rounded up to a multiple_of."""
        hidden = int((self.ffn_dim_multiplier or 1.0) * int(8 * self.dim / 3))
        return self.multiple_of * -(-hidden // self.multiple_of)


def resolve_model(model: ModelConfig) -> ModelConfig:
    """Return `model` with dim, n_layers and n_heads set from its `size`, if it has one."""
    if model.size is None:
        return model
    dim, n_layers, n_heads = MODEL_SIZES[model.size]
    return dataclasses.replace(model, dim=dim, n_layers=n_layers, n_heads=n_heads)


def max_stages(model: ModelConfig) -> int:
    """Return the largest number of pipeline stages: one layer each, and a last one of norm and unembedding alone."""
    return model.n_trunk_layers + model.n_future_tokens + 1


def model_from_dict(values: dict[str, Any], *, source: str = "model") -> ModelConfig:
    """Return the `ModelConfig` of plain values, such as the model section of a saved config.

    Raises:
        UserError: a value is wrong; the message begins with `source` and names each of them.
    """
    try:
        return resolve_model(TypeAdapter(ModelConfig).validate_python(values))
    except ValidationError as error:
        known = declarations(ModelConfig)
        bad = dict.fromkeys(str(details["loc"][0]) for details in error.errors())
        problems = [wrong(name, values[name], known[name]) if name in known else f"unknown key {name}" for name in bad]
        raise UserError(f"{source}: {'; '.join(problems)}") from error


def model_problems(model: ModelConfig) -> list[str]:
    """Return why a resolved architecture is impossible, one line each."""
    if 0 in (model.dim, model.n_layers, model.n_heads):
        return ["model: give model.size, or all of model.dim, model.n_layers and model.n_heads"]
    problems = []
    if model.dim % (2 * model.n_heads):
        problems.append(
            f"model.dim={model.dim} must be a multiple of 2 x model.n_heads={model.n_heads}: heads need an even width"
        )
    if model.n_heads % model.kv_heads:
        problems.append(f"model.n_heads={model.n_heads} must be a multiple of model.n_kv_heads={model.kv_heads}")
    if model.n_trunk_layers < 0:
        problems.append(
            f"model.n_future_tokens={model.n_future_tokens} needs a layer for each head, but model.n_layers="
            f"{model.n_layers} (heads are counted in it)"
        )
    if model.head_type == "linear" and not model.shorten_trunk:
        problems.append(
            "model.shorten_trunk=false has no effect with model.head_type=linear, which never shortens the trunk; leave"
            " it out"
        )
    return problems
