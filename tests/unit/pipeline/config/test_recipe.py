"""Recipes: the precedence of values, and all problems in one message."""

import sys
from pathlib import Path

import pytest
import yaml

from common.command_line import UserError
from pipeline.config.recipe import load_config, read_config
from tests.helpers.recipes import COMPLETE, write_recipe


def problems_of(recipe: Path, *overrides: str) -> list[str]:
    """Return the problems that one UserError lists."""
    with pytest.raises(UserError) as error:
        load_config(recipe, overrides)
    heading, *lines = str(error.value).split("\n  - ")
    assert heading.startswith(f"recipe {recipe}:")
    return lines or [heading.removeprefix(f"recipe {recipe}: ")]


def test_command_line_overrides_recipe_overrides_defaults(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, COMPLETE + "checkpoint: {every_steps: 7}\n")
    config = load_config(recipe, ["checkpoint.every_steps=9", "log.every_steps=3"])
    assert config.checkpoint.every_steps == 9
    assert config.log.every_steps == 3  # a section that the recipe does not have
    assert config.optim.warmup_steps == 10  # the recipe's, not the default 2000
    assert config.optim.lr == 3e-4  # the default
    assert load_config(recipe).checkpoint.every_steps == 7


def test_an_override_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    first, second = problems_of(write_recipe(tmp_path), "optim.lr=[", "optim.beta1=2")
    assert first.startswith("the value of 'optim.lr=[' is not YAML: while parsing a flow node")
    assert second.startswith("optim.beta1=2: Input should be less than 1")


def test_the_last_override_of_a_field_wins(tmp_path: Path) -> None:
    assert load_config(write_recipe(tmp_path), ["train.seed=5", "train.seed=6"]).train.seed == 6


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("optim.lr=1e-3", "optim", "lr", 1e-3),  # YAML 1.1 reads it as a string
        ("optim.lr=1.0e-3", "optim", "lr", 1e-3),
        ("train.activation_checkpointing=true", "train", "activation_checkpointing", True),
        ("model.n_kv_heads=null", "model", "n_kv_heads", None),
        ("profile.steps=[10, 12]", "profile", "steps", (10, 12)),
        ("data.shards=/a=b/c d", "data", "shards", "/a=b/c d"),
    ],
)
def test_override_values_are_yaml(tmp_path: Path, override: str, section: str, field: str, value: object) -> None:
    assert getattr(getattr(load_config(write_recipe(tmp_path), [override]), section), field) == value


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        """
modle: {dim: 64}
model: {size: 7B, dim: 64, n_layres: 6, n_kv_heads: 5, n_future_tokens: 40}
data: {shards: some/shards}
train: {seed: many}
optim: {beta1: 2.0}
""",
    )
    problems = problems_of(recipe, "optim.lr=-1", "nonsense", "lr=3", "optim.=3")
    expected = [
        "'nonsense' must have the form section.field=value",
        "'lr=3' must have the form section.field=value",
        "'optim.=3' must have the form section.field=value",
        "unknown key modle; a recipe has run, model, data, train, optim, parallel, checkpoint, log",
        "unknown key model.n_layres; model has size, dim, n_layers, n_heads, ",
        "train.seed='many': Input should be a valid integer",
        "optim.beta1=2.0: Input should be less than 1",
        "optim.lr=-1: Input should be greater than 0",
        "model.size='7B' already sets dim to another value; give one or the other",
        "model.n_heads=32 must be a multiple of model.n_kv_heads=5",
        "model.n_future_tokens=40 heads need as many layers, but model.n_layers=32 (heads are counted in it)",
        "train.total_tokens is missing: the token budget of the run",
    ]
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), f"{start!r} in {problems}"
    assert len(problems) == len(expected), problems


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_heads=3", "model.dim=64 must be a multiple of 2 x model.n_heads=3: heads need an even width"),
        ("model.n_heads=64", "model.dim=64 must be a multiple of 2 x model.n_heads=64: heads need an even width"),
        ("model.n_heads=0", "model: give model.size, or all of model.dim, model.n_layers and model.n_heads"),
        ("optim.warmup_steps=98", "optim.warmup_steps=98 must be below the run's 98 steps"),
        ("model.size=6.7B", "model.size='6.7B': Input should be '0.3B', '0.6B', '1.3B', '3B', '7B' or '13B'"),
        ("model.vocab_size=65537", "model.vocab_size=65537: Input should be less than or equal to 65536"),
        ("model.head_order=random", "model.head_order='random': Input should be 'parallel', 'causal' or 'anticausal'"),
        ("parallel.pipeline_stages=0", "parallel.pipeline_stages=0: Input should be greater than 0"),
        ("run.name=../up", "run.name='../up': String should match pattern"),
        (
            "profile.steps=[3, 2]",
            "profile.steps=[3, 2] must be the first and the last step to record, within the run's 98",
        ),
        ("profile.steps=[90, 99]", "profile.steps=[90, 99] must be the first and the last step to record, within"),
        ("profile.steps=[0, 2]", "profile.steps.0=0: Input should be greater than 0"),
        ("profile.steps=[3]", "profile.steps.1=[3]: Field required"),
        ("profile.steps=3", "profile.steps=3: Input should be a valid tuple"),
        ("log.every_steps=0", "log.every_steps=0: Input should be greater than 0"),
        ("log.previews_every_steps=-1", "log.previews_every_steps=-1: Input should be greater than or equal to 0"),
        ("log.grad_norms_every_steps=often", "log.grad_norms_every_steps='often': Input should be a valid integer"),
        ("log.prompts=[]", "log.prompts=[]: Tuple should have at least 1 item after validation"),
        ("log.prompts=def", "log.prompts='def': Input should be a valid tuple"),
        ("log.preview_tokens=0", "log.preview_tokens=0: Input should be greater than 0"),
        ("log.wandb=''", "log.wandb='': String should have at least 1 character"),
        ("data.num_workers=-1", "data.num_workers=-1: Input should be greater than or equal to 0"),
    ],
)
def test_each_problem_names_field_and_value(tmp_path: Path, override: str, message: str) -> None:
    (problem,) = problems_of(write_recipe(tmp_path), override)
    assert problem.startswith(message)


