"""The sinks of a run. All of them show the same scalars under the same tags (docs/monitoring.md)."""

from pipeline.config.schema import Config
from pipeline.monitoring.sinks.console import Console
from pipeline.monitoring.sinks.metrics_file import MetricsFile
from pipeline.monitoring.sinks.sink import Sink
from pipeline.monitoring.sinks.tensorboard import TensorBoard
from pipeline.monitoring.sinks.wandb import WeightsAndBiases
from pipeline.runtime.world import World


def sinks_for(config: Config, *, world: World, resumed_step: int) -> list[Sink]:
    """Return the sinks of this rank: all of them on rank 0, none elsewhere."""
    if not world.is_main:
        return []
    return [
        Console(total_steps=config.total_steps, resumed_step=resumed_step),
        TensorBoard(config, resumed_step=resumed_step),
        MetricsFile(config.run_dir, resumed_step=resumed_step),
        *([WeightsAndBiases(config)] if config.log.wandb else []),
    ]
