"""Previews: how the model continues fixed prompts while it trains, and what each head predicted at each position.

A prompt begins like a document, after EOS, and the next-token head continues it greedily. One more forward over the
whole text then gives every head's predictions: head i, having read up to position t - i, predicts the token at t. Each
row of the table is a position, and shows which heads predicted its token:

    | position | token  | head 1     | head 2   |
    | 5        | `def`  | **`def`**  | `class`  |

Nothing is random and no training state changes: losses are bit for bit the same with and without previews. All ranks
compute the same previews, because a forward under ZeRO-3 needs every rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.tokenizers import Tokenizer, load_tokenizer
from common.wording import counted
from pipeline.config.schema import DataConfig, LogConfig
from pipeline.config.shard_folder import local_folder, tokenizer_name
from pipeline.monitoring.monitor import Monitor, is_due

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps ids (B, T) to each head's predicted ids (B, T, N) and their probabilities (B, T, N).

[b, t, i - 1] is head i's prediction for position t + i.
"""

Table = Sequence[Sequence[float]]


class Previews:
    """The previews of a run, every `log.previews_every_steps` steps; 0 makes none."""

    def __init__(self, log: LogConfig, *, data: DataConfig, metadata: dict[str, Any]) -> None:
        """Read the tokenizer, and encode the prompts.

        Args:
            log: how often to preview, and the prompts; `preview_problems` has checked that they fit into a sequence.
            data: names the shards, beside which their tokenizer lies.
            metadata: of the shards.
        """
        self._every_steps, self._n_tokens = log.previews_every_steps, log.preview_tokens
        if not self._every_steps:
            return
        self._tokenizer = load_tokenizer(tokenizer_name(local_folder(data), metadata))
        self._prompts = [[self._tokenizer.eos_id, *self._tokenizer.encode(text)] for text in log.prompts]

    def write(self, step: int, *, predict: Predict, monitor: Monitor) -> None:
        """Write previews if they are due after this step; every rank must call it."""
        if not is_due(step, every_steps=self._every_steps):
            return
        with monitor.paused():
            texts = continued(self._prompts, predict, n_tokens=self._n_tokens)
            predicted = predict(as_batch(texts))
            rows = zip(texts, self._prompts, *predicted, strict=True)
            for number, (text, prompt, *predicted_TN) in enumerate(rows, start=1):
                ids, probabilities = (x_TN.tolist() for x_TN in predicted_TN)
                markdown = preview(text, ids, probabilities, self._tokenizer, n_prompt=len(prompt))
                monitor.log_text(step, f"previews/prompt_{number}", markdown)


def continued(prompts: Sequence[Sequence[int]], predict: Predict, *, n_tokens: int) -> list[list[int]]:
    """Return the prompts, each followed by the `n_tokens` tokens that the next-token head finds most likely.

    One forward per token over all prompts at once, without a cache and always of the same shape. The padding behind a
    text does not matter, because attention is causal.
    """
    texts = [list(prompt) for prompt in prompts]
    length = max(map(len, texts)) + n_tokens
    for _ in range(n_tokens):
        ids_BTN, _ = predict(as_batch(texts, length=length))
        for row, text in enumerate(texts):
            text.append(int(ids_BTN[row, len(text) - 1, 0]))
    return texts


def as_batch(texts: Sequence[Sequence[int]], *, length: int | None = None) -> Tensor:
    """Return the texts as ids (B, T), int64, padded to `length`, by default that of the longest."""
    length = length or max(map(len, texts))
    return torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])


def preview(text: Sequence[int], ids_TN: Table, probabilities_TN: Table, tokenizer: Tokenizer, *, n_prompt: int) -> str:
    """Return a text, and a table of each head's predictions for its positions, as Markdown.

    Args:
        text: ids of the prompt and its continuation.
        ids_TN: `ids_TN[t][i - 1]` is the token that head i, having read up to t, found most likely at t + i.
        probabilities_TN: of those tokens.
        tokenizer: decodes the ids.
        n_prompt: number of ids that belong to the prompt.
    """
    heads = range(1, len(ids_TN[0]) + 1)
    n_correct = dict.fromkeys(heads, 0)
    rows = [_row(["position", "token", *(f"head {head}" for head in heads)]), _row(["---"] * (len(heads) + 2))]
    for position in range(1, len(text)):
        token, cells = text[position], [""] * len(heads)
        for head in heads[:position]:
            predicted, probability = (x_TN[position - head][head - 1] for x_TN in (ids_TN, probabilities_TN))
            mark = "**" if predicted == token else ""
            cells[head - 1] = f"{mark}{_shown(int(predicted), tokenizer)}{mark} {probability:.0%}"
            n_correct[head] += predicted == token and position >= n_prompt
        rows.append(
            _row([f"{position}" if position < n_prompt else f"{position} new", _shown(token, tokenizer), *cells])
        )
    correct = ", ".join(f"{count} by head {head}" for head, count in n_correct.items())
    fence = "~~~" if "```" in (whole := tokenizer.decode(list(text))) else "```"
    return (
        f"{fence}\n{whole}\n{fence}\n\nCorrect predictions of the {counted(len(text) - n_prompt, 'new token')}:"
        f" {correct}. The table shows what head i predicted for each position, i tokens ahead, and with which"
        " probability; correct predictions are bold.\n\n" + "\n".join(rows)
    )


def _shown(token: int, tokenizer: Tokenizer) -> str:
    """Return a token as inline code in Markdown, with visible spaces and line ends.

    Characters that would end the table cell or the code are replaced.
    """
    before = tokenizer.encode("x")  # SentencePiece drops a leading space
    text = tokenizer.decode([*before, token]).removeprefix(tokenizer.decode(before))
    text = repr(text)[1:-1].replace("`", "'").replace("|", "¦").replace(" ", "·")
    return f"`{text or f'<{token}>'}`"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
