"""A data set's card and manifests name files inside of its folder, or are refused before anything is read."""

import json
from pathlib import Path

import pytest

from common.command_line import UserError
from data_prep.sources.listing import list_source
from tests.helpers.records import jsonl, records_of, texts_of

SECRET = "the secret"
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 25))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a data set beside a file that does not belong to it."""
    (tmp_path / "secret.jsonl").write_bytes(jsonl({"text": SECRET}))
    folder = tmp_path / "stack"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_bytes(jsonl({"text": "inside"}))
    return folder


def _card(folder: Path, data_files: object, **more: object) -> None:
    config = {"config_name": "default", "data_files": data_files} | more
    (folder / "README.md").write_text(f"---\nconfigs:\n- {json.dumps(config)}\n---\n# A data set\n")


@pytest.mark.parametrize(
    "pattern",
    [
        "../secret.jsonl",
        "data/../../secret.jsonl",
        "../*.jsonl",
        "{tmp}/secret.jsonl",
        "file://{tmp}/secret.jsonl",
        "zip://*.jsonl::../a.zip",
        "https://127.0.0.1:9/secret.jsonl",
        "~/secret.jsonl",
    ],
)
def test_a_pattern_that_leads_outside_is_refused(pattern: str, folder: Path) -> None:
    name = pattern.replace("{tmp}", str(folder.parent))
    for data_files in (
        name,
        ["data/train.jsonl", name],
        {"train": [name]},
        [{"split": "train", "path": ["data/train.jsonl", name]}],
    ):
        _card(folder, data_files)
        with pytest.raises(UserError, match=r"README.md of the data set .*stack names data outside of it: '") as raised:
            list_source(f"hf:{folder}")
        assert repr(name) in str(raised.value)
    (folder / "README.md").rename(folder / ".huggingface.yaml")
    text = (folder / ".huggingface.yaml").read_text().split("---")[1]
    (folder / ".huggingface.yaml").write_text(text)
    with pytest.raises(UserError, match=r"\.huggingface\.yaml of the data set"):
        list_source(f"hf:{folder}")


def test_a_folder_that_leads_outside_is_refused(folder: Path) -> None:
    _card(folder, "*.jsonl", data_dir="..")
    with pytest.raises(UserError, match=r"names data outside of it: '\.\.'"):
        list_source(f"hf:{folder}")


def test_links_that_lead_outside_are_refused(folder: Path) -> None:
    (folder / "data" / "train-2.jsonl").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(UserError, match=r"names data outside of it: '.*train-2\.jsonl'"):
        list_source(f"hf:{folder}")
    (folder / "data" / "train-2.jsonl").unlink()
    (folder / "data" / "train-2.jsonl").symlink_to("train.jsonl")
    assert texts_of(records_of(f"hf:{folder}")) == ["inside"] * 2


def test_a_snapshot_of_the_hubs_cache_is_read(folder: Path) -> None:
    """Its files are links into the folder of blobs beside it."""
    repository = folder.parent / "datasets--some--stack"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs" / "abc").write_bytes(jsonl({"text": "a blob"}))
    (snapshot / "train.jsonl").symlink_to("../../blobs/abc")
    assert texts_of(records_of(f"hf:{snapshot}")) == ["a blob"]
    (snapshot / "train-2.jsonl").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(UserError, match="names data outside of it"):
        list_source(f"hf:{snapshot}")


def test_patterns_inside_are_followed(folder: Path) -> None:
    _card(folder, [{"split": "train", "path": "data/*.jsonl"}, {"split": "test", "path": ["./data/train.jsonl"]}])
    assert texts_of(records_of(f"hf:{folder}")) == ["inside"]
    assert texts_of(records_of(f"hf:{folder}@test")) == ["inside"]


def test_a_saved_data_set_lists_its_own_files(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": [SECRET]}).save_to_disk(str(folder.parent / "other"))
    saved = folder.parent / "saved"
    datasets.Dataset.from_dict({"text": ["mine"]}).save_to_disk(str(saved))
    arrow = next((folder.parent / "other").glob("*.arrow"))
    state = json.loads((saved / "state.json").read_text())
    for filename in (f"../other/{arrow.name}", str(arrow)):
        (saved / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": filename}]}))
        with pytest.raises(UserError, match=r"state\.json of the data set .*saved names data outside of it"):
            list_source(f"hf:{saved}")
    for damaged in ("[1]", "{", '{"_data_files": 3}', "[" * 100_000):
        (saved / "state.json").write_text(damaged)
        with pytest.raises(UserError, match=r"state\.json"):
            list_source(f"hf:{saved}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("configs: [", "is not YAML"),
        (BOMB, "aliases"),
        ("[" * 5000, "nested deeper"),
        ("a: 1\na: 2", "stands twice"),
    ],
)
def test_a_damaged_card_is_one_message(text: str, message: str, folder: Path) -> None:
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    with pytest.raises(UserError, match=rf"README\.md .*{message}"):
        list_source(f"hf:{folder}")


@pytest.mark.parametrize(
    "text", ["", "---", "---\n", "# no front matter", "---\n- a list\n---", "---\nconfigs: 3\n---"]
)
def test_a_card_without_configurations_is_no_hindrance(text: str, folder: Path) -> None:
    (folder / "README.md").write_text(text)
    try:
        assert texts_of(records_of(f"hf:{folder}")) == ["inside"]
    except UserError as error:
        assert "cannot be loaded" in str(error)  # noqa: PT017  the library's own objection to the card
