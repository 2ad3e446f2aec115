"""Tiny models, and independent references for the model: logits of whole sequences, and transformers' Llama."""

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.model import ModelConfig
from pipeline.model.formulas import Share
from pipeline.model.layers import training_rotary
from pipeline.model.network import MultiTokenModel, initialise

if TYPE_CHECKING:  # takes seconds to import
    from transformers import LlamaForCausalLM


# Every kind of heads. Linear heads take no layer from the trunk, so they have no variant with the longer trunk.
KINDS_OF_HEADS: list[dict[str, Any]] = [
    {"head_order": order, "head_type": kind, "replicated_unembedding": replicated, "shorten_trunk": shorten}
    for order, kind, replicated, shorten in itertools.product(
        ("parallel", "causal", "anticausal"), ("transformer", "linear"), (False, True), (True, False)
    )
    if shorten or kind == "transformer"
]
every_kind_of_heads = pytest.mark.parametrize(
    "heads", KINDS_OF_HEADS, ids=lambda heads: "-".join(map(str, heads.values()))
)


def tiny_config(
    *, n_future_tokens: int = 4, n_kv_heads: int = 2, vocab_size: int = 97, n_layers: int = 6, **heads: Any
) -> ModelConfig:
    """Return the config of a model of width 32; `heads` are further fields."""
    return ModelConfig(
        dim=32, n_layers=n_layers, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=vocab_size,
        n_future_tokens=n_future_tokens, multiple_of=16, **heads,
    )  # fmt: skip


def tiny_model(*, seed: int = 1, **fields: Any) -> MultiTokenModel:
    """Return a random model of width 32, whose logits differ enough that greedy decoding has no ties."""
    model = MultiTokenModel(tiny_config(**fields))
    initialise(model, seed=seed)
    return model.eval()


def every_cut(model: ModelConfig, n_stages: int) -> list[list[Share]]:
    """Return all ways to split the layers, in order of computation, into stages; only the last stage may be empty."""
    chain = list(range(model.n_future_tokens))[:: -1 if model.head_order == "anticausal" else 1]
    n_trunk, n_layers = model.n_trunk_layers, model.n_trunk_layers + len(chain)
    return [
        [
            Share(
                embedding=index == 0,
                trunk_layers=range(min(start, n_trunk), min(stop, n_trunk)),
                heads=tuple(chain[layer - n_trunk] for layer in range(start, stop) if layer >= n_trunk),
                unembedding=index == n_stages - 1,
            )
            for index, (start, stop) in enumerate(itertools.pairwise([0, *inner, n_layers]))
        ]
        for inner in itertools.combinations(range(1, n_layers + 1), n_stages - 1)
    ]


def head_outputs(model: MultiTokenModel, tokens_BT: Tensor) -> list[Tensor]:
    """Return each head's output before the norm, head 0 first, written as in the paper's appendix B."""
    z_BTD, layers, last = model.trunk(tokens_BT), model.heads.layers, model.config.n_future_tokens - 1
    rotary = training_rotary(tokens_BT.shape[1], model.config, device=tokens_BT.device)
    if model.config.head_order == "parallel":
        return [layer(z_BTD, rotary) for layer in layers]
    outputs = [z_BTD] * (last + 1)
    if model.config.head_order == "causal":
        for head in range(last + 1):
            outputs[head] = layers[head](z_BTD if head == 0 else outputs[head - 1], rotary)
    else:
        for head in range(last, -1, -1):
            outputs[head] = layers[head](z_BTD if head == last else outputs[head + 1], rotary)
    return outputs


def all_logits(model: MultiTokenModel, tokens_BT: Tensor) -> Tensor:
    """Return every head's logits (B, T, N, V) for whole sequences."""
    heads, outputs = model.heads, head_outputs(model, tokens_BT)
    matrices = [heads.output, *heads.extra_outputs]
    if not model.config.replicated_unembedding:
        matrices *= len(outputs)
    logits = [matrix(heads.norm(output)) for matrix, output in zip(matrices, outputs, strict=True)]
    return torch.stack(logits, dim=2)


def plain_losses(model: MultiTokenModel, tokens_BT: Tensor, targets_BTN: Tensor) -> Tensor:
    """Return the per-head losses (N,), fp32 or more, with torch's cross-entropy on all logits at once: O(nV) memory."""
    logits_BTNV = all_logits(model, tokens_BT)
    logits_BTNV = logits_BTNV.to(torch.promote_types(logits_BTNV.dtype, torch.float32))
    losses = [
        F.cross_entropy(logits_BTNV[:, :, head].mT, targets_BTN[..., head]) for head in range(logits_BTNV.shape[2])
    ]
    return torch.stack(losses)


@torch.no_grad()
def naive_greedy(model: MultiTokenModel, prompt: list[int], *, n_tokens: int) -> list[int]:
    """Return the next `n_tokens` ids by greedy decoding, running the model on the whole prefix for each."""
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(int(all_logits(model, torch.tensor([tokens]))[0, -1, 0].argmax()))
    return tokens[len(prompt) :]


def as_transformers_llama(model: MultiTokenModel) -> "LlamaForCausalLM":
    """Return trunk and next-token head as transformers' Llama, with the rotary pairs rearranged as halves."""
    from transformers.utils import import_utils

    # torchvision's wheel does not import with a CPU build of torch, and transformers' Llama would import it.
    import_utils._torchvision_available = False
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_trunk_layers + 1, num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads, rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta,
            tie_word_embeddings=False, attn_implementation="eager",
        )
    ).eval()  # fmt: skip

    def in_halves(weight: Tensor, n_heads: int) -> Tensor:
        return weight.view(n_heads, -1, 2, config.dim).transpose(1, 2).reshape(-1, config.dim)

    weights = {
        "model.embed_tokens.weight": model.trunk.tok_embeddings.weight,
        "model.norm.weight": model.heads.norm.weight,
        "lm_head.weight": model.heads.output.weight,
    }
    for index, layer in enumerate([*model.trunk.layers, model.heads.layers[0]]):
        attention, feed_forward = layer.attention, layer.feed_forward
        own = {
            "self_attn.q_proj": in_halves(attention.wq.weight, config.n_heads),
            "self_attn.k_proj": in_halves(attention.wk.weight, config.kv_heads),
            "self_attn.v_proj": attention.wv.weight,
            "self_attn.o_proj": attention.wo.weight,
            "mlp.gate_proj": feed_forward.w1.weight,
            "mlp.down_proj": feed_forward.w2.weight,
            "mlp.up_proj": feed_forward.w3.weight,
            "input_layernorm": layer.attention_norm.weight,
            "post_attention_layernorm": layer.ffn_norm.weight,
        }
        weights |= {f"model.layers.{index}.{name}.weight": weight for name, weight in own.items()}
    llama.load_state_dict(weights, strict=True)
    return llama
