"""The ways to decode that `benchmarks.decode` compares, and the bytes and bandwidth that bound a step's time."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.inference.decoding.blockwise import Drafter, Generation, decode_blockwise
from pipeline.inference.decoding.decode import Decoder, HeadDrafter
from pipeline.inference.decoding.layer_skip import LayerSkipDrafter
from pipeline.inference.decoding.sampling import Drafts, Sampling
from pipeline.model.network import MultiTokenModel
from pipeline.weights.formats.huggingface.config import hf_config
from pipeline.weights.formats.huggingface.llama import hf_names, next_token_chain, rotary_halves

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

AUTOREGRESSIVE, TRANSFORMERS = "autoregressive", "transformers"
Decoding = Callable[[Sequence[list[int]], int], Generation]
"""Continues each prompt greedily by the given number of tokens."""


class ForcedAcceptance:
    """A drafter whose drafts are accepted at given rates, whatever they are: for realistic times, not for text."""

    def __init__(self, drafter: Drafter, rates: Sequence[float], *, generator: torch.Generator) -> None:
        """Accept draft i at `rates[i]` if those before it are accepted; the last rate holds for all further drafts."""
        self.n_drafts, self.max_seq_len = drafter.n_drafts, drafter.max_seq_len
        self._drafter, self._generator = drafter, generator
        padded = [*rates, *[rates[-1]] * self.n_drafts][: self.n_drafts]
        self._rates_L = torch.tensor(padded, device=generator.device)

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._drafter.read_prompts(prompts)

    def keep_rows(self, rows: list[int]) -> None:
        self._drafter.keep_rows(rows)

    def draft(
        self,
        newest_B1: Tensor,
        n_accepted_B: Tensor,
        starts: Sequence[int],
        sampling: Sampling,
        *,
        uniforms_BL: Tensor,
    ) -> Drafts:
        return self._drafter.draft(newest_B1, n_accepted_B, starts, sampling, uniforms_BL=uniforms_BL)

    def verify(self, block_BT: Tensor, starts: Sequence[int]) -> Tensor:
        logits_BTV = self._drafter.verify(block_BT, starts)
        ids_BL = block_BT[:, 1:]
        uniforms_BL = torch.rand(ids_BL.shape, device=ids_BL.device, generator=self._generator)
        forced_BL = torch.where(uniforms_BL < self._rates_L, 1e9, -1e9)
        logits_BTV[:, :-1].scatter_(-1, ids_BL.unsqueeze(-1), forced_BL.unsqueeze(-1))
        return logits_BTV


def our_decodings(
    model: MultiTokenModel,
    *,
    max_batch_size: int,
    max_seq_len: int,
    exit_layers: Sequence[int],
    draft_lengths: Sequence[int],
    forced_acceptance: Sequence[float] | None,
) -> dict[str, Decoding]:
    """Return the ways to decode with 1 to n heads, and with each exit layer and draft length, by name.

    All share one cache.
    """
    n_heads = model.config.n_future_tokens
    max_drafts = max(n_heads - 1, *draft_lengths)
    decoder = Decoder(model, max_batch_size=max_batch_size, max_seq_len=max_seq_len, max_drafts=max_drafts)
    drafters: dict[str, Drafter] = {AUTOREGRESSIVE: HeadDrafter(decoder, n_heads_used=1)}
    for n_heads_used in range(2, n_heads + 1):
        drafters[f"{n_heads_used} heads"] = HeadDrafter(decoder, n_heads_used=n_heads_used)
    for exit_layer in exit_layers:
        for n_drafts in draft_lengths:
            name = f"LayerSkip, exit {exit_layer}, drafts {n_drafts}"
            drafters[name] = LayerSkipDrafter(decoder, exit_layer=exit_layer, n_drafts=n_drafts)
    if forced_acceptance is not None:
        generator = torch.Generator(model.heads.output.weight.device).manual_seed(1)
        drafters = {
            name: ForcedAcceptance(drafter, forced_acceptance, generator=generator)
            for name, drafter in drafters.items()
        }

    def decoding(drafter: Drafter) -> Decoding:
        return lambda prompts, n_tokens: decode_blockwise(drafter, prompts, max_gen_len=n_tokens, stop_ids=())

    return {name: decoding(drafter) for name, drafter in drafters.items()}


def as_llama(model: MultiTokenModel, *, max_seq_len: int) -> "LlamaForCausalLM":
    """Return the trunk and the next-token head as transformers' Llama.

    It shares the weights, except for query and key matrices, whose rows are permuted for transformers' rotary layout.
    """
    from transformers.utils import import_utils

    import_utils._torchvision_available = False  # its wheel cannot be imported with a CPU build of torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    own = model.state_dict()
    weights = {
        name: rotary_halves(own[ours], head_dim=model.config.head_dim)
        if ours.endswith((".wq.weight", ".wk.weight"))
        else own[ours]
        for ours, name in hf_names(model.config).items()
        if not name.startswith("extra_")
    }
    config = LlamaConfig(**hf_config(model.config), max_position_embeddings=max_seq_len, attn_implementation="sdpa")
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama.load_state_dict(weights, assign=True)
    llama.model.rotary_emb = LlamaRotaryEmbedding(config, device=model.heads.output.weight.device)  # holds no weight
    return llama.eval()


def transformers_decoding(model: MultiTokenModel, *, max_seq_len: int) -> Decoding:
    """Return transformers' greedy `generate` with a cache; shorter prompts are padded on the left."""
    llama, device = as_llama(model, max_seq_len=max_seq_len), model.heads.output.weight.device

    @torch.inference_mode()
    def decoding(prompts: Sequence[list[int]], n_tokens: int) -> Generation:
        started = time.perf_counter()
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        tokens_BT = torch.tensor([[*[0] * n, *prompt] for n, prompt in zip(padding, prompts, strict=True)])
        mask_BT = torch.tensor([[*[0] * n, *[1] * len(prompt)] for n, prompt in zip(padding, prompts, strict=True)])
        output_BT = llama.generate(
            tokens_BT.to(device),
            attention_mask=mask_BT.to(device),
            max_new_tokens=n_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        token_ids = output_BT[:, longest:].tolist()
        return Generation(
            token_ids=token_ids,
            forwards=[n_tokens - 1] * len(prompts),
            accepted=[[] for _ in prompts],
            seconds=time.perf_counter() - started,
        )

    return decoding


def bytes_of_a_step(model: MultiTokenModel, *, batch_size: int, n_cached: int) -> int:
    """Return the bytes that one autoregressive step must read: the weights that it uses, and the cached positions."""
    config = model.config
    chain = next_token_chain(config)
    layers = [*model.trunk.layers, *(model.heads.layers[head] for head in chain), model.heads.norm, model.heads.output]
    weights = sum(weight.nbytes for layer in layers for weight in layer.parameters())
    position = 2 * config.kv_heads * config.head_dim * model.heads.output.weight.element_size()
    n_caches = config.n_trunk_layers + (len(chain) if config.head_type == "transformer" else 0)
    return weights + batch_size * n_cached * n_caches * position


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes together."""
    source = torch.ones(2**30 if device.type != "cpu" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        target[-1].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)
