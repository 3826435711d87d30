"""Accuracy of best of N and of steps during training, and the checkpoint where it was best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import main as program
from reweighting.evaluate import __main__ as evaluation
from reweighting.evaluate import results as evaluation_results
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


@pytest.fixture(scope="module")
def labelled(dataset) -> Path:
    """Twelve chains of the same questions in the layout of VisualProcessBench."""
    records = json.loads((REPOSITORY / "data" / "validation.json").read_text())[:6]
    made = []
    for number, record in enumerate(records):
        for chain in (0, 1):
            text = record["candidates"][chain].partition("\nFinal answer")[0]
            labels = [1 if right else -1 for right in record["step_correct"][chain]]
            made.append(
                {
                    "image": f"images/validation{number}.png",
                    "question": record["question"],
                    "response": {"steps": text.split("\n"), "process_correctness": labels},
                    "data_source": ("MMMU", "WeMath")[number % 2],
                }
            )
    path = dataset / "labelled.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made))
    return path


def evaluations_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_steps_are_judged_as_evaluate_does_and_the_best_checkpoint_kept(
    dataset, candidates, labelled, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluation_results.measure, "__defaults__", (5,))
    monkeypatch.setenv("COLUMNS", "300")  # room for the whole progress line
    flags = ["--eval_steps", str(labelled), "--eval_every", "2", "--lr", "0.01"]
    run = train(dataset, tmp_path / "run", *flags)
    captured = capsys.readouterr()
    found = evaluations_of(run)
    assert [entry["iteration"] for entry in found] == [2, 4, 6]
    assert "accuracy" not in found[0] and len({e["steps"]["auroc"] for e in found}) == 3
    best = json.loads((run / "best" / "evaluation.json").read_text())
    assert best == max(found, key=lambda entry: entry["steps"]["auroc"])
    assert f"steps of {labelled}: AUROC {best['steps']['auroc']:.3f}" in captured.out
    assert f"step AUROC {found[-1]['steps']['auroc']:.3f}" in captured.err  # the progress line
    assert metrics_of(run)[-1]["step_auroc"] == found[-1]["steps"]["auroc"]
    assert metrics_of(run)[-1]["step_macro_f1"] == found[-1]["steps"]["macro_f1"]
    for folder, entry in ((run, found[-1]), (run / "best", best)):
        out = tmp_path / f"judged_{folder.name}"
        assert evaluation.main([
            *("--weights_path", str(folder), "--benchmark", "visualprocessbench"),
            *("--data", str(labelled), "--image_root", str(dataset), "--output_dir", str(out)),
            *("--device", "cpu", "--precision", "fp32"),
        ]) == 0  # fmt: skip
        judged = json.loads((out / "results.json").read_text())["rows"]["model"]["all steps"]
        for name in ("auroc", "average_precision", "macro_f1", "f1_right", "f1_wrong"):
            assert entry["steps"][name] == pytest.approx(judged[name]["value"], abs=1e-9)
        assert entry["steps"]["calibration_error"] == pytest.approx(
            judged["calibration_error"]["value"], abs=1e-6
        )
    plain = train(dataset, tmp_path / "plain", *flags[-2:])  # judging changes nothing
    name = "base_model/model.safetensors"
    assert (plain / name).read_bytes() == (run / name).read_bytes()


def test_candidates_come_first_and_a_resumed_run_judges_the_same(
    dataset, candidates, labelled, tmp_path
):
    flags = ["--eval_candidates", str(candidates), "--eval_steps", str(labelled)]
    flags += ["--eval_every", "2", "--lr", "0.01"]
    whole = train(dataset, tmp_path / "whole", *flags)
    found = evaluations_of(whole)
    assert {"accuracy", "steps"} <= found[0].keys()
    best = json.loads((whole / "best" / "evaluation.json").read_text())
    assert best == max(found, key=lambda entry: entry["accuracy"])
    run = train(dataset, tmp_path / "run", *flags, "--iteration_num", "4")
    assert_same_run(train(dataset, run, *flags, "--resume"), whole)
    for name in ("evaluations.jsonl", "best/evaluation.json"):
        assert (run / name).read_text() == (whole / name).read_text()
    # Other files may be given from part to part: what they did not judge does not count.
    longer = [*flags[:2], *flags[4:], "--iteration_num", "8", "--resume"]
    assert "steps" not in evaluations_of(train(dataset, run, *longer))[-1]
    longer = [*flags[2:], "--iteration_num", "10", "--resume"]
    assert "accuracy" not in evaluations_of(train(dataset, run, *longer))[-1]


def spoilt(labelled: Path, path: Path, **fields) -> Path:
    records = [json.loads(line) for line in labelled.read_text().splitlines()]
    path.write_text(json.dumps([record | fields for record in records]))
    return path


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"question": ""}, "record 1: field 'question'"),
        ({"image": "nowhere.png"}, "record 1: field 'image'"),
        ({"response": {"steps": ["a"], "process_correctness": [1]}}, "both right and wrong"),
        ({"response": {"steps": ["a"], "process_correctness": []}}, "0 labels for 1 steps"),
    ],
)
def test_steps_that_cannot_be_judged_are_refused_before_training(
    dataset, candidates, labelled, tmp_path, capsys, fields, said
):
    path = spoilt(labelled, tmp_path / "spoilt.json", **fields)
    flags = command(dataset, tmp_path / "run", "--eval_steps", str(path))
    assert program.main([*flags, "--dry_run"]) == 2
    assert program.main(flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_layout_that_nothing_tells_is_refused(dataset, tmp_path, capsys):
    flags = command(dataset, tmp_path / "run", "--eval_steps", str(dataset / "train.json"))
    assert program.main(flags) == 2
    assert "no field that tells its layout: 'step_correct' (candidates)" in capsys.readouterr().err


def test_own_candidates_serve_as_steps_too(dataset, candidates, tmp_path):
    flags = ["--eval_candidates", str(candidates), "--eval_steps", str(candidates)]
    [entry] = evaluations_of(train(dataset, tmp_path / "run", *flags))
    assert entry["steps"]["steps"] == 6 * 8 * 5 and entry["questions"] == 6


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
