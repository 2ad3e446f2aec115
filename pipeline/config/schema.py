"""What a run is: one dataclass per recipe section (the model's in model_config.py), a unit per field.

`recipe.py` turns a recipe file into a checked `Config`.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from pipeline.config.model import STRICT, ModelConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Where a run lives: `dir/name`.

    dir: parent folder of all runs.
    name: the run's own folder.
    """

    dir: str = "runs"
    name: str = Field(default="run", min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProfileConfig:
    """Which steps torch's profiler records; docs/monitoring.md says what it leaves.

    steps: the first and the last of them, such as [10, 12]; null records none.
    """

    steps: tuple[PositiveInt, PositiveInt] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
