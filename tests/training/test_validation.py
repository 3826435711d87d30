"""Best-of-N accuracy during training, and the checkpoint where it was best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import main as program
from reweighting.records.samples import CandidatesSample
from reweighting.reward_model import RewardModel
from reweighting.training import validation
from reweighting.training.validation import Validation
from tests.conftest import REPOSITORY, command
from tests.training.test_training import assert_same_run, metrics_of, train


@pytest.fixture(scope="module")
def candidates(dataset) -> Path:
    """Six questions of the demo's validation set, images copied to the run's own root."""
    records = json.loads((REPOSITORY / "data" / "validation.json").read_text())[:6]
    for number, record in enumerate(records):
        image = (REPOSITORY / "data" / record["image_path"]).read_bytes()
        record["image_path"] = f"images/validation{number}.png"
        (dataset / record["image_path"]).write_bytes(image)
    path = dataset / "validation.json"
    path.write_text(json.dumps(records))
    return path


def test_accuracy_is_logged_and_the_best_checkpoint_kept(dataset, candidates, tmp_path, capsys):
    flags = ["--eval_candidates", str(candidates), "--eval_every", "4"]
    run = train(dataset, tmp_path / "run", *flags)
    found = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in found] == [4, 6]  # every 4, and at the end
    assert "best of N on" in capsys.readouterr().out
    best = json.loads((run / "best" / "evaluation.json").read_text())
    assert best == max(found, key=lambda entry: entry["accuracy"])
    assert RewardModel.from_pretrained(run / "best").LN.weight.shape[0] == 1
    lines = metrics_of(run)
    assert "best_of_n_accuracy" not in lines[2]
    assert [line["best_of_n_accuracy"] for line in lines[3:]] == [
        *(found[0]["accuracy"],) * 2,
        found[1]["accuracy"],
    ]

    plain = train(dataset, tmp_path / "plain")  # evaluating changes nothing
    name = "base_model/model.safetensors"
    assert (plain / name).read_bytes() == (run / name).read_bytes()


def test_a_resumed_run_evaluates_where_it_should(dataset, candidates, tmp_path):
    flags = ["--eval_candidates", str(candidates), "--eval_every", "2"]
    whole = train(dataset, tmp_path / "whole", *flags)
    run = train(dataset, tmp_path / "run", *flags, "--iteration_num", "4")
    assert_same_run(train(dataset, run, *flags, "--resume"), whole)
    for name in ("evaluations.jsonl", "best/evaluation.json"):
        assert (run / name).read_text() == (whole / name).read_text()


def test_only_a_better_model_replaces_the_best(tmp_path, monkeypatch):
    def score(model, samples, precision):
        return [[[[float(z)] for z in model] for _ in samples]]

    monkeypatch.setattr(validation, "score_candidates", score)
    truths = [[True, False], [False, True]]
    samples = [
        CandidatesSample(n, "q", ["a", "b"], "i", t, None, None) for n, t in enumerate(truths)
    ]
    samples.append(
        CandidatesSample(3, "q", ["a"], "i", None, None, None)
    )  # truth unknown: left out
    kept = Validation(samples, 1, tmp_path, "fp32")
    write = lambda mark: lambda folder: (folder / "mark").write_text(mark)  # noqa: E731
    assert kept.run([1, 0], 1, write("first")) == 0.5
    assert kept.run([0, 1], 2, write("equal")) == 0.5
    assert (tmp_path / "best" / "mark").read_text() == "first" and kept.best["iteration"] == 1
    kept.samples = kept.samples[:1]
    assert kept.run([1, 0], 3, write("better")) == 1
    assert (tmp_path / "best" / "mark").read_text() == "better"
    assert not list(tmp_path.glob("best.*")) and not kept.due(3, last=True)


def test_a_validation_set_without_truth_is_refused(dataset, candidates, tmp_path, capsys):
    records = json.loads(candidates.read_text())
    for record in records:
        del record["true_false"], record["answer"]
    path = dataset / "unknown.json"
    path.write_text(json.dumps(records))
    flags = command(dataset, tmp_path / "run", "--eval_candidates", str(path))
    assert program.main(flags) == 2
    assert "no candidate is known to be right" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_candidates_without_a_readable_answer_are_said(dataset, candidates, tmp_path, capsys):
    records = json.loads(candidates.read_text())
    records[0]["candidates"][2] = "Step 1: I look and look."
    path = dataset / "unreadable.json"
    path.write_text(json.dumps(records))
    train(dataset, tmp_path / "run", "--eval_candidates", str(path), "--eval_every", "6")
    assert "1 of 48 candidates have no readable answer" in capsys.readouterr().out