def test_warmup_one_step_shorter_than_the_run_is_allowed(tmp_path: Path) -> None:
    assert load_config(write_recipe(tmp_path), ["optim.warmup_steps=97"]).total_steps == 98


def test_shards_must_be_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, COMPLETE.replace("shards: some/shards, ", ""))
    assert problems_of(recipe) == ["data.shards is missing: the folder that data_prep.write_shards wrote"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {dim: 64", "is not YAML: while parsing a flow mapping"),
        ("- model\n- data\n", "must map sections (model, data, train, ...) to their fields"),
        ("model: 7B\n", "must map sections (model, data, train, ...) to their fields"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    recipe = write_recipe(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_config(recipe)
    assert str(error.value).startswith(f"recipe {recipe} {message}")
    assert "\n" not in str(error.value)


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing, not_text = tmp_path / "missing.yaml", tmp_path / "latin.yaml"
    not_text.write_bytes(b"run: {name: caf\xe9}")
    for recipe in (missing, not_text, tmp_path):
        with pytest.raises(UserError, match=rf"^recipe {recipe} cannot be read \(.*\); see pipeline/recipes/$"):
            load_config(recipe)


def test_the_resolved_config_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "sized.yaml"
    recipe.write_text("model: {size: 7B}\ndata: {shards: s}\ntrain: {total_tokens: 209715200000}\n")
    config = load_config(recipe)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(yaml.safe_dump(config.as_dict()))
    assert load_config(resolved) == config


def test_wandb_must_be_installed_if_the_recipe_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    _, problems = read_config(recipe, ["log.wandb=project"])
    assert problems == ["log.wandb='project' needs the package wandb: pip install wandb, or leave this key out"]
    assert read_config(recipe)[1] == []
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_config(recipe, ["log.wandb=project"])[1] == []
