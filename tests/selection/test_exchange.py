"""Files of VLMEvalKit and lm-eval, there and back."""

from __future__ import annotations

import base64
import csv
import json
import subprocess
import sys

import pytest

from reweighting.exchange import __main__ as exchange
from reweighting.exchange.vlmevalkit import read_table
from reweighting.records.reader import RecordReader, load_candidates
from reweighting.selection import results
from tests.conftest import REPOSITORY

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


def test_vlmevalkit_becomes_candidates(benchmark, tmp_path, capsys):
    output = tmp_path / "candidates.json"
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(output)]
    assert exchange.main([*benchmark, *flags]) == 0
    assert capsys.readouterr().out == f"2 questions with 2 candidates each written to {output}\n"
    first, second = load_candidates(RecordReader(str(output), str(tmp_path)))
    assert first.question == "Which\ncolour?\nA. red\nB. blue" and first.dataset == "colours"
    assert first.candidates == ["Step 1: x.\nFinal answer: B", "Final answer: red"]
    assert first.true_false == [True, False]
    assert second.true_false == [True, True]  # the first run gives only its answer
    assert second.images == first.images and (tmp_path / "images" / "3.png").read_bytes() == PNG


def test_broken_tables_are_named(benchmark, tmp_path, capsys):
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(tmp_path / "out.json")]
    short = write_tsv(tmp_path / "short.tsv", ["index", "prediction"], ["3", "B"])
    assert exchange.main([*benchmark, short, *flags]) == 2
    assert "short.tsv: no prediction for index 8; --skip_missing" in capsys.readouterr().err
    binary = tmp_path / "binary.tsv"
    binary.write_bytes(b"index\tprediction\n1\t\xff\n")
    assert exchange.main([*benchmark, str(binary), *flags]) == 2
    assert "binary.tsv: not UTF-8 text" in capsys.readouterr().err
    empty = write_tsv(tmp_path / "empty.tsv", ["index", "answer"], ["3", "B"])
    assert exchange.main([*benchmark, empty, *flags]) == 2
    assert "empty.tsv: column 'prediction' is missing" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_an_index_of_two_rows_is_refused(benchmark, tmp_path, capsys):
    """Both rows would get the image and the prediction of the later one."""
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(tmp_path / "out.json")]
    double = write_tsv(tmp_path / "double.tsv", ["index", "prediction"], *[["3", "B"]] * 2)
    assert exchange.main([*benchmark, double, *flags]) == 2
    assert "double.tsv: column 'index': 3 is that of 2 rows" in capsys.readouterr().err
    header = ["index", "image_path", "question", "answer"]
    rows = [["3", "a.png", "What?", "B"], ["3", "b.png", "Which?", "A"]]
    table = write_tsv(tmp_path / "twice.tsv", header, *rows)
    flags = ["from-vlmevalkit", "--benchmark", table, "--predictions", double, *flags]
    assert exchange.main(flags) == 2
    assert "twice.tsv: column 'index': 3 is that of 2 rows" in capsys.readouterr().err
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
    rows = read_table(output, ("index", "answer", "prediction"))
    assert [row["prediction"] for row in rows] == ["no", "Step 1: 2\tand 2.\nFinal answer: 4"]
    assert exchange.main(["to-lm-eval", *flags]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [sample["exact_match"] for sample in found] == [0.0, 1.0]
    assert found[1]["filtered_resps"] == ["4"] and found[0]["doc"] == {"question": "Q0?"}
    assert exchange.main(["to-lm-eval", *flags, "--aggregation", "max"]) == 2
    assert "no 'max' among mean_log_odds, min" in capsys.readouterr().err


def test_predictions_are_read_from_spreadsheets(benchmark, tmp_path, capsys):
    """What VLMEvalKit writes by default: numbers as numbers, empty cells, long texts."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in (
        ["index", "question", "prediction"],
        [3, "Which\ncolour?", "Step 1: x.\nFinal answer: B"],
        [8.0, None, 12],
    ):
        book.active.append(row)
    sheet, output = tmp_path / "run.xlsx", tmp_path / "out.json"
    book.save(sheet)
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(output)]
    assert exchange.main([*benchmark, str(sheet), *flags]) == 0
    first, second = json.loads(output.read_text())
    assert first["candidates"][2] == "Step 1: x.\nFinal answer: B"
    assert second["candidates"][2] == "12"
    capsys.readouterr()
    for content, why in ((b"no sheet", "no xlsx table"), (sheet.read_bytes()[:900], "no xlsx")):
        sheet.write_bytes(content)
        assert exchange.main([*benchmark, str(sheet), *flags]) == 2
        assert f"{sheet}: {why}" in capsys.readouterr().err


def test_without_the_package_for_spreadsheets_the_file_is_named(benchmark, tmp_path, capsys):
    script = (
        "import sys; sys.modules['openpyxl'] = None\n"  # as where it is not installed
        "from reweighting.exchange.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = [str(tmp_path / "run.xlsx"), "--image_dir", str(tmp_path), "--output", "out.json"]
    command = [sys.executable, "-c", script, *benchmark, *flags]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 2
    assert "run.xlsx: xlsx needs a package: pip install openpyxl" in found.stderr


def test_missing_predictions_leave_their_questions_out_and_are_counted(benchmark, tmp_path, capsys):
    output = tmp_path / "out.json"
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(output), "--skip_missing"]
    short = write_tsv(tmp_path / "short.tsv", ["index", "prediction"], ["3", "B"])
    assert exchange.main([*benchmark, short, *flags]) == 0
    said = capsys.readouterr()
    assert f"{short}: no prediction for 1 question\n" in said.err
    assert "bench.tsv: 1 question of 2 left out" in said.err
    assert said.out == f"1 question with 3 candidates each written to {output}\n"
    assert [record["benchmark"]["index"] for record in json.loads(output.read_text())] == ["3"]
    none = write_tsv(tmp_path / "none.tsv", ["index", "prediction"], ["9", "B"])
    assert exchange.main([*benchmark, none, *flags]) == 2
    assert "no question is left" in capsys.readouterr().err


def test_options_keep_their_letters_and_rows_may_have_several_images_or_none(tmp_path, capsys):
    encoded = base64.b64encode(PNG).decode()
    table = write_tsv(
        tmp_path / "bench.tsv",
        ["index", "image", "question", "A", "B", "C", "D", "answer"],
        ["../0", str([encoded, encoded]), "Which?", "", "p", "q", "r", "D"],
        ["1", json.dumps([encoded]), "Which?", "p", "", "q", "", "C"],
        ["2", "", "Which?", "p", "", "q", "", "C"],
    )
    run = write_tsv(
        tmp_path / "run.tsv",
        ["index", "prediction"],
        ["../0", "Final answer: r"],
        ["1", "Final answer: C"],
        ["2", "Final answer: C"],
    )
    output, images = tmp_path / "out.json", tmp_path / "images"
    files = ["--benchmark", table, "--predictions", run, "--output", str(output)]
    assert exchange.main(["from-vlmevalkit", *files, "--image_dir", str(images)]) == 0
    assert "1 question without an image: text alone" in capsys.readouterr().err
    first, second, third = load_candidates(RecordReader(str(output), str(tmp_path)))
    assert [len(sample.images) for sample in (first, second, third)] == [2, 1, 0]
    assert first.question == "Which?\nB. p\nC. q\nD. r" and first.true_false == [True]
    assert second.question == "Which?\nA. p\nC. q" and second.true_false == [True]
    # An index that is not a plain file name does not become one.
    assert len(list(images.iterdir())) == 3 and not list(tmp_path.glob("*.png"))


def test_a_benchmark_comes_back_with_its_own_columns(benchmark, tmp_path):
    candidates, output = tmp_path / "candidates.json", tmp_path / "out.tsv"
    flags = ["--image_dir", str(tmp_path / "images"), "--output", str(candidates)]
    assert exchange.main([*benchmark, *flags]) == 0
    samples = select_first(candidates, tmp_path)
    assert exchange.main(["to-vlmevalkit", "--samples", samples, "--output", str(output)]) == 0
    rows = read_table(output, ())
    assert list(rows[0]) == ["index", "question", "A", "B", "answer", "category", "prediction"]
    assert [row["index"] for row in rows] == ["3", "8"]
    assert rows[0]["question"] == "Which\ncolour?" and rows[0]["B"] == "blue"
    assert rows[0]["prediction"] == "Step 1: x.\nFinal answer: B"


def select_first(candidates, tmp_path) -> str:
    """The file of a selection that chose the first candidate of every question."""
    samples = load_candidates(RecordReader(str(candidates), str(tmp_path)))
    path = tmp_path / "samples.jsonl"
    lines = [
        results.line_of(
            sample, [[1.0 - k] for k in range(len(sample.candidates))], ["mean_log_odds"]
        )
        for sample in samples
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_lm_eval_documents_are_taken_once_and_come_back(tmp_path, capsys):
    (tmp_path / "i.png").write_bytes(PNG)
    line = {
        "doc_id": 17,
        "doc": {"question": "How\u2028many?", "image_path": "i.png", "subject": "sums"},
        "target": ["4", "four"],
        "resps": [["Final answer: four"], ["Final answer: 5"]],
    }
    samples, output = tmp_path / "log.jsonl", tmp_path / "candidates.json"
    rows = [{**line, "filter": name} for name in ("strict", "flexible")] + [{**line, "doc_id": 3}]
    samples.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert exchange.main(["from-lm-eval", "--samples", str(samples), "--output", str(output)]) == 0
    assert "1 line with a document of another line, for another filter" in capsys.readouterr().err
    first, _ = load_candidates(RecordReader(str(output), str(tmp_path)))
    assert first.answer == "4" and first.true_false == [True, False]
    back = tmp_path / "back.jsonl"
    flags = ["--samples", select_first(output, tmp_path), "--output", str(back)]
    assert exchange.main(["to-lm-eval", *flags]) == 0
    found = [json.loads(text) for text in back.read_text().split("\n")[:-1]]
    assert [sample["doc_id"] for sample in found] == [17, 3]
    assert found[0]["doc"] == line["doc"] and found[0]["target"] == ["4", "four"]
    assert [sample["exact_match"] for sample in found] == [1.0, 1.0]
    samples.write_text(json.dumps(line) + "\n" + json.dumps({**line, "resps": [["5"]]}) + "\n")
    assert exchange.main(["from-lm-eval", "--samples", str(samples), "--output", str(output)]) == 2
    assert "line 2: document 17 has other responses than before" in capsys.readouterr().err


def test_lm_eval_documents_have_several_images_or_none(tmp_path, capsys):
    images: list = [["a.png", "b.png"], ["a.png"], "a.png", None, []]
    docs = [{"question": f"What is {n}?", "image_path": i} for n, i in enumerate(images)]
    docs.append({"question": "What is 5?"})
    rows = [{"doc_id": n, "doc": d, "target": "4", "resps": ["4"]} for n, d in enumerate(docs)]
    samples, output = tmp_path / "log.jsonl", tmp_path / "candidates.json"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["from-lm-eval", "--samples", str(samples), "--output", str(output)]
    assert exchange.main(argv) == 0
    assert "3 documents without an image: text alone" in capsys.readouterr().err
    found = [record["image_path"] for record in json.loads(output.read_text())]
    assert found == [["a.png", "b.png"], "a.png", "a.png", None, None, None]
    docs[0]["image_path"] = ["a.png", 3]
    samples.write_text(json.dumps(rows[0]) + "\n")
    assert exchange.main(argv) == 2
    assert "line 1: field 'doc.image_path' must be text" in capsys.readouterr().err


def test_lines_that_are_none_of_a_selection_are_named(tmp_path, capsys):
    samples = tmp_path / "samples.jsonl"
    flags = ["to-lm-eval", "--samples", str(samples), "--output", str(tmp_path / "out.jsonl")]
    for text, why in (
        ("{}\n", "line 1: no line of a selection"),
        ("[1]\n", "line 1: no line of a selection"),
        ("{\n", "line 1: not JSON"),
    ):
        samples.write_text(text)
        assert exchange.main(flags) == 2
        assert why in capsys.readouterr().err
    good = {"question": "Q?", "answer": "B", "candidates": ["A"], "chosen": {"mean_log_odds": 0}}
    for change in (
        *({"benchmark": 5}, {"benchmark": ["index"]}, {"candidates": [7]}, {"candidates": "A"}),
        *({"chosen": [["mean_log_odds", 0]]}, {"chosen": 0}, {"choices": "AB"}, {"question": None}),
        *({"answer": 5}, {"chosen": {"mean_log_odds": 1}}, {"chosen": {"mean_log_odds": True}}),
    ):
        samples.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
        for direction in ("to-lm-eval", "to-vlmevalkit"):
            assert exchange.main([direction, *flags[1:]]) == 2
            [said] = capsys.readouterr().err.splitlines()
            name = "choice of" if change.get("chosen") and "chosen" not in said else ""
            assert "line 2: " in said and (name or next(iter(change))) in said
    assert exchange.main([*flags[:2], str(tmp_path / "none"), *flags[3:]]) == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_an_option_s_text_is_right_in_samples_for_lm_eval_too(tmp_path):
    line = {
        "question": "Which?\nA. red\nB. dark blue",
        "answer": "B",
        "choices": ["red", "dark blue"],
        "candidates": ["dark blue", "Final answer: dark blue"],
    }
    samples, output = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    rows = [{**line, "chosen": {"mean_log_odds": n}} for n in range(2)]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert exchange.main(["to-lm-eval", "--samples", str(samples), "--output", str(output)]) == 0
    found = [json.loads(text) for text in output.read_text().splitlines()]
    assert [row["filtered_resps"] for row in found] == [["dark blue"]] * 2
    assert [row["exact_match"] for row in found] == [1.0, 1.0]
