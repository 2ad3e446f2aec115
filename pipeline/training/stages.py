"""One pipeline stage as a module, and the pipeline of them that DeepSpeed runs. `balance.py` says who holds what.

A stage is the whole model with only its share of the layers, so its weights bear the names that they have in the
whole. Stages hand on two tensors:

    hidden_PBTD   z, and behind it the outputs of the heads that earlier stages hold; stacked into one tensor, since
                  DeepSpeed calls backward once for each that wants a gradient, and ZeRO-1 survives only one
    targets_BTN   so that the last stage's targets are those of the tokens that the first stage read, whatever the data
                  loader gives to the last; 4 n / D of the hidden state's bytes

The last stage returns the loss. It must come out of the module: DeepSpeed prepares its gradient buffers when backward
reaches the module's output, and what a loss function behind the module had already accumulated would be cleared.
"""

from typing import Any

from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.model.formulas import Share
from pipeline.model.network import MultiTokenModel


class StageModule(MultiTokenModel):
    """One stage's share of the model. The last stage collects the per-head losses (N,) of micro batches in `losses`."""

    def __init__(self, config: ModelConfig, share: Share, *, activation_checkpointing: bool) -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing, share=share)
        self.share = share
        self.losses: list[Tensor] = []

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Any:  # type: ignore[override]
        """Run this stage on (token ids (B, T), targets_BTN) or on what the stage before handed on.

        Returns (hidden_PBTD, targets_BTN), or on the last stage the summed loss ().
        """
        hidden, targets_BTN = inputs
        share = self.share
        if share.embedding or share.trunk_layers:
            hidden = self.trunk(hidden if share.embedding else hidden[0]).unsqueeze(0)
        if share.unembedding:
            loss, losses_N = self.heads(hidden, targets_BTN)
            self.losses.append(losses_N)
            return loss
        return (self.heads.advance(hidden) if share.heads else hidden), targets_BTN


def pipeline_of(stage: StageModule, *, index: int, n_stages: int, n_replicas: int) -> nn.Module:
    """Return DeepSpeed's pipeline around this rank's stage; every rank must call it, with its own.

    The ranks of one replica are consecutive, because mosaicml-streaming deals samples that way; in DeepSpeed's default
    grid they are not.
    """
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.pipe.topology import ProcessTopology

    topology = ProcessTopology(axes=["data", "pipe"], dims=[n_replicas, n_stages])
    # one layer a stage, already cut; those of other ranks are never built or called here
    layers = [stage if position == index else _elsewhere for position in range(n_stages)]
    return PipelineModule(layers=layers, topology=topology, partition_method="uniform")


def _elsewhere(*_: object) -> None:
    raise AssertionError("this pipeline stage belongs to another rank")
