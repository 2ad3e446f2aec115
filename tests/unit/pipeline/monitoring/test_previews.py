"""Previews: greedy continuations, and a table of what each head predicted for each position."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.tokenizers import ByteTokenizer, SentencePieceTokenizer
from pipeline.config.model import ModelConfig
from pipeline.config.schema import DataConfig, LogConfig
from pipeline.model.network import MultiTokenModel, initialise
from pipeline.monitoring.previews import Previews, as_batch, continued, preview
from pipeline.monitoring.sinks.sink import Sink
from tests.helpers.monitored import config_in, monitor_of

BYTES_METADATA: dict[str, Any] = {"tokenizer": {"kind": "bytes"}}


def next_letter(tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Predict as three heads: the first two continue the alphabet, the third always predicts z."""
    ids = torch.stack([tokens_BT + 1, tokens_BT + 2, torch.full_like(tokens_BT, ord("z"))], dim=-1)
    return ids, torch.full(ids.shape, 0.5)


def test_prompts_of_different_lengths_are_continued_side_by_side() -> None:
    shapes = []

    def predict(tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tokens_BT.shape)
        return next_letter(tokens_BT)

    assert continued([[5, 10], [20, 30, 40]], predict, n_tokens=3) == [[5, 10, 11, 12, 13], [20, 30, 40, 41, 42, 43]]
    assert set(shapes) == {(2, 6)}  # one graph, if the layers are compiled


def test_the_table_shows_which_heads_predicted_each_token() -> None:
    text = list(b"\x03abcd")
    ids, probabilities = (x[0].tolist() for x in next_letter(as_batch([text])))
    markdown = preview(text, ids, probabilities, ByteTokenizer(), n_prompt=3)
    assert "of the 2 new tokens: 2 by head 1, 2 by head 2, 0 by head 3." in markdown  # c and d; a and b are the prompt
    table = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    assert table[0] == ["position", "token", "head 1", "head 2", "head 3"]
    assert table[3:] == [
        ["2", "`b`", "**`b`** 50%", "`\\x05` 50%"],
        ["3 new", "`c`", "**`c`** 50%", "**`c`** 50%", "`z` 50%"],
        ["4 new", "`d`", "**`d`** 50%", "**`d`** 50%", "`z` 50%"],
    ]


def test_characters_that_would_end_a_cell_or_its_code_are_replaced() -> None:
    text = list(b"\x03a|`\n ")
    ids, probabilities = (x[0].tolist() for x in next_letter(as_batch([text])))
    markdown = preview(text, ids, probabilities, ByteTokenizer(), n_prompt=3)
    rows = [line for line in markdown.splitlines() if line.startswith("| ")][2:]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6] * 5
    assert [row.split(" | ")[1] for row in rows] == ["`a`", "`¦`", "`'`", "`\\n`", "`·`"]


def test_spaces_in_tokens_are_visible(sentencepiece_model: Path) -> None:
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    text = [tokenizer.eos_id, *tokenizer.encode("x = self  y")]
    no_head = [[0]] * len(text)
    markdown = preview(text, no_head, no_head, tokenizer, n_prompt=len(text))
    cells = [line.split(" | ")[1] for line in markdown.splitlines() if line.startswith("| ")][2:]
    assert "".join(cell.strip("`") for cell in cells).removeprefix("·") == "x·=·self··y"
    assert "`·`" in cells


def test_predictions_are_the_argmax_of_each_heads_logits(sentencepiece_model: Path) -> None:
    """Each head's logits are computed here by hand: z, the head's layer, norm, unembedding."""
    from pipeline.model.layers import training_rotary

    tokens = torch.randint(512, (2, 9), generator=torch.Generator().manual_seed(3))
    for order in ("parallel", "causal", "anticausal"):
        config = ModelConfig(
            dim=16, n_layers=5, n_heads=2, vocab_size=512, n_future_tokens=3, multiple_of=8,
            head_order=order, replicated_unembedding=order == "parallel",
        )  # fmt: skip
        model = MultiTokenModel(config)
        initialise(model, seed=1)
        with torch.no_grad():
            ids_BTN, probabilities_BTN = model(tokens)
            z, rotary = model.trunk(tokens), training_rotary(9, config, device=tokens.device)
            below: Tensor | None = None
            for head in reversed(range(3)) if order == "anticausal" else range(3):
                below = model.heads.layers[head](z if order == "parallel" or below is None else below, rotary)
                logits = model.heads.unembedding(head)(model.heads.norm(below))
                assert torch.equal(ids_BTN[..., head], logits.argmax(-1)), (order, head)
                torch.testing.assert_close(probabilities_BTN[..., head], logits.softmax(-1).amax(-1))


class Texts(Sink):
    """Keeps texts."""

    def __init__(self) -> None:
        self.texts: list[tuple[int, str, str]] = []

    def write_text(self, step: int, tag: str, markdown: str) -> None:
        self.texts.append((step, tag, markdown))


def previews(shards: Path, metadata: dict[str, Any], *, every_steps: int) -> Previews:
    log = LogConfig(previews_every_steps=every_steps, prompts=("def ", "x"), preview_tokens=4)
    return Previews(log, data=DataConfig(shards=str(shards), seq_len=32), metadata=metadata)


def test_previews_are_written_when_they_are_due(tmp_path: Path) -> None:
    sink = Texts()
    monitor = monitor_of(config_in(tmp_path), sinks=[sink])
    often, never = (previews(tmp_path, BYTES_METADATA, every_steps=every) for every in (3, 0))
    for step in range(1, 8):
        often.write(step, predict=next_letter, monitor=monitor)
        never.write(step, predict=next_letter, monitor=monitor)
    assert [(step, tag) for step, tag, _ in sink.texts] == [
        (step, f"previews/prompt_{number}") for step in (3, 6) for number in (1, 2)
    ]
    assert sink.texts[1][2].startswith("```\nxyz{|\n```\n")


def test_prompts_are_encoded_with_the_shards_tokenizer(tmp_path: Path, sentencepiece_model: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    tokenizer, seen = SentencePieceTokenizer(sentencepiece_model), []

    def predict(tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tokens_BT.tolist())
        return next_letter(tokens_BT)

    it = previews(tmp_path, {"tokenizer": {"kind": "sentencepiece"}}, every_steps=1)
    it.write(1, predict=predict, monitor=monitor_of(config_in(tmp_path), sinks=[]))
    for row, prompt in zip(seen[0], ("def ", "x"), strict=True):
        expected = [tokenizer.eos_id, *tokenizer.encode(prompt)]
        assert row[: len(expected)] == expected
