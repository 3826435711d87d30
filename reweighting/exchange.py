"""Candidates from, and choices to, the result files of other evaluation tools.

VLMEvalKit describes a benchmark in a TSV (`index`, `question`, `image` in base64 or `image_path`,
options `A` … `J`, `answer`) and writes one `prediction` per row and run, as xlsx or TSV. lm-eval's
`--log_samples` writes `doc`, `target` and `resps` as JSON Lines. The way back has the chosen
response as the prediction, so that either tool's own scorer can be applied to it; what the
benchmark says of a question beside it (its own index, options, category, document) goes along in
the field `benchmark` of candidates records and of a selection's `samples.jsonl`.
"""

from __future__ import annotations

import argparse
import ast
import base64
import binascii
import csv
import hashlib
import io
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import files, terminal
from .records.answers.comparison import is_right, same
from .records.answers.extraction import extract
from .terminal import Parser

EXAMPLES = """examples:
  python -m reweighting.exchange from-vlmevalkit --benchmark MathVista.tsv \\
      --predictions run1.xlsx run2.xlsx --image_dir images --output candidates.json
  python -m reweighting.exchange from-lm-eval --samples samples_task.jsonl \\
      --image_field image --output candidates.json
  python -m reweighting.exchange to-vlmevalkit --samples selected/x/samples.jsonl --output x.tsv
  python -m reweighting.exchange to-lm-eval --samples selected/x/samples.jsonl --output x.jsonl
"""
OPTIONS = "ABCDEFGHIJ"
IMAGE_COLUMNS = ("image", "image_path")  # not carried along: an image is in the record
_FILE_NAME = re.compile(r"\w[\w.-]{0,99}")
csv.field_size_limit(2**31 - 1)  # images are in the rows


class FormatError(Exception):
    """A file does not hold what its format promises; names file, row and column."""


def read_table(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a TSV or xlsx file, all cells as text.

    Raises:
        FormatError: it cannot be read as such a file, or a needed column is missing.
        FileError: it is missing or not UTF-8 text.
    """
    if path.suffix.lower() == ".xlsx":
        header, *rows = _xlsx_rows(path) or [[]]
    else:
        try:
            text = io.StringIO(files.read_text(path), newline="")
            header, *rows = csv.reader(text, delimiter="\t") or [[]]
        except (csv.Error, ValueError) as error:
            raise FormatError(f"{path}: no TSV table: {error}") from error
    for name in needed:
        if name not in header:
            raise FormatError(f"{path}: column '{name}' is missing")
    filled = ([*row, *[""] * (len(header) - len(row))] for row in rows if any(row))
    return [dict(zip(header, row, strict=False)) for row in filled]


def _xlsx_rows(path: Path) -> list[list[str]]:
    """The cells of the first sheet as text."""
    try:
        import openpyxl
    except ImportError as error:
        raise FormatError(f"{path}: xlsx needs a package: pip install openpyxl") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        return [[_cell(value) for value in row] for row in rows]
    except OSError as error:
        raise files.FileError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, SyntaxError) as error:
        raise FormatError(f"{path}: no xlsx table: {error}") from error


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a spreadsheet has no whole numbers
    return "" if value is None else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def lettered(question: str, options: Mapping[str, str]) -> str:
    """A question with its options under their own letters, which need not follow each other."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def from_vlmevalkit(
    benchmark: Path, predictions: Sequence[Path], image_dir: Path, skip_missing: bool = False
) -> tuple[list[dict], list[str]]:
    """Candidates records from a benchmark and one file of predictions per run, and notes.

    Images in base64 are written to ``image_dir``; a value that is another row's index (as large
    benchmarks have it) stands for that row's image. Of a list of images the first is taken.

    Args:
        skip_missing: leave out questions that a run has no prediction for.
    """
    rows = read_table(benchmark, ("index", "question", "answer"))
    _check_indices(benchmark, rows)
    runs = []
    for path in predictions:
        table = read_table(path, ("index", "prediction"))
        _check_indices(path, table)
        runs.append({row["index"]: row["prediction"] for row in table})
    images = {row["index"]: row.get("image", "") for row in rows}
    records, missing, several = [], Counter(), 0
    for row in rows:
        index = row["index"]
        candidates = [run.get(index, "") for run in runs]
        without = [path for path, text in zip(predictions, candidates, strict=True) if not text]
        if without and not skip_missing:
            raise FormatError(
                f"{without[0]}: no prediction for index {index}; --skip_missing leaves out such "
                "questions"
            )
        if without:
            missing.update(without)
            continue
        options = {letter: row[letter] for letter in OPTIONS if row.get(letter)}
        paths = _listed(row.get("image_path", ""))
        encoded = _listed(images[index])
        several += len(paths or encoded) > 1
        record = {
            "question": lettered(row["question"], options) if options else row["question"],
            "image_path": paths[0] if paths else _image(benchmark, index, images, image_dir),
            "candidates": candidates,
            "answer": row["answer"],
            "dataset": row.get("category") or None,
        }
        if options:
            last = OPTIONS.index(max(options))
            record["choices"] = [options.get(letter, "") for letter in OPTIONS[: last + 1]]
        own = {name: text for name, text in row.items() if name not in IMAGE_COLUMNS}
        records.append({**record, "benchmark": own})
    notes = [
        f"{path}: no prediction for {_count(count, 'question')}" for path, count in missing.items()
    ]
    if missing:
        left_out = _count(len(rows) - len(records), "question")
        notes.append(f"{benchmark}: {left_out} of {len(rows)} left out")
    if several:
        said = _count(several, "question")
        notes.append(f"{benchmark}: {said} with several images: the first of them is taken")
    return records, notes


