"""The multi-token model: a shared trunk, n heads of one transformer layer, one norm, one unembedding.

    tokens_BT -> Trunk -> z_BTD -> head i (one layer) -> norm -> unembedding -> logits of token t + 1 + i

Head 0 is the next-token head. All heads read the same z and share norm and unembedding; embedding and unembedding are
not tied (paper §2, footnote 1). `n_layers` counts the heads, so that models with different n have the same number of
parameters. For the paper's other kinds of heads (appendix B) see `head_inputs`, `LinearHead` and `Heads.unembedding`.

This module is architecture only: distribution is applied from outside. A model may hold only a `Share` of the layers;
they keep the names that they have in the whole model, and the other layers are None.

Shape suffixes: B sequences, T positions, S cached positions, D model width, H query heads,
K key/value heads, E head width, N prediction heads, V vocabulary, P hidden states (z and heads' outputs).
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.model.formulas import Share, head_inputs, whole
from pipeline.model.layers import RMSNorm, TransformerBlock, at_least_fp32, run_layer, training_rotary
from pipeline.model.loss import cross_entropy, sum_of_pieces
from pipeline.runtime.ranges import profiler_range


class LinearHead(nn.Linear):
    """A head that is one matrix, without nonlinearity (paper, appendix B). It is called like a transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.dim, config.dim, bias=False)

    def forward(self, hidden_BTD: Tensor, *_positions_and_cache: object) -> Tensor:
        return super().forward(hidden_BTD)


HEAD_TYPES: dict[str, type[TransformerBlock] | type[LinearHead]] = {
    "transformer": TransformerBlock,
    "linear": LinearHead,
}


class Trunk(nn.Module):
    """The token embedding and the layers that all heads share."""

    def __init__(self, config: ModelConfig, share: Share, *, activation_checkpointing: bool) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.first_position = 0  # of the tokens that `forward` gets; above 0 if several ranks share a sequence
        self.tok_embeddings: nn.Embedding = (
            nn.Embedding(config.vocab_size, config.dim) if share.embedding else None  # type: ignore[assignment]
        )
        self.layers = nn.ModuleList(
            TransformerBlock(config) if index in share.trunk_layers else None  # type: ignore[misc]
            for index in range(config.n_trunk_layers)
        )

    def forward(self, tokens_or_hidden: Tensor) -> Tensor:
        """Return z (B, T, D) from token ids (B, T), int64, or from the hidden state (B, T, D) of earlier layers."""
        with profiler_range("trunk"):
            hidden_BTD = tokens_or_hidden if self.tok_embeddings is None else self.tok_embeddings(tokens_or_hidden)
            n_positions, device = hidden_BTD.shape[1], hidden_BTD.device
            rotary = training_rotary(n_positions, self.config, device=device, first=self.first_position)
            for layer in self.layers:
                if layer is not None:
                    hidden_BTD = run_layer(layer, hidden_BTD, rotary, recompute=self.activation_checkpointing)
        return hidden_BTD


