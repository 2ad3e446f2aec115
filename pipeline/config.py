"""What a run is: one dataclass per recipe section, a unit per field, and what one field demands of another.

`recipe.py` turns a recipe file into a checked `Config`.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
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

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """Where a run lives: `dir/name`.

    dir: parent folder of all runs.
    name: the run's own folder.
    """

    dir: str = "runs"
    name: str = Field(default="run", min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """Which shards, in which order.

    shards: folder written by `data_prep.write_shards` (with metadata.json), or s3://bucket/prefix with a copy of it.
    cache: with s3://, a folder on each node's own disk; what is fetched stays there.
    cache_limit_gb: with s3://, how much of the train split (10^9 bytes) may lie in `cache`, the shards read longest ago
        making way for new ones; 0 keeps all. A node reads from num_canonical_nodes x shuffle_block_size windows, over
        the number of nodes, at a time; with room for less, shards are fetched again and again.
    seq_len: tokens a sequence; must be the shards' own.
    shuffle_seed: seed of the sample order; the order also depends on the next three.
    shuffle_algo: streaming's shuffling algorithm.  shuffle_block_size: samples that are shuffled together.
    num_canonical_nodes: streaming's partitions of the sample space. Fixed, so that the order does not
        depend on the number of machines; must divide or be divided by it.
    num_workers: loader processes per rank; 0 loads in the training process.
    """

    shards: str = ""
    cache: str = ""
    cache_limit_gb: float = Field(default=0.0, ge=0)
    seq_len: int = Field(default=4096, gt=0)
    shuffle_seed: int = Field(default=1, ge=0)
    shuffle_algo: Literal["py1e", "py1s", "py1br", "py2s"] = "py1e"
    shuffle_block_size: int = Field(default=1 << 18, gt=0)
    num_canonical_nodes: int = Field(default=64, gt=0)
    num_workers: int = Field(default=2, ge=0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """How much, in which portions.

    total_tokens: tokens of the whole run, rounded up to whole steps.
    batch_tokens: tokens of one optimizer step over all ranks.
    micro_batch_size: sequences of one forward on one rank; gradient accumulation is derived.
    seed: of the initial weights.
    eval_every_steps: steps between validations; 0 never validates.
    eval_tokens: validation tokens looked at each time (at most; whole micro batches on every rank).
    activation_checkpointing: recompute each layer in the backward instead of keeping its activations.
    compile: let torch.compile fuse each transformer layer (minutes at the start, and a C++ compiler on the CPU).
    """

    total_tokens: int = Field(default=1, gt=0)
    batch_tokens: int = Field(default=8 * 2**20, gt=0)
    micro_batch_size: int = Field(default=1, gt=0)
    seed: int = Field(default=1, ge=0)
    eval_every_steps: int = Field(default=500, ge=0)
    eval_tokens: int = Field(default=2**20, gt=0)
    activation_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay (paper, Table S13).

    lr: peak learning rate.  min_lr_ratio: final over peak.  warmup_steps: steps of linear warm-up.
    beta1, beta2, eps: Adam's (the paper does not print eps).
    weight_decay: decoupled; not applied to norms.  clip: L2 norm to which gradients are clipped.
    """

    lr: float = Field(default=3e-4, gt=0)
    min_lr_ratio: float = Field(default=0.03, ge=0, le=1)
    warmup_steps: int = Field(default=2000, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ParallelConfig:
    """How the model is spread beyond ZeRO, which the DeepSpeed JSON owns.

    pipeline_stages: consecutive ranks that hold one replica of the model, its layers dealt out by `stages.py`;
        1 keeps every layer on every rank.
    sequence_parallel_size: consecutive ranks that share the positions of each sequence, for sequences that are too
        long for one (Ulysses).
    tensor_parallel_size: consecutive ranks that share each layer's matrices (Megatron's way, by DeepSpeed's AutoTP).
        Only one of the three may be above 1.
    """

    pipeline_stages: int = Field(default=1, gt=0)
    sequence_parallel_size: int = Field(default=1, gt=0)
    tensor_parallel_size: int = Field(default=1, gt=0)

    @property
    def ranks_per_replica(self) -> int:
        """Consecutive ranks that together hold, and read samples for, one replica of the model."""
        return self.pipeline_stages * self.sequence_parallel_size * self.tensor_parallel_size


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointConfig:
    """When the training state is saved, besides the run's last step.

    every_steps: steps between checkpoints.  keep: how many of the newest whole ones stay.
    keep_every_steps: those whose step it divides stay as well; 0 keeps no others.
    asynchronous: train on while a copy of the state in the host's memory is written (12 bytes per parameter of room
        over a replica's ranks); false waits for the disk.
    """

    every_steps: int = Field(default=1000, gt=0)
    keep: int = Field(default=3, gt=0)
    keep_every_steps: int = Field(default=0, ge=0)
    asynchronous: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LogConfig:
    """What is reported how often.

    every_steps: steps between log lines, TensorBoard points and metrics.jsonl objects.
    samples: record which samples each step had (`python -m pipeline.audit`); about 10 bytes a sample.
    previews_every_steps: steps between previews (`previews.py`): `prompts` continued, and what each head said at each
        position, among TensorBoard's texts; 0 writes none. Each takes preview_tokens + 1 forwards.
    prompts: what previews continue.  preview_tokens: by how many tokens.
    grad_norms_every_steps: steps between reports of the gradient's L2 norm in each layer and head, and histograms of
        its rows' norms; 0 makes none. Each takes about as much communication as one more step of ZeRO-0.
    wandb: project of Weights & Biases that gets the figures too; needs the package wandb, which is not among ours.
    """

    every_steps: int = Field(default=10, gt=0)
    samples: bool = False
    previews_every_steps: int = Field(default=0, ge=0)
    prompts: tuple[str, ...] = Field(default=("def ", "import "), min_length=1)
    preview_tokens: int = Field(default=16, gt=0)
    grad_norms_every_steps: int = Field(default=0, ge=0)
    wandb: str | None = Field(default=None, min_length=1)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ProfileConfig:
    """Which steps torch's profiler records; docs/monitoring.md says what it leaves.

    steps: the first and the last of them, such as [10, 12]; null records none.
    """

    steps: tuple[PositiveInt, PositiveInt] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FaultsConfig:
    """What a run does about faults that nobody is there to look at; docs/operations.md tells each story.

    bad_shard: a shard is missing, or not as its hash says. "stop" ends the run; "skip" takes the windows of the next
        whole shard in place of its own, and counts them.
    failed_save: a checkpoint cannot be written. "go_on" trains on to the next one; "stop" ends the run.
    max_skipped_steps: this many steps in a row may be skipped because their gradients are not finite; one more ends
        the run.
    spike: the loss jumps. "ignore", or "roll_back" to the last checkpoint and leave that stretch of data out.
    spike_deviations: a jump is this many robust standard deviations above the median of the last `spike_window` steps.
    max_rollbacks: one more rollback to the same checkpoint ends the run.
    hang_timeout_s: seconds without any progress after which a rank writes down where it stands, and exits.
    """

    bad_shard: Literal["stop", "skip"] = "stop"
    failed_save: Literal["go_on", "stop"] = "go_on"
    max_skipped_steps: int = Field(default=10, ge=0)
    spike: Literal["ignore", "roll_back"] = "ignore"
    spike_deviations: float = Field(default=10.0, gt=0)
    spike_window: int = Field(default=128, ge=32)
    max_rollbacks: int = Field(default=3, ge=0)
    hang_timeout_s: float = Field(default=1800.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """A whole run, one section per concern."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()
    faults: FaultsConfig = FaultsConfig()

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return Path(self.run.dir) / self.run.name

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.train.total_tokens // self.train.batch_tokens)

    def accumulation_steps(self, data_ranks: int) -> int:
        """Micro batches per rank and optimizer step, for `data_ranks` model replicas."""
        return self.train.batch_tokens // (self.data.seq_len * self.train.micro_batch_size * data_ranks)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The resolved config as plain values, ready for YAML."""
        return dataclasses.asdict(self)


def resolve_model(model: ModelConfig) -> ModelConfig:
    """Return `model` with `size` expanded into dim, n_layers and n_heads."""
    if model.size is None:
        return model
    dim, n_layers, n_heads = MODEL_SIZES[model.size]
    return dataclasses.replace(model, dim=dim, n_layers=n_layers, n_heads=n_heads)


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
