"""A model with its key/value caches, and self-speculative decoding with the model's own heads.

Paper §2 and appendix A. Each block of the loop (`blockwise.py`) runs through the trunk and the k heads in use:

    block        newest   draft 1  draft 2  draft 3           k = 4 heads
    head 0       checks 1 checks 2 checks 3 adds one more     the accepted drafts, then one certain token
    heads 1..3   their outputs at the last accepted position are the next block's drafts

So one forward yields 1 to k tokens, and nothing is computed twice. k = 1 is autoregressive decoding.

Shape suffixes as in `pipeline.model.network`; L is the number of drafts in a block.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from pipeline.inference.decoding.blockwise import Generation, decode_blockwise
from pipeline.inference.decoding.cache import Caches
from pipeline.inference.decoding.sampling import GREEDY, Drafts, Sampling, propose
from pipeline.model.formulas import head_inputs
from pipeline.model.network import MultiTokenModel

ONE_READING_ROWS = 16
"""Up to this many rows, a product with the unembedding matrix costs little more than reading the matrix.

Then the outputs of all heads are unembedded at once, at every position. With more rows, the further heads are
unembedded later, and only at the last accepted position, where the next block's drafts come from.
"""


class Decoder:
    """A model and its caches. `forward` works as in Meta's release; drafters use the other methods."""

    def __init__(
        self,
        model: MultiTokenModel,
        *,
        max_batch_size: int,
        max_seq_len: int,
        n_heads_used: int | None = None,
        max_drafts: int | None = None,
    ) -> None:
        """Allocate caches for the trunk and the first `n_heads_used` heads (default: all).

        Args:
            model: the model.
            max_batch_size: maximum number of sequences.
            max_seq_len: maximum number of tokens of a sequence, including its prompt.
            n_heads_used: number of heads that can be run.
            max_drafts: maximum number of drafts in a block (default: one for each further head); the last drafts may
                reach past max_seq_len.
        """
        config = model.config
        self.model = model
        self.max_batch_size, self.max_seq_len = max_batch_size, max_seq_len
        self.n_heads_used = n_heads_used or config.n_future_tokens
        self.max_drafts = self.n_heads_used - 1 if max_drafts is None else max_drafts
        cached = [f"trunk.{index}" for index in range(config.n_trunk_layers)]
        cached += [f"head.{head}" for head in head_inputs(config, self.n_heads_used)]
        self._caches = Caches(
            cached,
            config,
            max_batch_size=max_batch_size,
            capacity=max_seq_len + self.max_drafts,
            like=model.heads.output.weight,
        )

    @torch.inference_mode()
    def forward(self, tokens_BT: Tensor, start_pos: int | Sequence[int], return_all_heads: bool = False) -> Tensor:
        """Return logits (B, T, N or 1, V), fp32, and cache the tokens; [:, t, i] predicts token t + 1 + i.

        Args:
            tokens_BT: ids, int64.
            start_pos: position of the first token, of all sequences or of each.
            return_all_heads: run all heads; otherwise only the next-token head runs, and the caches of the other heads
                are not filled.

        Raises:
            ValueError: the tokens do not fit into the caches.
        """
        n_heads = self.n_heads_used if return_all_heads else 1
        return self.unembed(self.hidden(tokens_BT, start_pos, n_heads=n_heads), first_head=0)

    __call__ = forward

    @torch.inference_mode()
    def hidden(self, tokens_BT: Tensor, start_pos: int | Sequence[int], *, n_heads: int) -> Tensor:
        """Return the normed outputs (B, T, N, D) of the first `n_heads` heads; cache the tokens in trunk and heads."""
        self.place(tokens_BT, start_pos)
        return self.run_heads(self.run_trunk(self.model.trunk.tok_embeddings(tokens_BT)), n_heads=n_heads)

    @torch.inference_mode()
    def unembed(self, hidden_ND: Tensor, *, first_head: int) -> Tensor:
        """Return the logits (..., N, V), fp32, of normed outputs (..., N, D) of the heads from `first_head` on."""
        heads = self.model.heads
        if not self.model.config.replicated_unembedding:
            # for strided inputs matmul works in batches, and in bf16 on a CPU it copies the matrix for each
            return heads.output(hidden_ND.contiguous()).float()
        logits_NV = hidden_ND.new_empty((*hidden_ND.shape[:-1], self.model.config.vocab_size))
        for index in range(hidden_ND.shape[-2]):
            logits_NV[..., index, :] = heads.unembedding(first_head + index)(hidden_ND[..., index, :])
        return logits_NV.float()

    def place(self, tokens_BT: Tensor, start_pos: int | Sequence[int]) -> None:
        """Set the positions of the tokens that run through layers next; they are cached there."""
        n_rows, n_tokens = tokens_BT.shape
        starts = [start_pos] * n_rows if isinstance(start_pos, int) else start_pos
        self._caches.place(starts, n_tokens=n_tokens)

    def run_trunk(self, hidden_BTD: Tensor, *, layers: slice = slice(None)) -> Tensor:
        """Return the outputs (B, T, D) of these trunk layers for embeddings or for outputs of the layers before."""
        block = self._caches.block
        trunk_layers = list(enumerate(self.model.trunk.layers))
        for index, layer in trunk_layers[layers]:
            hidden_BTD = layer(hidden_BTD, block.rotary, self._caches[f"trunk.{index}"], block.mask)
        return hidden_BTD

    def run_heads(self, z_BTD: Tensor, *, n_heads: int) -> Tensor:
        """Return the normed outputs (B, T, N, D) of the first `n_heads` heads; the input is the trunk's output.

        Raises:
            ValueError: there are caches for fewer heads.
        """
        if n_heads > self.n_heads_used:
            raise ValueError(f"{n_heads} heads asked for, but the decoder has caches for {self.n_heads_used}")
        block, heads = self._caches.block, self.model.heads
        outputs: dict[int, Tensor] = {}
        for head, source in head_inputs(self.model.config, n_heads).items():
            read_BTD = z_BTD if source is None else outputs[source]
            outputs[head] = heads.layers[head](read_BTD, block.rotary, self._caches[f"head.{head}"], block.mask)
        return heads.norm(torch.stack([outputs[head] for head in range(n_heads)], dim=2))

    def read_prompts(self, prompts: Sequence[Sequence[int]], *, n_heads: int) -> Tensor:
        """Cache the prompts; return the heads' normed outputs (B, 1, N, D) at the last token of each.

        Shorter prompts are padded at their end; the cached padding is overwritten later, like rejected drafts.
        """
        device = self.model.heads.output.weight.device
        longest = max(map(len, prompts))
        tokens_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        last_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        hidden_BTND = self.hidden(tokens_BT, 0, n_heads=n_heads)
        return hidden_BTND[torch.arange(len(prompts), device=device), last_B].unsqueeze(1)

    @torch.inference_mode()
    def keep_rows(self, rows: list[int]) -> None:
        """Keep only these rows of the batch, as the first rows of the next batch."""
        self._caches.keep(rows)