class Heads(nn.Module):
    """The n prediction heads with their norm, unembedding and loss.

    They are one module because the loss computes all of them inside one op: ZeRO-3 gathers the module as a whole.
    """

    def __init__(self, config: ModelConfig, share: Share, *, activation_checkpointing: bool) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.first_position = 0  # as in the trunk
        head = HEAD_TYPES[config.head_type]
        self.layers = nn.ModuleList(
            head(config) if index in share.heads else None  # type: ignore[misc]
            for index in range(config.n_future_tokens)
        )
        if share.unembedding:
            self.norm = RMSNorm(config.dim, eps=config.norm_eps)
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
            self.extra_outputs = nn.ModuleList(
                nn.Linear(config.dim, config.vocab_size, bias=False) for _ in range(config.n_unembeddings - 1)
            )

    def unembedding(self, head: int) -> nn.Linear:
        """Return the unembedding of one head: the shared one or its own."""
        own = self.extra_outputs[head - 1] if head and self.config.replicated_unembedding else self.output
        assert isinstance(own, nn.Linear)
        return own

    def advance(self, hidden_PBTD: Tensor) -> Tensor:
        """Append the outputs of the heads in this share; for a pipeline stage that is not the last.

        `hidden_PBTD` is the trunk's output z and the outputs of earlier heads, in the order of `head_inputs`.
        """
        return torch.stack(self._run(list(hidden_PBTD.unbind())))

    def forward(self, hidden_PBTD: Tensor, targets_BTN: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the summed loss () and the per-head losses (N,), nats per token, fp32; or predictions (`_predict`).

        Heads that read the trunk's output are computed inside the head-sequential op. Heads that read each other save
        their activations like any other layer (the n = 1 model saves as many); only their logits are computed inside
        the op, and the backward then starts at the head furthest from the trunk (appendix B).

        Args:
            hidden_PBTD: z, and the outputs of the heads that earlier pipeline stages have computed (see `advance`).
            targets_BTN: `targets_BTN[b, t, i]` is the id of token t + 1 + i; None asks for predictions.
        """
        hidden = list(hidden_PBTD.unbind())
        if targets_BTN is None:
            return self._predict(hidden)
        if self.config.head_order != "parallel":
            hidden = self._run(hidden)
        position_of = {head: position for position, head in enumerate(head_inputs(self.config), start=1)}
        rotary = self._rotary(hidden[0])

        def head_loss(head: int, *hidden: Tensor) -> Tensor:
            is_done = position_of[head] < len(hidden)
            with profiler_range(f"head {head + 1}"):
                output_BTD = hidden[position_of[head]] if is_done else self.layers[head](hidden[0], rotary)
                return cross_entropy(self.norm(output_BTD), self.unembedding(head).weight, targets_BTN[..., head])

        with profiler_range("heads"):
            loss, losses_N = sum_of_pieces(
                head_loss, hidden, n_pieces=self.config.n_future_tokens, parameters=list(self.parameters())
            )
        # If the loss is not finite, this makes every gradient NaN, so that every rank skips the step.
        return loss * (1 + 0 * loss.detach()), losses_N

    def _run(self, hidden: list[Tensor]) -> list[Tensor]:
        """Append the outputs of the heads of this share that are not in `hidden` yet."""
        rotary = self._rotary(hidden[0])
        order = list(head_inputs(self.config).items())
        for head, source in order[len(hidden) - 1 :]:
            if self.layers[head] is None:
                break
            read = hidden[0] if source is None else hidden[-1]
            with profiler_range(f"head {head + 1}"):
                hidden.append(run_layer(self.layers[head], read, rotary, recompute=self.activation_checkpointing))
        return hidden

    def _predict(self, hidden: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return each head's most likely token at each position (B, T, N), and its probability (B, T, N), fp32."""
        outputs = dict(zip(head_inputs(self.config), self._run(hidden)[1:], strict=True))
        of_heads = []
        for head in sorted(outputs):
            logits_BTV = self.unembedding(head)(self.norm(outputs[head]))
            of_heads.append(at_least_fp32(logits_BTV).softmax(dim=-1).max(dim=-1))
        return torch.stack([best.indices for best in of_heads], -1), torch.stack([best.values for best in of_heads], -1)

    def _rotary(self, hidden_BTD: Tensor) -> Tensor:
        return training_rotary(hidden_BTD.shape[1], self.config, device=hidden_BTD.device, first=self.first_position)


class MultiTokenModel(nn.Module):
    """Trunk and heads. Called with targets it returns the loss, without targets the predictions of the heads.

    Decoding calls trunk and heads separately.
    """

    def __init__(
        self, config: ModelConfig, *, activation_checkpointing: bool = False, share: Share | None = None
    ) -> None:
        super().__init__()
        share = whole(config) if share is None else share
        self.config = config
        self.trunk = Trunk(config, share, activation_checkpointing=activation_checkpointing)
        self.heads = Heads(config, share, activation_checkpointing=activation_checkpointing)

    def forward(self, tokens_BT: Tensor, targets_BTN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the summed loss () and the per-head losses (N,), or predictions; see `Heads.forward`."""
        return self.heads(self.trunk(tokens_BT).unsqueeze(0), targets_BTN)


def weight_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Return the shape of every weight of the whole model by name."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in MultiTokenModel(config).state_dict().items()}


def block_of(name: str) -> str:
    """Return the block of a weight: embedding, layer_000, head_1 or unembedding (which includes the norm)."""
    module, part, index, *_ = name.split(".")
    if part == "tok_embeddings":
        return "embedding"
    if part == "layers":
        return f"layer_{int(index):03d}" if module == "trunk" else f"head_{int(index) + 1}"
    return "unembedding"


@torch.no_grad()
def initialise(model: MultiTokenModel, *, seed: int) -> None:
    """Draw the weights: normal with std 1/sqrt(fan-in), truncated at 3 std, residual outputs scaled down with depth.

    The paper does not describe its initialisation. This is the one of facebookresearch/lingua, the same lab's
    pretraining code (`BaseTransformer.reset_parameters`), with its "current depth" factor: the matrices that write into
    the residual stream (wo, w2) are divided by sqrt(2 (depth + 1)), as in GPT-2. The embedding's fan-in is dim. Each
    weight depends only on the seed and its name, so that a share starts with the same weights as in the whole model.
    """
    generator = torch.Generator(device=next(model.parameters()).device)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        std = 1 / math.sqrt(model.config.dim if "tok_embeddings" in name else weight.shape[1])
        if name.endswith(("wo.weight", "w2.weight")):
            std /= math.sqrt(2 * (_depth(name, model.config) + 1))
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "little"))
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)


def _depth(name: str, config: ModelConfig) -> int:
    """Return the number of transformer layers below the layer of the weight `name`."""
    module, _, index, *_ = name.split(".")
    if module == "trunk":
        return int(index)
    chained = config.head_order != "parallel"
    return config.n_trunk_layers + (list(head_inputs(config)).index(int(index)) if chained else 0)
