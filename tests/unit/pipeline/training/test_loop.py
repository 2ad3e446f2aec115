"""A start that has to catch up on a validation."""

from pathlib import Path

from pipeline.config.schema import Config, TrainConfig
from pipeline.runtime.world import World
from pipeline.training.loop import owes_validation
from pipeline.weights.checkpoint.folder import Checkpoint


def test_a_run_without_validations_owes_none() -> None:
    """Even if a stop request had prevented one, and the run resumes with train.eval_every_steps=0."""
    found = Checkpoint(path=Path("step_00000007"), state={"step": 7, "validation_is_due": True})
    world = World(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert not owes_validation(found, Config(train=TrainConfig(eval_every_steps=0)), world=world)
