"""Runs on records that have no image, one or two."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

import main as program
from benchmarks.bilevel import in_a_process
from benchmarks.memory import run
from reweighting.records.dataset import load_data
from reweighting.reward_model import RewardModel
from reweighting.selection import __main__ as selection
from reweighting.training.arguments import parse_arguments
from reweighting.training.build import make_encoder
from reweighting.training.dry_run import largest_batches
from tests.conftest import command
from tests.support.backbones import make_backbone
from tests.support.mixed import write_mixed
from tests.training.test_training import assert_same_run, metrics_of, train

QUESTION = "Which colour is larger?"
RESPONSES = ["Step 1: look.\nStep 2: it is red.", "Step 1: look.\nStep 2: it is blue."]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("mixed") / "data")


@pytest.fixture(scope="module")
def finished(mixed, tmp_path_factory):
    return train(mixed, tmp_path_factory.mktemp("finished") / "run")


def texts_of(dataset: Path, folder: Path) -> Path:
    """The records of a data set without their images."""
    for file in ("train.json", "meta.json"):
        records = json.loads((dataset / file).read_text())
        records = [{**record, "image_path": ""} for record in records]
        (folder / file).write_text(json.dumps(records))
    return folder


def test_a_run_learns_and_resumes(mixed, finished, tmp_path):
    lines = metrics_of(finished)
    assert all(line["loss"] > 0 for line in lines) and lines[-1]["hypergradient_norm"] > 0
    assert lines[-1]["weights"] != lines[0]["weights"]
    run = train(mixed, tmp_path / "run", "--iteration_num", "3")
    train(mixed, run, "--resume", "--num_workers", "2")  # batches come from other processes
    assert_same_run(run, finished)


@pytest.mark.parametrize(
    "flags",
    [
        ["--score_head", "plus_minus", "--hypergradient_batches", "all"],
        ["--batch_by", "cot", "--gradient_checkpointing"],
        ["--hypergradient", "darts", "--gradient_accumulation", "2"],
        ["--reweighting", "instance_net"],
    ],
    ids=["plus-minus", "chains", "darts", "net"],
)
def test_other_kinds_of_runs(mixed, tmp_path, flags):
    lines = metrics_of(train(mixed, tmp_path / "run", "--iteration_num", "4", *flags))
    assert lines[-1]["hypergradient_norm"] > 0


@pytest.mark.parametrize(
    "name", ["qwen3_vl", "internvl", "llava_onevision", "llava_onevision-llama"]
)
def test_other_backbones(mixed, tmp_path, name):
    """Forward mode of each, that of the last one prompt by prompt."""
    model = make_backbone(name, tmp_path / "model")
    flags = ["--reward_model", str(model), "--iteration_num", "4"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of separate forwards
        lines = metrics_of(train(mixed, tmp_path / "run", *flags))
    assert lines[-1]["hypergradient_norm"] > 0 and lines[-1]["parameters_moved"] > 0.5


def test_texts_alone_train_too(mixed, tmp_path, capsys):
    lines = metrics_of(train(texts_of(mixed, tmp_path), tmp_path / "run", "--iteration_num", "4"))
    assert lines[-1]["hypergradient_norm"] > 0
    said = capsys.readouterr().err
    number = len(json.loads((mixed / "train.json").read_text()))
    expected = f"train.json: {number} of {number} records name no image: text alone"
    assert expected in said and "meta.json: 24 of 24 records name no image" in said


def test_the_number_of_records_without_an_image_is_said_once(mixed, tmp_path, capsys):
    assert program.main(command(mixed, tmp_path / "run", "--dry_run")) == 0
    said = capsys.readouterr()
    found = re.findall(r"(\w+\.json): (\d+) of (\d+) records name no image", said.err)
    assert [name for name, *_ in found] == ["train.json", "meta.json"]
    assert found[1][1:] == ("8", "24") and "estimated peak memory" in said.out


def test_the_largest_batches_are_sought_by_tokens_and_by_pixels(mixed, dataset, tmp_path):
    def largest(folder, *flags: str):
        arguments = parse_arguments(command(folder, tmp_path / "run", *flags))
        data = load_data(arguments, progress=False)
        return largest_batches(arguments, data, make_encoder(arguments, data.system))

    assert len(largest(dataset)) == 1
    (by_tokens, _), (by_pixels, chains) = largest(mixed, "--batch_size", "2")
    shown = [sum(map(bool, batch.prompts.images)) for batch in (by_tokens, by_pixels)]
    assert shown[1] == 2
    pixels = [
        sum(image["pixel_values"].numel() for image in batch.prompts.images if image)
        for batch in (by_tokens, by_pixels)
    ]
    assert pixels[0] < pixels[1] and all(chains.prompts.images)


@pytest.mark.parametrize(
    ("texts", "flags"),
    [
        (False, ["--batch_size", "8", "--meta_batch_size", "4"]),
        (False, ["--batch_by", "cot", "--batch_size", "6", "--gradient_checkpointing"]),
        (True, ["--batch_size", "8", "--meta_batch_size", "4"]),
    ],
    ids=["mixed", "mixed-checkpointed", "texts"],
)
def test_estimated_memory_is_the_measured_peak(mixed, tmp_path, texts, flags):
    folder = texts_of(mixed, tmp_path) if texts else mixed
    estimate, measured = in_a_process(run, command(folder, tmp_path / "run", *flags), 4)
    assert estimate == pytest.approx(measured, rel=0.15)


def test_selection(mixed, finished, tmp_path, capsys):
    """Scores are those of each question alone, and images that change are another selection."""
    images = [[], ["images/0.png"], ["images/0.png", "images/1.png"], None]
    records = [{"question": QUESTION, "image_path": i, "candidates": RESPONSES} for i in images]
    records[3].pop("image_path")
    records[3]["question"] = "Another question?"
    file = tmp_path / "test.json"
    file.write_text(json.dumps(records))
    argv = ["--weights_path", str(finished), "--candidates", str(file)]
    argv += ["--output_dir", str(tmp_path / "out"), "--image_root", str(mixed)]
    argv += ["--device", "cpu", "--precision", "fp32"]
    assert selection.main(argv) == 0
    assert "2 of 4 records name no image: text alone" in capsys.readouterr().err
    lines = (tmp_path / "out" / "test" / "samples.jsonl").read_text().splitlines()
    model = RewardModel.from_pretrained(finished, device="cpu")
    for line, record in zip(map(json.loads, lines), records, strict=True):
        shown = [mixed / path for path in record.get("image_path") or ()]
        alone = [model.log_odds(shown, record["question"], [r])[0] for r in RESPONSES]
        for ours, theirs in zip(line["step_log_odds"], alone, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    assert selection.main(argv) == 0  # nothing is left to do
    assert (tmp_path / "out" / "test" / "samples.jsonl").read_text().splitlines() == lines


def test_validation_during_a_run(mixed, tmp_path):
    images = [None, "images/0.png", ["images/0.png", "images/1.png"]]
    records = [
        {
            "question": QUESTION,
            "image_path": i,
            "candidates": RESPONSES,
            "true_false": [True, False],
        }
        for i in images
    ]
    (tmp_path / "test.json").write_text(json.dumps(records))
    flags = ["--eval_candidates", str(tmp_path / "test.json"), "--eval_every", "2"]
    run = train(mixed, tmp_path / "run", "--iteration_num", "2", *flags)
    [line] = (run / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["iteration"] == 2
