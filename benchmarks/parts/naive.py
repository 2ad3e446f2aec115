"""The multi-token loss of an ordinary implementation: the logits of all heads, their sum, one backward; O(nV) memory.

An independent reference: it shares the layers with `pipeline.model.network`, and nothing with `pipeline.model.loss`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.formulas import head_inputs
from pipeline.model.layers import run_layer, training_rotary
from pipeline.model.network import MultiTokenModel


class NaiveModel(MultiTokenModel):
    """Our model with the same weights under the same names; autograd keeps every head's logits until the backward."""

    def forward(self, tokens_BT: Tensor, targets_BTN: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the summed loss () and the detached losses of the heads (N,), in nats per token.

        The dtype is fp32, or fp64 if the weights are fp64. `targets_BTN[b, t, i]` is the id of token t + 1 + i.
        """
        z_BTD = self.trunk(tokens_BT)
        rotary = training_rotary(tokens_BT.shape[1], self.config, device=z_BTD.device)
        recompute = self.heads.activation_checkpointing
        outputs: dict[int, Tensor] = {}
        losses: dict[int, Tensor] = {}
        for head, source in head_inputs(self.config).items():
            read_BTD = z_BTD if source is None else outputs[source]
            outputs[head] = run_layer(self.heads.layers[head], read_BTD, rotary, recompute=recompute)
            losses[head] = self._head_loss(head, outputs[head], targets_BTN[..., head])
        losses_N = torch.stack([losses[head] for head in sorted(losses)])
        return losses_N.sum(), losses_N.detach()

    def _head_loss(self, head: int, output_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = self.heads.unembedding(head)(self.heads.norm(output_BTD))
        widened_BTV = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
        return F.cross_entropy(widened_BTV.flatten(0, 1), targets_BT.flatten())
