"""A pipeline stage as a module, and DeepSpeed's pipeline of all stages. `model/partition.py` divides the layers.

A stage is the whole model with only its share of the layers, so its weights have the same names as in the whole model.
Each stage passes two tensors to the next:

    hidden_PBTD   the trunk's output z, then the outputs of the heads on earlier stages. They are stacked into one
                  tensor, because DeepSpeed calls backward once for each tensor that needs a gradient, and ZeRO-1 allows
                  only one backward.
    targets_BTN   the targets of the tokens that the first stage read, so that the last stage uses these, whatever its
                  own data loader yields; 4 n / D of the hidden state's bytes.

The last stage returns the loss. The loss must be the module's output: DeepSpeed prepares its gradient buffers when
backward reaches the module's output, and would clear gradients that a loss function behind it had accumulated before.
"""

from typing import Any

from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.model.formulas import Share
from pipeline.model.network import MultiTokenModel


class StageModule(MultiTokenModel):
    """One stage's share of the model."""

    def __init__(self, config: ModelConfig, share: Share, *, activation_checkpointing: bool) -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing, share=share)
        self.share = share
        self.losses: list[Tensor] = []
        """On the last stage, the losses (N,) of each micro batch since the list was last emptied."""

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Any:  # type: ignore[override]
        """Run this stage on (token ids (B, T), targets_BTN), or on the output of the stage before.

        Returns (hidden_PBTD, targets_BTN); on the last stage, the summed loss ().
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
    """Return DeepSpeed's pipeline around this rank's stage; every rank must call it with its own stage.

    The ranks of a replica are consecutive, because mosaicml-streaming deals the same samples to consecutive ranks. In
    DeepSpeed's default grid they are not.
    """
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.pipe.topology import ProcessTopology

    topology = ProcessTopology(axes=["data", "pipe"], dims=[n_replicas, n_stages])
    # To DeepSpeed, each stage is one layer. It never builds or calls the layers of other ranks here.
    layers = [stage if position == index else _elsewhere for position in range(n_stages)]
    return PipelineModule(layers=layers, topology=topology, partition_method="uniform")


def _elsewhere(*_: object) -> None:
    raise AssertionError("this pipeline stage belongs to another rank")