def _check_indices(path: Path, rows: list[dict[str, str]]) -> None:
    """Raises FormatError if an index is another row's too: what belongs to it could not be told."""
    for index, count in Counter(row["index"] for row in rows).items():
        if count > 1:
            raise FormatError(f"{path}: column 'index': {index} is that of {count} rows")


def _listed(cell: str) -> list[str]:
    """The texts of a cell, which may be a list as Python or JSON writes it."""
    if cell.startswith("["):
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [cell]
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return value
    return [cell] if cell else []


def _image(benchmark: Path, index: str, images: dict[str, str], image_dir: Path) -> str:
    """Write a row's image; returns its path."""
    encoded = next(iter(_listed(images[index])), "")
    if encoded in images:  # shared with another row
        index, encoded = encoded, next(iter(_listed(images[encoded])), "")
    try:
        body = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{benchmark}: index {index}: column 'image': {error}") from error
    if not body:
        raise FormatError(f"{benchmark}: index {index}: neither 'image' nor 'image_path'")
    kind = "jpg" if body.startswith(b"\xff\xd8") else "png"
    name = index if _FILE_NAME.fullmatch(index) else hashlib.sha256(index.encode()).hexdigest()[:16]
    path = image_dir / f"{name}.{kind}"
    with files.replacing(path, "wb") as file:
        file.write(body)
    return str(path)


def from_lm_eval(
    samples: Path, question_field: str, image_field: str
) -> tuple[list[dict], list[str]]:
    """Candidates records from logged samples, and notes.

    Every response of a document is a candidate. A log with several filters lists a document once
    for each: it is taken once. Any of several targets makes a candidate right.
    """
    records: list[dict] = []
    known: dict[Any, list[str]] = {}
    repeated = several = 0
    for number, _, line in files.read_json_lines(samples):
        where = f"{samples}: line {number}"
        if not isinstance(line, dict):
            raise FormatError(f"{where}: must be an object")
        for name in ("doc", "target", "resps"):
            if name not in line:
                raise FormatError(f"{where}: field '{name}' is missing")
        doc = line["doc"]
        if not isinstance(doc, dict):
            raise FormatError(f"{where}: field 'doc' must be an object")
        image = doc.get(image_field)
        if isinstance(image, list) and image:
            several += len(image) > 1
            image = image[0]
        for name, value in ((question_field, doc.get(question_field)), (image_field, image)):
            if not isinstance(value, str):
                raise FormatError(f"{where}: field 'doc.{name}' must be text")
        groups = line["resps"] if isinstance(line["resps"], list) else [None]
        groups = [group if isinstance(group, list) else [group] for group in groups]
        responses = [response for group in groups for response in group]
        if not responses or not all(isinstance(response, str) for response in responses):
            raise FormatError(f"{where}: field 'resps' must be a list of responses")
        document = json.dumps(line.get("doc_id", ["line", number]))
        if document in known:
            if known[document] != responses:
                raise FormatError(f"{where}: document {document} has other responses than before")
            repeated += 1
            continue
        known[document] = responses
        targets = _targets(line["target"])
        if not targets:
            raise FormatError(f"{where}: field 'target' is empty")
        record = {
            "question": doc[question_field],
            "image_path": image,
            "candidates": responses,
            "answer": targets[0],
        }
        if len(targets) > 1:
            record["true_false"] = [
                any(is_right(response, target) for target in targets) for response in responses
            ]
        own = {name: line[name] for name in ("doc_id", "doc", "target") if name in line}
        records.append({**record, "benchmark": own})
    notes = []
    if repeated:
        said = _count(repeated, "line")
        notes.append(f"{samples}: {said} with a document of another line, for another filter")
    if several:
        said = _count(several, "line")
        notes.append(f"{samples}: {said} with several images: the first of them is taken")
    return records, notes


def _targets(target: Any) -> list[str]:
    return [str(value) for value in (target if isinstance(target, list) else [target])]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# Fields of a selection's lines that are read here, and what they must be.
_SELECTION: dict[str, tuple[Callable[[Any], bool], str]] = {
    "question": (lambda value: isinstance(value, str), "text"),
    "answer": (lambda value: isinstance(value, str | None), "text or null"),
    "candidates": (_is_texts, "a list of texts"),
    "chosen": (lambda value: isinstance(value, dict), "an object"),
    "benchmark": (lambda value: isinstance(value, dict | None), "an object or null"),
    "choices": (lambda value: value is None or _is_texts(value), "a list of texts or null"),
}


