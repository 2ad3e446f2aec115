"""Decoding: a static key/value cache, and self-speculation with the model's own heads.

One loop serves both ways of decoding (paper §2 and appendix A; blockwise parallel decoding, Stern et al. 2018).
Each step sends one block through the trunk: the newest token, not yet cached, and k - 1 drafts for the tokens after it.

    block        newest   draft 1  draft 2  draft 3           k = 4 heads used
    head 0       checks 1 checks 2 checks 3 adds one more     the accepted drafts, then one certain token
    heads 1..3   the outputs at the last accepted position are the next block's drafts

So a step yields 1 to k tokens for one forward, and computes nothing twice; what the caches hold of rejected drafts is
overwritten by the next block, which begins there. k = 1 drafts nothing: that is autoregressive decoding. The prompt is
a block without drafts. Every sequence advances at its own pace; finished ones leave the batch.

Greedy decoding is the temperature 0 of the same acceptance rule (`sampling.py`). Low-precision models may resolve
near-ties differently in blocks of different length.

Shape suffixes as in `model.py`; X is B x T flattened.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.model import MultiTokenModel, rotary_factors
from pipeline.sampling import GREEDY, Sampling, accept, probabilities, sample


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What `decode` made of a batch of prompts.

    token_ids: generated ids per sequence; the last is EOS where that ended it.
    forwards: forwards of the trunk per sequence, the prompt's not counted.
    seconds: wall time of the whole batch, the prompt's forward included.
    """

    token_ids: list[list[int]]
    forwards: list[int]
    seconds: float

    @property
    def tokens_per_forward(self) -> list[float]:
        """Tokens per forward and sequence: 1.0 if autoregressive, at most the number of heads used.

        The prompt's forward counts in neither, nor does the first token, which comes out of it.
        """
        pairs = zip(self.token_ids, self.forwards, strict=True)
        return [(len(ids) - 1) / forwards if forwards else 1.0 for ids, forwards in pairs]

    @property
    def tokens_per_s(self) -> list[float]:
        """Tokens of each sequence over the seconds of its batch."""
        return [len(ids) / self.seconds for ids in self.token_ids]


@dataclass
class _Block:
    """Where the tokens of the current forward lie in the caches; all layers share it."""

    n_rows: int
    n_visible: int  # positions that attention may look at: up to the furthest of the block
    slots_X: Tensor  # int64, row * capacity + position


