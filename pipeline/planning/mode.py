"""The settings of a DeepSpeed JSON that decide memory and communication: stage, precision, offloading, bucket sizes."""

from dataclasses import dataclass
from typing import Any

from pipeline.config.deepspeed import Precision, precision, zero_stage

# DeepSpeed's defaults for sizes that a JSON may leave out, in elements
ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "sub_group_size": 1_000_000_000,
}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """The settings of a DeepSpeed JSON that decide memory and communication."""

    stage: int  # of ZeRO
    precision: Precision
    offload_optimizer: bool
    offload_weights: bool
    overlap: bool  # communication overlaps the backward
    zero: dict[str, int]  # the sizes in `ZERO_DEFAULTS`, in elements

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight."""
        return 2 if self.precision == "bf16" else 4


def mode_of(deepspeed_config: dict[str, Any]) -> Mode:
    """Return the mode of a filled DeepSpeed JSON."""
    zero = deepspeed_config.get("zero_optimization", {})
    return Mode(
        stage=zero_stage(deepspeed_config),
        precision=precision(deepspeed_config),
        offload_optimizer=zero.get("offload_optimizer", {}).get("device") == "cpu",
        offload_weights=zero.get("offload_param", {}).get("device") == "cpu",
        overlap=zero.get("overlap_comm", False),
        zero={key: int(zero.get(key, default)) for key, default in ZERO_DEFAULTS.items()},
    )
