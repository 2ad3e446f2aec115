"""Speculation with the trunk's first layers as in LayerSkip (Elhoushi et al. 2024), for comparison with the heads.

Drafting runs one token at a time through the first `exit_layer` trunk layers, the next-token head, norm and
unembedding. Verification runs the whole block through the rest of the trunk and the head, using the hidden states and
caches from drafting, so the early layers run only once per token. The head runs twice, and verification overwrites its
cache with values computed from the whole trunk's output.

Shape suffixes as in `pipeline.model.network`; L is the number of drafts in a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.inference.decoding.decode import Decoder
from pipeline.inference.decoding.sampling import Drafts, Sampling, propose


class LayerSkipDrafter:
    """Drafts with the first layers; exact with any model, and fastest with models that were trained for it."""

    def __init__(self, decoder: Decoder, *, exit_layer: int, n_drafts: int) -> None:
        """Draft `n_drafts` tokens with the first `exit_layer` layers of the trunk.

        Raises:
            ValueError: the trunk has too few layers, or the decoder's caches have no room for the drafts.
        """
        n_layers = decoder.model.config.n_trunk_layers
        if not 0 < exit_layer < n_layers:
            raise ValueError(f"exit_layer={exit_layer} must be 1 to {n_layers - 1}, fewer than the trunk's layers")
        if not 0 < n_drafts <= decoder.max_drafts:
            raise ValueError(f"n_drafts={n_drafts} must be 1 to {decoder.max_drafts}, the decoder's max_drafts")
        self.n_drafts, self.max_seq_len = n_drafts, decoder.max_seq_len
        self._decoder, self._exit_layer = decoder, exit_layer
        self._early: list[Tensor] = []  # outputs (B, 1, D) of the early layers for the tokens of the block so far

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._decoder.unembed(self._decoder.read_prompts(prompts, n_heads=1), first_head=0).squeeze(2)

    def keep_rows(self, rows: list[int]) -> None:
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
        self._early = []
        token_B1, drafts = newest_B1, []
        for n_before in range(self.n_drafts):
            self._run_early_layers(token_B1, [start + n_before for start in starts])
            logits_BLV = self._next_token_logits(self._early[-1])
            drafts.append(propose(logits_BLV, sampling, uniforms_BL=uniforms_BL[:, n_before : n_before + 1]))
            token_B1 = drafts[-1].ids_BL
        return Drafts.joined(drafts)

    def verify(self, block_BT: Tensor, starts: Sequence[int]) -> Tensor:
        last = self.n_drafts  # the last token has not run through the early layers yet
        self._run_early_layers(block_BT[:, last:], [start + last for start in starts])
        self._decoder.place(block_BT, starts)
        late = slice(self._exit_layer, None)
        return self._next_token_logits(self._decoder.run_trunk(torch.cat(self._early, dim=1), layers=late))

    def _run_early_layers(self, token_B1: Tensor, positions: Sequence[int]) -> None:
        self._decoder.place(token_B1, positions)
        embedded_B1D = self._decoder.model.trunk.tok_embeddings(token_B1)
        self._early.append(self._decoder.run_trunk(embedded_B1D, layers=slice(self._exit_layer)))

    def _next_token_logits(self, z_BTD: Tensor) -> Tensor:
        return self._decoder.unembed(self._decoder.run_heads(z_BTD, n_heads=1), first_head=0).squeeze(2)