class LayerCache:
    """Keys and values of one layer, (max batch, capacity, K, E), written at each sequence's own positions."""

    def __init__(self, shape: tuple[int, int, int, int], *, block: _Block, like: Tensor) -> None:
        # zeros, since attention multiplies what it masks by 0, and uninitialised memory may hold NaN
        self._keys_BSKE, self._values_BSKE = like.new_zeros(shape), like.new_zeros(shape)
        self._block = block

    def update(self, key_BKTE: Tensor, value_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the block's keys and values; return those of all visible positions, (B, K, S, E) each."""
        return self._stored(self._keys_BSKE, key_BKTE), self._stored(self._values_BSKE, value_BKTE)

    def keep(self, rows: list[int]) -> None:
        """Move these rows of the batch to its front."""
        for stored_BSKE in (self._keys_BSKE, self._values_BSKE):
            stored_BSKE[: len(rows)] = stored_BSKE[rows]

    def _stored(self, stored_BSKE: Tensor, new_BKTE: Tensor) -> Tensor:
        block = self._block
        stored_BSKE.flatten(0, 1).index_copy_(0, block.slots_X, new_BKTE.transpose(1, 2).flatten(0, 1))
        return stored_BSKE[: block.n_rows, : block.n_visible].transpose(1, 2)


class Decoder:
    """A model and its caches. `forward` is that of Meta's release; `decode` uses its two halves."""

    def __init__(
        self, model: MultiTokenModel, *, max_batch_size: int, max_seq_len: int, n_heads_used: int | None = None
    ) -> None:
        """Allocate caches for the trunk and the first `n_heads_used` heads (default: all).

        max_seq_len: tokens of a sequence, its prompt included. A last block may reach past it: the caches do, too.
        """
        config = model.config
        self.model = model
        self.max_batch_size, self.max_seq_len = max_batch_size, max_seq_len
        self.n_heads_used = n_heads_used or config.n_future_tokens
        self._capacity = max_seq_len + self.n_heads_used - 1
        weight = model.heads.output.weight
        self._positions = torch.arange(self._capacity, device=weight.device)
        self._rotary = rotary_factors(self._positions, head_dim=config.head_dim, theta=config.rope_theta)
        self._block = _Block(n_rows=0, n_visible=0, slots_X=self._positions[:0])
        shape = (max_batch_size, self._capacity, config.kv_heads, config.head_dim)
        n_caches = config.n_trunk_layers + self.n_heads_used
        self._caches = [LayerCache(shape, block=self._block, like=weight) for _ in range(n_caches)]

    @torch.inference_mode()
    def forward(self, tokens_BT: Tensor, start_pos: int | Sequence[int], return_all_heads: bool = False) -> Tensor:
        """Return logits (B, T, N or 1, V), fp32, and cache the tokens; [:, t, i] predicts token t + 1 + i.

        Without `return_all_heads` only the next-token head runs, and the other heads' caches are not filled.

        Args:
            tokens_BT: ids, int64.
            start_pos: position of the first of them, for all sequences or for each.
            return_all_heads: all heads, or the next-token head alone.

        Raises:
            ValueError: the tokens do not fit into the caches.
        """
        return self.unembed(self.hidden(tokens_BT, start_pos, n_heads=self.n_heads_used if return_all_heads else 1))

    __call__ = forward

    @torch.inference_mode()
    def hidden(self, tokens_BT: Tensor, start_pos: int | Sequence[int], *, n_heads: int) -> Tensor:
        """Return the normed outputs (B, T, N, D) of the first `n_heads` heads, and cache the tokens in them."""
        if n_heads > self.n_heads_used:
            raise ValueError(f"{n_heads} heads asked of a decoder with caches for {self.n_heads_used}")
        rotary, mask = self._place(tokens_BT, [start_pos] if isinstance(start_pos, int) else start_pos)
        trunk, heads = self.model.trunk, self.model.heads
        caches = iter(self._caches)
        hidden_BTD = trunk.tok_embeddings(tokens_BT)
        for layer in trunk.layers:
            hidden_BTD = layer(hidden_BTD, rotary, next(caches), mask)
        outputs = [head(hidden_BTD, rotary, next(caches), mask) for head in heads.layers[:n_heads]]
        return heads.norm(torch.stack(outputs, dim=2))

    @torch.inference_mode()
    def unembed(self, hidden_D: Tensor) -> Tensor:
        """Return logits (..., V), fp32, of normed head outputs (..., D)."""
        return self.model.heads.output(hidden_D).float()

    @torch.inference_mode()
    def keep_rows(self, rows: list[int]) -> None:
        """Make these rows of the batch the first ones of the next."""
        for cache in self._caches:
            cache.keep(rows)

    def _place(self, tokens_BT: Tensor, starts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Point the caches to the block; return its rotary factors and mask (None where causal order is enough)."""
        n_rows, n_tokens = tokens_BT.shape
        first, last = min(starts), max(starts)
        n_visible = last + n_tokens
        if n_rows > self.max_batch_size or n_visible > self._capacity:
            raise ValueError(
                f"{n_rows} sequences up to position {n_visible} do not fit into caches for {self.max_batch_size} "
                f"sequences of {self.max_seq_len}"
            )
        positions_BT = torch.tensor(starts, device=tokens_BT.device).unsqueeze(-1) + self._positions[:n_tokens]
        positions_BT = positions_BT.expand(n_rows, n_tokens)
        rows_B1 = torch.arange(n_rows, device=tokens_BT.device).unsqueeze(-1)
        self._block.n_rows, self._block.n_visible = n_rows, n_visible
        self._block.slots_X = (positions_BT + rows_B1 * self._capacity).flatten()
        rotary = self._rotary[positions_BT]
        if first == last and (n_tokens == 1 or first == 0):
            return rotary, None
        visible_BTS = positions_BT.unsqueeze(-1) >= self._positions[:n_visible]
        mask = torch.zeros_like(visible_BTS, dtype=self.model.heads.output.weight.dtype)
        # additive: made once here, where a boolean one is converted anew in every layer
        return rotary, mask.masked_fill_(~visible_BTS, -torch.inf).unsqueeze(1)


@torch.inference_mode()
def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    n_heads_used: int,
    max_gen_len: int,
    eos_id: int,
    sampling: Sampling = GREEDY,
    on_tokens: Callable[[int, list[int]], object] = lambda sequence, token_ids: None,
) -> Generation:
    """Continue a batch of prompts until EOS, `max_gen_len` new tokens, or `decoder.max_seq_len` tokens in all.

    Args:
        decoder: the model, with room for the batch; what its caches held is overwritten.
        prompts: ids per sequence, of any lengths from 1 to max_seq_len - 1.
        n_heads_used: k; 1 decodes autoregressively, more speculate with heads 1 .. k - 1.
        max_gen_len: most tokens to generate per sequence, at least 1.
        eos_id: ends a sequence, and is the last of its tokens.
        sampling: how tokens are drawn.
        on_tokens: called with each sequence's index and its new tokens, as they come.
    """
    started = time.perf_counter()
    sequences = [
        _Sequence(index=index, n_prompt=len(prompt), limit=min(max_gen_len, decoder.max_seq_len - len(prompt)))
        for index, prompt in enumerate(prompts)
    ]
    active = sequences
    block_BTND = _prompt_block(decoder, prompts, n_heads=n_heads_used)
    drafts_BT = block_BTND.new_empty((len(prompts), 0), dtype=torch.int64)
    draft_probs_BTV = block_BTND.new_empty((len(prompts), 0, decoder.model.config.vocab_size), dtype=torch.float32)
    while True:
        target_probs_BTV = probabilities(decoder.unembed(block_BTND[:, :, 0]), sampling)
        uniforms_BT = torch.rand(drafts_BT.shape, device=drafts_BT.device, generator=sampling.generator)
        n_accepted_B, weights_BV = accept(drafts_BT, draft_probs_BTV, target_probs_BTV, uniforms_BT=uniforms_BT)
        certain_B1 = sample(weights_BV, sampling).unsqueeze(-1)
        # the step's only wait for the device
        step = torch.cat((n_accepted_B.unsqueeze(-1), certain_B1, drafts_BT), dim=-1).tolist()
        for sequence, (n_accepted, certain, *drafts) in zip(active, step, strict=True):
            on_tokens(sequence.index, sequence.extend([*drafts[:n_accepted], certain], eos_id=eos_id))

        rows = [row for row, sequence in enumerate(active) if not sequence.is_finished]
        if not rows:
            break
        accepted_BND = block_BTND[torch.arange(len(active), device=n_accepted_B.device), n_accepted_B]
        if len(rows) < len(active):
            active = [active[row] for row in rows]
            accepted_BND, certain_B1 = accepted_BND[rows], certain_B1[rows]
            decoder.keep_rows(rows)
        draft_probs_BTV = probabilities(decoder.unembed(accepted_BND[:, 1:]), sampling)
        drafts_BT = sample(draft_probs_BTV, sampling)
        tokens_BT = torch.cat((certain_B1, drafts_BT), dim=-1)
        block_BTND = decoder.hidden(tokens_BT, [sequence.last_position for sequence in active], n_heads=n_heads_used)
        for sequence in active:
            sequence.forwards += 1
    return Generation(
        token_ids=[sequence.token_ids for sequence in sequences],
        forwards=[sequence.forwards for sequence in sequences],
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Sequence:
    """How far one sequence of a batch is."""

    index: int
    n_prompt: int
    limit: int  # most tokens to generate
    token_ids: list[int] = field(default_factory=list)
    forwards: int = 0
    is_finished: bool = False

    @property
    def last_position(self) -> int:
        """Position of the newest token, which is not yet cached."""
        return self.n_prompt + len(self.token_ids) - 1

    def extend(self, token_ids: list[int], *, eos_id: int) -> list[int]:
        """Append tokens up to EOS or the limit; return those appended."""
        new = token_ids[: self.limit - len(self.token_ids)]
        if eos_id in new:
            new = new[: new.index(eos_id) + 1]
        self.token_ids += new
        self.is_finished = new[-1] == eos_id or len(self.token_ids) == self.limit
        return new


def _prompt_block(decoder: Decoder, prompts: Sequence[Sequence[int]], *, n_heads: int) -> Tensor:
    """Cache the prompts; return the heads' outputs (B, 1, N, D) at each one's last token.

    Shorter prompts are filled up at their end; what the filling caches is overwritten, as rejected drafts are.
    """
    device = decoder.model.heads.output.weight.device
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    tokens_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    hidden_BTND = decoder.hidden(tokens_BT, 0, n_heads=n_heads)
    return hidden_BTND[torch.arange(len(prompts), device=device), lengths_B - 1].unsqueeze(1)
