"""Recipes: the precedence of values, and all problems in one message."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from common.command_line import UserError
from pipeline.config.recipe import load_config, read_config
from tests.helpers.recipes import COMPLETE, write_recipe

ALIASES = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 6)}]\n" for i in range(1, 8))


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
    assert first.startswith("the value of optim.lr is not YAML: while parsing a flow node")
    assert second == "optim.beta1=2 must be a number at least 0 and below 1"


@pytest.mark.parametrize("field", ["run.dir", "data.shards", "data.cache", "model.init_from"])
@pytest.mark.parametrize("text", ["~/x", "$HOME/x", "${HOME}/x"])
def test_home_and_variables_are_replaced_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    section, _, name = field.partition(".")
    config = load_config(write_recipe(tmp_path), [f"{field}={text}"])
    assert getattr(getattr(config, section), name) == f"{tmp_path}/x"


@pytest.mark.parametrize("text", ["$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}", "~no_such_user/x", '"a\\0b"'])
def test_a_path_of_unknown_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    (problem,) = problems_of(write_recipe(tmp_path), f"run.dir={text}")
    assert problem.startswith("run.dir='")
    assert problem.endswith("must be a path; ~ at its beginning and $NAME are replaced, and must have a value")


def test_the_last_override_of_a_field_wins(tmp_path: Path) -> None:
    assert load_config(write_recipe(tmp_path), ["train.seed=5", "train.seed=6"]).train.seed == 6


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("optim.lr=1e-3", "optim", "lr", 1e-3),  # YAML 1.1 reads it as a string
        ("optim.lr=1.0e-3", "optim", "lr", 1e-3),
        ("optim.lr=1", "optim", "lr", 1.0),
        ("train.total_tokens=1e5", "train", "total_tokens", 100_000),
        ("train.total_tokens=1.0e+5", "train", "total_tokens", 100_000),
        ("train.total_tokens=100_000", "train", "total_tokens", 100_000),
        ("train.seed=9007199254740993", "train", "seed", 2**53 + 1),
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
train: {seed: many, lr: 1}
log: {quantum: 1}
optim: {beta1: 2.0}
""",
    )
    problems = problems_of(recipe, "optim.lr=-1", "nonsense", "lr=3", "optim.=3")
    expected = [
        "'nonsense' must have the form section.field=value",
        "'lr=3' must have the form section.field=value",
        "'optim.=3' must have the form section.field=value",
        "unknown section modle; did you mean model?",
        "unknown key model.n_layres; did you mean model.n_layers?",
        "unknown key train.lr; did you mean optim.lr?",
        "unknown key log.quantum; there are every_steps, samples, ",
        "train.seed='many' must be a whole number from 0 to 9,223,372,036,854,775,807",
        "optim.beta1=2.0 must be a number at least 0 and below 1",
        "optim.lr=-1 must be a number above 0 and at most 100",
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
        ("model.size=6.7B", "model.size='6.7B' must be '0.3B', '0.6B', '1.3B', '3B', '7B' or '13B', or null"),
        ("model.vocab_size=65537", "model.vocab_size=65537 must be a whole number from 1 to 65,536"),
        ("model.head_order=random", "model.head_order='random' must be 'parallel', 'causal' or 'anticausal'"),
        ("parallel.pipeline_stages=0", "parallel.pipeline_stages=0 must be a whole number from 1 to 65,536"),
        (
            "run.name=../up",
            "run.name='../up' must be a name of 1 to 200 letters, digits, dots, dashes and underscores",
        ),
        (
            "profile.steps=[3, 2]",
            "profile.steps=[3, 2] must be the first and the last step to record, within the run's 98",
        ),
        ("profile.steps=[90, 99]", "profile.steps=[90, 99] must be the first and the last step to record, within"),
        (
            "profile.steps=[0, 2]",
            "profile.steps=[0, 2] must be a list of the first and the last step, such as [10, 12]",
        ),
        ("profile.steps=[3]", "profile.steps=[3] must be a list of the first and the last step"),
        ("profile.steps=3", "profile.steps=3 must be a list of the first and the last step"),
        ("log.every_steps=0", "log.every_steps=0 must be a whole number from 1 to 1,000,000,000,000"),
        ("log.previews_every_steps=-1", "log.previews_every_steps=-1 must be a whole number from 0 to"),
        ("log.grad_norms_every_steps=often", "log.grad_norms_every_steps='often' must be a whole number from 0 to"),
        ("log.prompts=[]", "log.prompts=[] must be a list of 1 to 100 texts"),
        ("log.prompts=def", "log.prompts='def' must be a list of 1 to 100 texts"),
        ("log.preview_tokens=0", "log.preview_tokens=0 must be a whole number from 1 to 16,777,216"),
        ("log.wandb=''", "log.wandb='' must be a text that is not empty, or null"),
        ("data.num_workers=5000", "data.num_workers=5000 must be a whole number from 0 to 128"),
        ("data.num_canonical_nodes=1e9", "data.num_canonical_nodes='1e9' must be a whole number from 1 to 65,536"),
        (
            "train.total_tokens=1e400",
            "train.total_tokens='1e400' must be a whole number from 1 to 10,000,000,000,000,000",
        ),
        ("train.total_tokens=1.5", "train.total_tokens=1.5 must be a whole number from 1"),
        ("train.total_tokens=true", "train.total_tokens=true must be a whole number from 1"),
        ("train.seed=2024-02-30", "the value of train.seed is not YAML: day is out of range for month"),
        ("train.seed=2024-02-29", "train.seed=datetime.date(2024, 2, 29) must be a whole number"),
        (f"train.seed={'9' * 5000}", "the value of train.seed is not YAML: Exceeds the limit (4300 digits)"),
        (f"optim.eps='{'9' * 5000}'", f"optim.eps='{'9' * 89} [4,882 characters left out] "),
        ("optim.lr=.inf", "the value of optim.lr holds inf, which is not a finite number"),
        ("optim.lr='inf'", "optim.lr='inf' must be a number above 0 and at most 100"),
        ("optim.lr=.nan", "the value of optim.lr holds nan, which is not a finite number"),
        ("optim.lr=1e31", "optim.lr='1e31' must be a number above 0 and at most 100"),
        ("optim.lr=true", "optim.lr=true must be a number above 0 and at most 100"),
        ("optim.lr=!!float abc", "the value of optim.lr is not YAML: could not convert string to float"),
        ("optim.lr=" + "[" * 100_000, "the value of optim.lr is nested deeper than 64 levels"),
        ("optim.clip={a: 1, a: 2}", "the value of optim.clip is not YAML: the key 'a' stands twice"),
        ("optim.eps=5e-324", "optim.eps='5e-324' must be a number from 1e-30 to 1"),
        ("model.rope_theta=0.5", "model.rope_theta=0.5 must be a number from 1 to 1,000,000,000,000"),
        ("faults.hang_timeout_s=1e12", "faults.hang_timeout_s='1e12' must be a number from 0.1 to 2,592,000"),
        ("run.name=2024", "run.name=2024 must be a name of 1 to 200 letters"),
        ("run.name=" + "a" * 201, "run.name='aaaaaaaaaa"),
        ("data.num_workers=-1", "data.num_workers=-1 must be a whole number from 0 to 128"),
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
        ("a: &a [1]\nb: [*a, {c: 1, c: 2}]\n", "is not YAML: the key 'c' stands twice"),
        (ALIASES, "holds more than 100,000 values"),
        ("{a: " * 500 + "1" + "}" * 500, "is nested deeper than 64 levels"),
        ("#" * (300 << 10), "cannot be read: it has more than 262,144 bytes"),
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
    os.mkfifo(fifo := tmp_path / "fifo.yaml")
    for recipe, why in (
        (missing, "cannot be read: No such file or directory"),
        (not_text, "is not YAML: 'utf-8' codec can't decode byte 0xe9 .*"),
        (tmp_path, "cannot be read: it is a folder, not a file"),
        (fifo, "cannot be read: it is a FIFO, not a file"),
        (Path("/dev/zero"), "cannot be read: it is a device or a socket, not a file"),
    ):
        with pytest.raises(UserError, match=rf"^recipe {recipe} {why}; see pipeline/recipes/$"):
            load_config(recipe)


@pytest.mark.parametrize("section", ["model", "data", "log"])
@pytest.mark.parametrize("value", ["", "7B", "[1]", "3"])
def test_a_section_that_maps_nothing_is_one_problem(tmp_path: Path, section: str, value: str) -> None:
    rest = "\n".join(line for line in COMPLETE.splitlines() if not line.startswith(section))
    (problem,) = problems_of(write_recipe(tmp_path, f"{rest}\n{section}: {value}\n"))
    assert problem.startswith(f"{section}=")
    assert problem.endswith("must map fields to values; leave the section out if it has none")


def test_a_wrong_value_has_no_second_line_about_what_it_would_have_been(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for override in ("train.total_tokens=many", "train.batch_tokens=-1", "model.dim=wide", "optim.warmup_steps=x"):
        assert len(problems_of(recipe, override, "profile.steps=[1, 2]")) == 1, override


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
    problems = read_config(recipe, ["log.wandb=project"]).problems
    assert problems == ["log.wandb='project' needs the package wandb: pip install wandb, or leave this key out"]
    assert read_config(recipe).problems == []
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_config(recipe, ["log.wandb=project"]).problems == []
