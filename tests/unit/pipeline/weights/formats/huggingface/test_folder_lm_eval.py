"""lm-eval on an export, run like its users do but offline: the likelihoods are those of our own model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from pipeline.model.network import MultiTokenModel
from pipeline.weights.formats.export import ExportOptions
from tests.helpers.exports import exported
from tests.helpers.references import all_logits, tiny_model

EOS = 2
QUESTIONS: list[dict[str, Any]] = [
    {"question": "import", "choices": [" json", " os.path", " ("], "answer": 0},
    {"question": "def f(x):\n    return", "choices": [" x", " self.x + 1"], "answer": 1},
    {"question": "    for i in", "choices": [" range(3):\n", " x:", " self.items():"], "answer": 1},
    {"question": "", "choices": ["class A:", "x", "\n"], "answer": 0},  # only the first token precedes it
    {"question": "a</s>", "choices": ["b", "</s>"], "answer": 0},  # text that looks like EOS
    {"question": "é = '\U0001f600", "choices": ["'", "\U0001f600'"], "answer": 1},
    {"question": "x =", "choices": [" 10", " 2024"], "answer": 0},
    {"question": "if True", "choices": [":\n    pass", " and False:"], "answer": 1},
]
TASK = """\
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def run_lm_eval(export: Path, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the results and the logged samples of the `lm_eval` command on `QUESTIONS`."""
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "task.yaml").write_text(TASK.replace("FILE", str(questions)))
    # torchvision cannot be imported with the CPU build of torch, and transformers' Llama would import it.
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['torchvision'] = None\n")
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "hf", "--model_args", f"pretrained={export}"]
    command += ["--tasks", "tiny", "--include_path", str(folder), "--device", "cpu"]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    offline = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {**os.environ, **offline, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (results,), (samples,) = (folder.glob(f"out/*/{name}_*") for name in ("results", "samples"))
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["tiny"], sorted(lines, key=lambda line: line["doc_id"])


@torch.no_grad()
def log_likelihood(model: MultiTokenModel, ids: list[int], *, n_given: int) -> float:
    """Return the next-token head's log-probability of `ids` after the first `n_given`."""
    log_p_TV = all_logits(model, torch.tensor([ids]))[0, :, 0].double().log_softmax(dim=-1)
    return sum(float(log_p_TV[position - 1, ids[position]]) for position in range(n_given, len(ids)))


def test_likelihoods_and_accuracies_are_those_of_our_model(sentencepiece_model: Path, tmp_path: Path) -> None:
    model = tiny_model(vocab_size=512)
    options = ExportOptions(tokenizer=str(sentencepiece_model), first_token="eos")
    export = exported(tmp_path / "export", model, to="hf", options=options)
    results, samples = run_lm_eval(export, tmp_path)

    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    right, right_by_length = [], []
    for question, sample in zip(QUESTIONS, samples, strict=True):
        given, choices = question["question"], question["choices"]
        n_given = 1 + len(processor.encode(given))
        ids = [[EOS, *processor.encode(given + choice)] for choice in choices]
        expected = [log_likelihood(model, choice_ids, n_given=n_given) for choice_ids in ids]
        found = [float(response[0]) for response in sample["filtered_resps"]]
        assert found == pytest.approx(expected, rel=1e-5), question
        by_length = [value / len(choice) for value, choice in zip(expected, choices, strict=True)]
        right.append(expected.index(max(expected)) == question["answer"])
        right_by_length.append(by_length.index(max(by_length)) == question["answer"])
    assert results["acc,none"] == pytest.approx(sum(right) / len(right))
    assert results["acc_norm,none"] == pytest.approx(sum(right_by_length) / len(right_by_length))
    assert {True, False} == set(right) == set(right_by_length)  # otherwise the accuracies would show little
    assert right != right_by_length
