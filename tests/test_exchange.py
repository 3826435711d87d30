"""Files of VLMEvalKit and lm-eval, there and back."""

from __future__ import annotations

import base64
import csv
import json

import pytest

from reweighting import exchange
from reweighting.samples import RecordReader, load_candidates

from .conftest import REPOSITORY

PNG = next((REPOSITORY / "data" / "images" / "meta").glob("*.png")).read_bytes()


def write_tsv(path, header: list[str], *rows: list[str]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows])
    return str(path)


@pytest.fixture
def benchmark(tmp_path) -> list[str]:
    header = ["index", "image", "question", "A", "B", "answer", "category"]
    encoded = base64.b64encode(PNG).decode()
    table = write_tsv(
        tmp_path / "bench.tsv",
        header,
        ["3", encoded, "Which\ncolour?", "red", "blue", "B", "colours"],
        ["8", "3", "How many?", "", "", "12", ""],
    )
    runs = [
        write_tsv(tmp_path / f"run{n}.tsv", ["index", "prediction"], ["8", last], ["3", first])
        for n, (first, last) in enumerate(
            [("Step 1: x.\nFinal answer: B", "12 cm"), ("Final answer: red", "Final answer: 12")]
        )
    ]
    return ["from-vlmevalkit", "--benchmark", table, "--predictions", *runs]


def test_vlmevalkit_becomes_candidates(benchmark, tmp_path):
    output = tmp_path / "candidates.json"
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(output)]
    assert exchange.main([*benchmark, *flags]) == 0
    first, second = load_candidates(RecordReader(str(output), str(tmp_path)))
    assert first.question == "Which\ncolour?\nA. red\nB. blue" and first.dataset == "colours"
    assert first.candidates == ["Step 1: x.\nFinal answer: B", "Final answer: red"]
    assert first.true_false == [True, False]
    assert second.true_false == [True, True]  # the first run says "12 cm" and nothing else
    assert second.image == first.image and (tmp_path / "images" / "3.png").read_bytes() == PNG


def test_broken_tables_are_named(benchmark, tmp_path, capsys):
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(tmp_path / "out.json")]
    short = write_tsv(tmp_path / "short.tsv", ["index", "prediction"], ["3", "B"])
    assert exchange.main([*benchmark, short, *flags]) == 2
    assert "short.tsv: no prediction for index 8" in capsys.readouterr().err
    empty = write_tsv(tmp_path / "empty.tsv", ["index", "answer"], ["3", "B"])
    assert exchange.main([*benchmark, empty, *flags]) == 2
    assert "empty.tsv: column 'prediction' is missing" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_lm_eval_becomes_candidates(tmp_path, capsys):
    (tmp_path / "i.png").write_bytes(PNG)
    line = {
        "doc_id": 0,
        "doc": {"problem": "Which?", "picture": "i.png"},
        "target": "red",
        "resps": [["Final answer: red", "Final answer: blue"]],
    }
    samples, output = tmp_path / "samples.jsonl", tmp_path / "candidates.json"
    samples.write_text(json.dumps(line) + "\n")
    flags = ["from-lm-eval", "--samples", str(samples), "--output", str(output)]
    fields = ["--question_field", "problem", "--image_field", "picture"]
    assert exchange.main([*flags, *fields]) == 0
    [sample] = load_candidates(RecordReader(str(output), str(tmp_path)))
    assert sample.true_false == [True, False] and sample.question == "Which?"
    assert exchange.main(flags) == 2
    assert "line 1: field 'doc.question' must be text" in capsys.readouterr().err


@pytest.fixture
def selected(tmp_path) -> str:
    lines = [
        {
            "question": f"Q{n}?",
            "answer": "4",
            "candidates": ["no", "Step 1: 2\tand 2.\nFinal answer: 4"],
            "chosen": {"mean_log_odds": n, "min": 0},
        }
        for n in range(2)
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_choices_become_predictions(selected, tmp_path, capsys):
    output = tmp_path / "out.tsv"
    flags = ["--samples", selected, "--output", str(output)]
    assert exchange.main(["to-vlmevalkit", *flags]) == 0
    rows = exchange.read_tsv(output, ("index", "answer", "prediction"))
    assert [row["prediction"] for row in rows] == ["no", "Step 1: 2\tand 2.\nFinal answer: 4"]
    assert exchange.main(["to-lm-eval", *flags]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [sample["exact_match"] for sample in found] == [0.0, 1.0]
    assert found[1]["filtered_resps"] == ["4"] and found[0]["doc"] == {"question": "Q0?"}
    assert exchange.main(["to-lm-eval", *flags, "--aggregation", "max"]) == 2
    assert "no 'max' among mean_log_odds, min" in capsys.readouterr().err