def chosen(samples: Path, aggregation: str) -> list[dict]:
    """Lines of ``samples.jsonl`` with the response an aggregation chose as ``prediction``.

    Raises:
        FormatError: a line is none of a selection, or has no choice by this aggregation.
        FileError: the file is missing or broken.
    """
    lines = []
    for number, _, line in files.read_json_lines(samples):
        where = f"{samples}: line {number}"
        if not isinstance(line, dict):
            raise FormatError(f"{where}: no line of a selection: must be an object")
        for name, (holds, kind) in _SELECTION.items():
            if not holds(line.get(name)):
                raise FormatError(f"{where}: no line of a selection: '{name}' must be {kind}")
        if aggregation not in line["chosen"]:
            raise FormatError(f"{where}: no '{aggregation}' among {', '.join(line['chosen'])}")
        index, candidates = line["chosen"][aggregation], line["candidates"]
        if type(index) is not int or not 0 <= index < len(candidates):
            raise FormatError(f"{where}: the choice of '{aggregation}' is no candidate")
        lines.append({**line, "prediction": candidates[index]})
    return lines


def to_vlmevalkit(lines: list[dict], output: Path) -> None:
    """Predictions as a TSV with all columns the benchmark had, but for the images.

    Where the lines do not know their benchmark, ``index`` counts the questions from 0.
    """
    rows = []
    for number, line in enumerate(lines):
        own = line.get("benchmark") or {}
        if "index" not in own:
            answer = line.get("answer") or ""
            own = {"index": number, "question": line["question"], "answer": answer}
        rows.append({**own, "prediction": line["prediction"]})
    columns = dict.fromkeys(name for row in rows for name in row if name != "prediction")
    with files.replacing(output) as file:
        writer = csv.DictWriter(file, [*columns, "prediction"], delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)


def to_lm_eval(lines: list[dict], output: Path) -> None:
    """Samples as lm-eval logs them, with the final answer as the filtered response.

    Where the lines do not know their documents, ``doc_id`` counts the questions from 0.
    """
    with files.replacing(output) as file:
        for index, line in enumerate(lines):
            choices = line.get("choices")
            answer = extract(line["prediction"], choices)
            own = line.get("benchmark") or {}
            target = own.get("target", line.get("answer"))
            sample = {
                "doc_id": own.get("doc_id", index),
                "doc": own.get("doc", {"question": line["question"]}),
                "target": target,
                "resps": [[line["prediction"]]],
                "filtered_resps": [answer],
            }
            if target is not None:
                sample["exact_match"] = float(
                    any(same(answer, text, choices) for text in _targets(target))
                )
            file.write(files.json_line(sample))


def build_parser() -> argparse.ArgumentParser:
    """The four directions and their flags."""
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLES}
    parser = Parser(
        prog="python -m reweighting.exchange",
        description="Candidates from, and choices to, VLMEvalKit and lm-eval.",
        **layout,
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    add = directions.add_parser("from-vlmevalkit", **layout).add_argument
    add("--benchmark", type=Path, required=True, help="the benchmark's TSV")
    add("--predictions", type=Path, nargs="+", required=True, help="xlsx or TSV, one a run")
    add("--image_dir", type=Path, required=True, help="where images in base64 are written")
    add("--skip_missing", action="store_true", help="leave out questions that a run lacks")
    add("--output", type=Path, required=True, help="candidates file to write")
    add = directions.add_parser("from-lm-eval", **layout).add_argument
    add("--samples", type=Path, required=True, help="logged samples")
    add("--question_field", default="question", help="of the document (default: question)")
    add("--image_field", default="image_path", help="of the document (default: image_path)")
    add("--output", type=Path, required=True, help="candidates file to write")
    for name in ("to-vlmevalkit", "to-lm-eval"):
        add = directions.add_parser(name, **layout).add_argument
        add("--samples", type=Path, required=True, help="samples.jsonl of a selection")
        add("--aggregation", default="mean_log_odds", help="whose choice (default: mean_log_odds)")
        add("--output", type=Path, required=True, help="file to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    a = build_parser().parse_args(argv)
    try:
        if a.direction.startswith("from"):
            if a.direction == "from-vlmevalkit":
                records, notes = from_vlmevalkit(
                    a.benchmark, a.predictions, a.image_dir, a.skip_missing
                )
            else:
                records, notes = from_lm_eval(a.samples, a.question_field, a.image_field)
            for note in notes:
                terminal.warning(note)
            if not records:
                source = a.benchmark if a.direction == "from-vlmevalkit" else a.samples
                raise FormatError(f"{source}: no question is left, nothing is written")
            files.write_records(a.output, records)
            counts = {len(record["candidates"]) for record in records}
            number = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
            what = f"{_count(len(records), 'question')} with {number} candidates each"
        else:
            write = to_vlmevalkit if a.direction == "to-vlmevalkit" else to_lm_eval
            lines = chosen(a.samples, a.aggregation)
            write(lines, a.output)
            what = f"{_count(len(lines), 'prediction')}, chosen by {a.aggregation},"
    except (FormatError, files.FileError) as error:
        terminal.error(error)
        return 2
    print(f"{what} written to {terminal.printable(a.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
