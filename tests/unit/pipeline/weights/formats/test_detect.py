"""Detecting the format of a folder, and the messages for folders without one."""

from pathlib import Path

import pytest

from common.command_line import UserError
from pipeline.weights.formats.detect import format_of
from tests.helpers.exports import write_checkpoint
from tests.helpers.references import tiny_model


def test_inference_needs_an_export(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", tiny_model())
    with pytest.raises(UserError, match=r"export it first: python -m pipeline\.convert --input"):
        format_of(tmp_path / "run", among=("meta", "hf"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        format_of(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no model; expected .*params\.json .*; config\.json .* \(hf\)$"):
        format_of(tmp_path, among=("meta", "hf"))
