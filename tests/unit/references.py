"""Independent references for the model: the whole prefix at once without a cache, and transformers' Llama."""

import torch
from torch import Tensor
from transformers.utils import import_utils

from pipeline.config import ModelConfig
from pipeline.model import MultiTokenModel, initialise, training_rotary

# torchvision's wheel does not import beside a CPU build of torch, and transformers' Llama would import it.
import_utils._torchvision_available = False

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402


def tiny_model(
    *, n_future_tokens: int = 4, n_kv_heads: int = 2, vocab_size: int = 97, seed: int = 1, n_layers: int = 6
) -> MultiTokenModel:
    """Return a random model of width 32 with sharp enough logits that greedy choices are no ties."""
    config = ModelConfig(
        dim=32, n_layers=n_layers, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=vocab_size,
        n_future_tokens=n_future_tokens, multiple_of=16,
    )  # fmt: skip
    model = MultiTokenModel(config)
    initialise(model, seed=seed)
    return model.eval()


def all_logits(model: MultiTokenModel, tokens_BT: Tensor) -> Tensor:
    """Return every head's logits (B, T, N, V) of whole sequences, as training computes them."""
    z_BTD = model.trunk(tokens_BT)
    rotary = training_rotary(tokens_BT.shape[1], model.config, device=tokens_BT.device)
    outputs = [model.heads.norm(layer(z_BTD, rotary)) for layer in model.heads.layers]
    return model.heads.output(torch.stack(outputs, dim=2))


@torch.no_grad()
def naive_greedy(model: MultiTokenModel, prompt: list[int], *, n_tokens: int) -> list[int]:
    """Return the next `n_tokens` ids, running the whole model on the whole prefix for each."""
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(int(all_logits(model, torch.tensor([tokens]))[0, -1, 0].argmax()))
    return tokens[len(prompt) :]


def as_transformers_llama(model: MultiTokenModel) -> LlamaForCausalLM:
    """Return trunk and next-token head as transformers' Llama, with the rotary pairs rearranged into halves."""
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
