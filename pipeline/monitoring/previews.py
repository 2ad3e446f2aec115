"""Previews: what the model makes of fixed prompts while it trains, and what each head said at each position.

A prompt begins as documents do, after EOS, and is continued greedily by the next-token head. Then one more forward over
the whole text gives what every head said everywhere: head i, reading up to position t - i, names the token at t. Rows
of the table are positions, so that a row shows which heads saw its token coming:

    | position | token  | head 1     | head 2   |
    | 5        | `def`  | **`def`**  | `class`  |

Nothing is drawn at random, and no state of the training changes: losses are the same bits with previews and without.
Under ZeRO-3 a forward needs every rank, so all ranks compute the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.tokenizers import Tokenizer, load_tokenizer
from pipeline.config.schema import DataConfig, LogConfig
from pipeline.config.shard_folder import local_folder, tokenizer_name
from pipeline.monitoring.monitor import Monitor, is_due

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps ids (B, T) to what each head says, ids (B, T, N), and probability; [b, t, i - 1] is of the token at t + i."""

Table = Sequence[Sequence[float]]


class Previews:
    """The previews of a run: every `log.previews_every_steps` steps, or never."""

    def __init__(self, log: LogConfig, *, data: DataConfig, metadata: dict[str, Any]) -> None:
        """Read the tokenizer, and encode the prompts.

        Args:
            log: when to preview which prompts. They fit into the run's sequences (`shard_folder.preview_problems`).
            data: where the shards are, with their tokenizer.
            metadata: of the shards.
        """
        self._every_steps, self._n_tokens = log.previews_every_steps, log.preview_tokens
        if not self._every_steps:
            return
        self._tokenizer = load_tokenizer(tokenizer_name(local_folder(data), metadata))
        self._prompts = [[self._tokenizer.eos_id, *self._tokenizer.encode(text)] for text in log.prompts]

    def write(self, step: int, *, predict: Predict, monitor: Monitor) -> None:
        """Write the previews of a step, if they are due after it; every rank must call it."""
        if not is_due(step, every_steps=self._every_steps):
            return
        with monitor.paused():
            texts = continued(self._prompts, predict, n_tokens=self._n_tokens)
            said = predict(as_batch(texts))
            for number, (text, prompt, *said_TN) in enumerate(zip(texts, self._prompts, *said, strict=True), start=1):
                ids, probabilities = (x_TN.tolist() for x_TN in said_TN)
                markdown = preview(text, ids, probabilities, self._tokenizer, n_prompt=len(prompt))
                monitor.log_text(step, f"previews/prompt_{number}", markdown)


def continued(prompts: Sequence[Sequence[int]], predict: Predict, *, n_tokens: int) -> list[list[int]]:
    """Return the prompts, each with `n_tokens` more that the next-token head finds the likeliest.

    One forward a token, without a cache, over all prompts at once; always of the same shape. What is behind a prompt
    does not matter, since attention is causal.
    """
    texts = [list(prompt) for prompt in prompts]
    length = max(map(len, texts)) + n_tokens
    for _ in range(n_tokens):
        ids_BTN, _ = predict(as_batch(texts, length=length))
        for row, text in enumerate(texts):
            text.append(int(ids_BTN[row, len(text) - 1, 0]))
    return texts


def as_batch(texts: Sequence[Sequence[int]], *, length: int | None = None) -> Tensor:
    """Return the texts as ids (B, T), int64, filled up to `length`, or to the longest."""
    length = length or max(map(len, texts))
    return torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])


def preview(text: Sequence[int], ids_TN: Table, probabilities_TN: Table, tokenizer: Tokenizer, *, n_prompt: int) -> str:
    """Return a text, and what each head said at each of its positions, as Markdown.

    Args:
        text: ids of the prompt and its continuation.
        ids_TN: `ids_TN[t][i - 1]` is the token that head i, having read up to t, found the likeliest at t + i.
        probabilities_TN: of those tokens.
        tokenizer: of the ids.
        n_prompt: how many of the ids are the prompt's.
    """
    heads = range(1, len(ids_TN[0]) + 1)
    n_right = dict.fromkeys(heads, 0)
    rows = [_row(["position", "token", *(f"head {head}" for head in heads)]), _row(["---"] * (len(heads) + 2))]
    for position in range(1, len(text)):
        token, cells = text[position], [""] * len(heads)
        for head in heads[:position]:
            said, probability = (x_TN[position - head][head - 1] for x_TN in (ids_TN, probabilities_TN))
            mark = "**" if said == token else ""
            cells[head - 1] = f"{mark}{_shown(int(said), tokenizer)}{mark} {probability:.0%}"
            n_right[head] += said == token and position >= n_prompt
        rows.append(
            _row([f"{position}" if position < n_prompt else f"{position} new", _shown(token, tokenizer), *cells])
        )
    foreseen = ", ".join(f"head {head} {count}" for head, count in n_right.items())
    fence = "~~~" if "```" in (whole := tokenizer.decode(list(text))) else "```"
    return (
        f"{fence}\n{whole}\n{fence}\n\nOf {len(text) - n_prompt} new tokens, these heads said so many before they"
        f" came: {foreseen}. What head i said of a position, i tokens before it:\n\n" + "\n".join(rows)
    )


def _shown(token: int, tokenizer: Tokenizer) -> str:
    """Return a token as inline code of Markdown: its spaces and line ends visible, nothing that ends cell or code."""
    before = tokenizer.encode("x")  # SentencePiece takes away the space that a text begins with
    text = tokenizer.decode([*before, token]).removeprefix(tokenizer.decode(before))
    text = repr(text)[1:-1].replace("`", "'").replace("|", "¦").replace(" ", "·")
    return f"`{text or f'<{token}>'}`"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