class HeadDrafter:
    """Drafts with heads 1 to k - 1, from the trunk's output for the previous block."""

    def __init__(self, decoder: Decoder, *, n_heads_used: int) -> None:
        """Use the first k = `n_heads_used` heads; with k = 1 nothing is drafted."""
        self.n_drafts, self.max_seq_len = n_heads_used - 1, decoder.max_seq_len
        self._decoder = decoder
        # of heads 1 to k - 1 at each token of the last block: logits, or the normed outputs to compute them from
        self._further_BTLX: Tensor
        self._are_logits = False

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._next_token_logits(self._decoder.read_prompts(prompts, n_heads=self.n_drafts + 1))

    def keep_rows(self, rows: list[int]) -> None:
        self._further_BTLX = self._further_BTLX[rows]
        self._decoder.keep_rows(rows)

    def draft(
        self,
        newest_B1: Tensor,
        n_accepted_B: Tensor,
        starts: Sequence[int],
        sampling: Sampling,
        *,
        uniforms_BL: Tensor,
    ) -> Drafts:
        rows_B = torch.arange(len(n_accepted_B), device=n_accepted_B.device)
        accepted_BLX = self._further_BTLX[rows_B, n_accepted_B]
        logits_BLV = accepted_BLX if self._are_logits else self._decoder.unembed(accepted_BLX, first_head=1)
        return propose(logits_BLV, sampling, uniforms_BL=uniforms_BL)

    def verify(self, block_BT: Tensor, starts: Sequence[int]) -> Tensor:
        return self._next_token_logits(self._decoder.hidden(block_BT, starts, n_heads=self.n_drafts + 1))

    def _next_token_logits(self, hidden_BTND: Tensor) -> Tensor:
        self._are_logits = hidden_BTND.shape[:-1].numel() <= ONE_READING_ROWS
        if self._are_logits:
            logits_BTNV = self._decoder.unembed(hidden_BTND, first_head=0)
            self._further_BTLX = logits_BTNV[:, :, 1:]
            return logits_BTNV[:, :, 0]
        self._further_BTLX = hidden_BTND[:, :, 1:]
        return self._decoder.unembed(hidden_BTND[:, :, :1], first_head=0).squeeze(2)


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    n_heads_used: int,
    max_gen_len: int,
    stop_ids: Collection[int],
    sampling: Sampling = GREEDY,
    on_tokens: Callable[[int, list[int]], bool | None] = lambda sequence, token_ids: None,
) -> Generation:
    """Decode with the first `n_heads_used` heads; 1 is autoregressive. See `decode_blockwise` for the rest."""
    return decode_blockwise(
        HeadDrafter(decoder, n_heads_used=n_heads_used),
        prompts,
        max_gen_len=max_gen_len,
        stop_ids=stop_ids,
        sampling=sampling,
        on_tokens=on_tokens,
    )
