"""Other implementations of models of the same shape, called like ours: with tokens and targets, returning losses.

- transformers' LlamaForCausalLM, unchanged, with torch's attention; and with liger-kernel's fused kernels on a GPU.
- The n heads of facebookresearch/lingua (apps/mtp, written from its description): one norm, and n linear heads from the
  trunk's output to the vocabulary. Each head is under activation checkpointing together with its loss, so that the
  logits of only one head are alive at a time, and are recomputed in the one backward. The trunk is ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.model import ModelConfig
from pipeline.model.formulas import whole
from pipeline.model.layers import RMSNorm
from pipeline.model.network import Trunk


class Llama(nn.Module):
    """transformers' Llama; only n = 1."""

    def __init__(self, config: ModelConfig, *, kernels: str = "torch", compiled: bool = False) -> None:
        """Build the model with random weights.

        Args:
            config: the shape.
            kernels: "torch", or "liger" for liger-kernel's kernels.
            compiled: whether to compile each layer with torch.compile, as we do ours.
        """
        super().__init__()
        modeling = _modeling()
        assert config.n_future_tokens == 1
        own = modeling.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads, rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta,
            tie_word_embeddings=False, use_cache=False, attn_implementation="sdpa",
        )  # fmt: skip
        self.llama = modeling.LlamaForCausalLM(own)
        self._names = _with_liger(modeling, self.llama) if kernels == "liger" else {}
        for layer in self.llama.model.layers if compiled else ():
            layer.forward = torch.compile(layer.forward, dynamic=False)

    def forward(self, tokens_BT: Tensor, targets_BTN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (), and the same loss detached as that of the only head (1,)."""
        targets_BT = targets_BTN[..., 0]
        with _changed(_modeling(), self._names):
            # with shift_labels, it does not shift the labels itself, and learns from every position, as we do
            loss = self.llama(tokens_BT, labels=targets_BT, shift_labels=targets_BT.contiguous()).loss
        return loss, loss.detach().unsqueeze(0)


class LinguaModel(nn.Module):
    """Our trunk with lingua's n heads, which are unembeddings only, so that the trunk has all the layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.head_type == "linear"
        self.trunk = Trunk(config, whole(config), activation_checkpointing=False)
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.heads = nn.ModuleList(
            nn.Linear(config.dim, config.vocab_size, bias=False) for _ in range(config.n_future_tokens)
        )

    def forward(self, tokens_BT: Tensor, targets_BTN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss () and the detached losses of the heads (N,), in nats per token and at least fp32."""
        normed_BTD = self.norm(self.trunk(tokens_BT))
        losses_N = torch.stack(
            [
                checkpoint(_head_loss, head, normed_BTD, targets_BTN[..., index], use_reentrant=False)
                for index, head in enumerate(self.heads)
            ]
        )
        return losses_N.sum(), losses_N.detach()


def _head_loss(head: nn.Module, normed_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    logits_XV = head(normed_BTD).flatten(0, 1)
    return F.cross_entropy(logits_XV.to(torch.promote_types(logits_XV.dtype, torch.float32)), targets_BT.flatten())


def _modeling() -> ModuleType:
    """Return transformers' Llama module without torchvision, whose wheel may not fit this build of torch."""
    from transformers.utils import import_utils

    import_utils._torchvision_available = False
    from transformers.models.llama import modeling_llama

    return modeling_llama


def _with_liger(modeling: ModuleType, model: nn.Module) -> dict[str, Any]:
    """Give one model liger-kernel's forwards; return the changed names of transformers' module with their new values.

    liger-kernel changes these names for every model. They are restored here, and set only while this model runs.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    before = dict(vars(modeling))
    apply_liger_kernel_to_llama(model=model)
    changed = {name: value for name, value in vars(modeling).items() if before.get(name) is not value}
    vars(modeling).update({name: before[name] for name in changed})
    return changed


@contextmanager
def _changed(module: ModuleType, values: dict[str, Any]) -> Iterator[None]:
    """Set names of a module to other values inside the `with` statement."""
    names = vars(module)
    before = {name: names[name] for name in values}
    names.update(values)
    try:
        yield
    finally:
        names.update(before)
