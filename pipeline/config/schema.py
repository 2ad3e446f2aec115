"""The recipe as dataclasses: one class per section, with each field's meaning and unit below the field.

The model section is in `model.py`. `recipe.py` turns a recipe file into a checked `Config`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.config.model import STRICT, ModelConfig
from pipeline.config.values import Number, PathText, Whole

_MOST_STEPS = 10**12
_MOST_TOKENS = 10**16
_Step = Annotated[Whole, Field(ge=1, le=_MOST_STEPS)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """The run directory, which is dir/name."""

    dir: PathText = "runs"
    """Parent folder of all runs."""
    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$",
        description="a name of 1 to 200 letters, digits, dots, dashes and underscores, which begins with a letter or a"
        " digit",
    )  # fmt: skip
    """The run's own folder in it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The shards, and the order of their windows."""

    shards: PathText = ""
    """Needed. Folder written by `data_prep.write_shards` (the one with metadata.json), or s3://bucket/prefix of its
    copy."""
    cache: PathText = ""
    """With s3://: a folder on each node's own disk. Fetched files stay there."""
    cache_limit_gb: Number = Field(default=0.0, ge=0, le=1e9)
    """With s3://: how much of the train split may lie in data.cache, in 10^9 bytes; the least recently read shards are
    deleted to make room. 0 keeps all. At any time a node reads from num_canonical_nodes x shuffle_block_size / nodes
    windows; if fewer fit, shards are fetched again and again."""
    seq_len: Whole = Field(default=4096, ge=1, le=2**24)
    """Tokens per sequence; must be the same as the shards'."""
    shuffle_seed: Whole = Field(default=1, ge=0, le=2**32 - 1)
    """Seed of the order of the windows. The order also depends on the next three fields."""
    shuffle_algo: Literal["py1e", "py1s", "py1br", "py2s"] = "py1e"
    """Shuffling algorithm of mosaicml-streaming."""
    shuffle_block_size: Whole = Field(default=1 << 18, ge=1, le=2**31)
    """Windows that are shuffled together."""
    num_canonical_nodes: Whole = Field(default=64, ge=1, le=65_536)
    """Partitions of the data in mosaicml-streaming. Fixed, so that the order does not depend on the number of nodes;
    must divide the number of nodes or be a multiple of it."""
    num_workers: Whole = Field(default=2, ge=0, le=128)
    """Data loader processes per rank; 0 loads in the training process."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The number of tokens, and the batches."""

    total_tokens: Whole = Field(default=1, ge=1, le=_MOST_TOKENS)
    """Needed. Tokens of the whole run; rounded up to whole steps."""
    batch_tokens: Whole = Field(default=8 * 2**20, ge=1, le=2**40)
    """Tokens per optimizer step, over all ranks."""
    micro_batch_size: Whole = Field(default=1, ge=1, le=2**20)
    """Sequences per forward on one rank. The number of gradient accumulation steps follows from it."""
    seed: Whole = Field(default=1, ge=0, le=2**63 - 1)
    """Seed of the initial weights."""
    eval_every_steps: Whole = Field(default=500, ge=0, le=_MOST_STEPS)
    """Steps between validations; 0 disables them."""
    eval_tokens: Whole = Field(default=2**20, ge=1, le=_MOST_TOKENS)
    """Most tokens per validation, rounded down to whole micro batches on every rank (at least one)."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward instead of keeping its activations."""
    compile: bool = False
    """Fuse each transformer layer with torch.compile. Takes minutes at the start, and a C++ compiler on CPUs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay (paper, Table S13)."""

    lr: Number = Field(default=3e-4, gt=0, le=100)
    """Peak learning rate."""
    min_lr_ratio: Number = Field(default=0.03, ge=0, le=1)
    """Final learning rate as a fraction of the peak."""
    warmup_steps: Whole = Field(default=2000, ge=0, le=_MOST_STEPS)
    """Steps of linear warm-up."""
    beta1: Number = Field(default=0.9, ge=0, lt=1)
    """Adam's decay rate of the first moment."""
    beta2: Number = Field(default=0.95, ge=0, lt=1)
    """Adam's decay rate of the second moment."""
    eps: Number = Field(default=1e-8, ge=1e-30, le=1)
    """Adam's epsilon; the paper does not give it."""
    weight_decay: Number = Field(default=0.1, ge=0, le=100)
    """Decoupled weight decay; not applied to norms."""
    clip: Number = Field(default=1.0, ge=1e-12, le=1e12)
    """L2 norm to which gradients are clipped."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelConfig:
    """The model's distribution apart from ZeRO, which the DeepSpeed JSON sets. Only one field may be above 1."""

    pipeline_stages: Whole = Field(default=1, ge=1, le=65_536)
    """Consecutive ranks that share the layers of one replica, so that each has about as much to compute."""
    sequence_parallel_size: Whole = Field(default=1, ge=1, le=65_536)
    """Consecutive ranks that share the positions of each sequence, if sequences are too long for one rank (Ulysses)."""
    tensor_parallel_size: Whole = Field(default=1, ge=1, le=65_536)
    """Consecutive ranks that share each layer's matrices (Megatron's split, done by DeepSpeed's AutoTP)."""

    @property
    def ranks_per_replica(self) -> int:
        """Consecutive ranks that together hold one replica of the model, and read data for it."""
        return self.pipeline_stages * self.sequence_parallel_size * self.tensor_parallel_size


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointConfig:
    """When the training state is saved; the run's last step is always saved."""

    every_steps: Whole = Field(default=1000, ge=1, le=_MOST_STEPS)
    """Steps between checkpoints."""
    keep: Whole = Field(default=3, ge=1, le=1_000_000)
    """Number of the newest complete checkpoints that are kept."""
    keep_every_steps: Whole = Field(default=0, ge=0, le=_MOST_STEPS)
    """Also keep checkpoints at multiples of this step; 0 disables."""
    asynchronous: bool = True
    """Go on training while a copy of the state in host memory is written; needs 12 bytes per parameter, spread over
    the ranks of a replica. False waits for the disk."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LogConfig:
    """Reports, and how often they are made."""

    every_steps: Whole = Field(default=10, ge=1, le=_MOST_STEPS)
    """Steps between log lines, TensorBoard points and metrics.jsonl objects."""
    samples: bool = False
    """Record which windows each step read, for `python -m pipeline.audit`; about 10 bytes per window."""
    previews_every_steps: Whole = Field(default=0, ge=0, le=_MOST_STEPS)
    """Steps between previews (docs/monitoring.md): log.prompts with their continuations, and each head's
    prediction at each position, among TensorBoard's texts. 0 disables. Each takes preview_tokens + 1 forwards."""
    prompts: tuple[str, ...] = Field(
        default=("def ", "import "), min_length=1, max_length=100, description="a list of 1 to 100 texts"
    )
    """Texts that previews continue."""
    preview_tokens: Whole = Field(default=16, ge=1, le=2**24)
    """Number of tokens by which previews continue each prompt."""
    grad_norms_every_steps: Whole = Field(default=0, ge=0, le=_MOST_STEPS)
    """Steps between reports of the gradient's L2 norm in each layer and head, with histograms of the norms of its rows.
    0 disables. Each costs about as much communication as one more step of ZeRO-0."""
    wandb: str | None = Field(default=None, min_length=1)
    """Weights & Biases project that also gets the metrics. Needs the package wandb, which requirements.txt omits."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProfileConfig:
    """The steps that torch's profiler records; docs/monitoring.md describes the files that it writes."""

    steps: tuple[_Step, _Step] | None = Field(
        default=None, description="a list of the first and the last step, such as [10, 12], or null"
    )
    """The first and the last step to record, such as [10, 12]; null records none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FaultsConfig:
    """The reactions of a run to faults while nobody is watching; docs/operations.md explains each."""

    bad_shard: Literal["stop", "skip"] = "stop"
    """If a shard is missing or does not match its hash: "stop" ends the run; "skip" replaces its windows with those of
    the next intact shard, and counts them."""
    failed_save: Literal["go_on", "stop"] = "go_on"
    """If a checkpoint cannot be written: "go_on" trains on until the next one; "stop" ends the run."""
    max_skipped_steps: Whole = Field(default=10, ge=0, le=_MOST_STEPS)
    """Steps in a row that may be skipped because their gradients are not finite; one more ends the run."""
    spike: Literal["ignore", "roll_back"] = "ignore"
    """If the loss jumps: "roll_back" goes back to the last checkpoint and leaves out that stretch of the data."""
    spike_deviations: Number = Field(default=10.0, gt=0, le=1e9)
    """A loss jumps if it is this many robust standard deviations above the median of the last faults.spike_window
    losses."""
    spike_window: Whole = Field(default=128, ge=32, le=1_000_000)
    """Steps whose losses a new loss is compared with; at least half of them are needed to compare."""
    max_rollbacks: Whole = Field(default=3, ge=0, le=1_000_000)
    """Rollbacks to the same checkpoint; one more ends the run."""
    hang_timeout_s: Number = Field(default=1800.0, ge=0.1, le=2_592_000)
    """Seconds without progress after which a rank writes a flight record (where it is stuck) and exits."""


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
        """Return the micro batches per rank and optimizer step, for `data_ranks` model replicas."""
        return self.train.batch_tokens // (self.data.seq_len * self.train.micro_batch_size * data_ranks)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return the resolved config as plain values, ready for YAML."""
        return dataclasses.asdict(self)


SECTIONS: dict[str, type] = {field.name: type(field.default) for field in dataclasses.fields(Config)}
"""The dataclass of each section."""
