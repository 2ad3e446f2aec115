from pathlib import Path

import pytest

from common.command_line import UserError
from data_prep.sources.standard_input import copied_input


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ('{"sources": [{"path": "a", "bytes": 3}, {"path": "-", "bytes": 7}]}', 7),
        ('{"sources": [{"path": "a", "bytes": 3}]}', 0),
        ('{"sources": [{"path": "-", "bytes": "7"}, 3, null]}', 0),
        ('{"sources": {"path": "-"}}', 0),
        ("[]", 0),
        ('{"sources": [', None),
        ("[" * 100_000, None),
    ],
)
def test_the_size_of_a_finished_input_is_what_its_metadata_say(
    metadata: str, size: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(metadata)
    if size is None:
        with pytest.raises(UserError, match=r"metadata\.json is n"):
            copied_input(tmp_path / "work", metadata=path)
    else:
        assert copied_input(tmp_path / "work", metadata=path)[1] == size
        assert "the output is finished already" in capsys.readouterr().out
