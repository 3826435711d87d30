"""VLMEvalKit: a benchmark is a TSV (``index``, ``question``, ``image`` in base64 or ``image_path``,
options ``A`` … ``J``, ``answer``); a run has one ``prediction`` per row, as xlsx or TSV.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import hashlib
import io
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..system.files import FileError, read_text, replacing
from .notes import count, image_path, text_only

OPTIONS = "ABCDEFGHIJ"
IMAGE_COLUMNS = ("image", "image_path")  # not carried along: the image is in the record
_FILE_NAME = re.compile(r"\w[\w.-]{0,99}")
csv.field_size_limit(2**31 - 1)  # images are in the rows


def read_table(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a TSV or xlsx file, all cells as text.

    Raises:
        FileError: it is missing or cannot be read as such a file, or a needed column is missing.
    """
    if path.suffix.lower() == ".xlsx":
        table = _xlsx_rows(path)
    else:
        try:
            text = io.StringIO(read_text(path), newline="")
            table = list(csv.reader(text, delimiter="\t"))
        except (csv.Error, ValueError) as error:
            raise FileError(f"{path}: no TSV table: {error}") from error
    header, *rows = table or [[]]
    for name in needed:
        if name not in header:
            raise FileError(f"{path}: column '{name}' is missing")
    filled = ([*row, *[""] * (len(header) - len(row))] for row in rows if any(row))
    return [dict(zip(header, row, strict=False)) for row in filled]


def _xlsx_rows(path: Path) -> list[list[str]]:
    """The cells of the first sheet as text."""
    try:
        import openpyxl
    except ImportError as error:
        raise FileError(f"{path}: xlsx needs a package: pip install openpyxl") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = book.worksheets[0].iter_rows(values_only=True)
        return [[_cell(value) for value in row] for row in rows]
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, SyntaxError) as error:
        raise FileError(f"{path}: no xlsx table: {error}") from error


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a spreadsheet has no whole numbers
    return "" if value is None else str(value)


def _indexed_table(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """As :func:`read_table`, and no two rows have the same index, by which rows are matched."""
    rows = read_table(path, ("index", *needed))
    for index, number in Counter(row["index"] for row in rows).items():
        if number > 1:
            raise FileError(f"{path}: column 'index': {index} is that of {number} rows")
    return rows


def lettered(question: str, options: Mapping[str, str]) -> str:
    """A question with its options under their own letters, some of which may be missing."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def from_vlmevalkit(
    benchmark: Path, predictions: Sequence[Path], image_dir: Path, skip_missing: bool = False
) -> tuple[list[dict], list[str]]:
    """Candidates records from a benchmark and one file of predictions per run, and notes.

    Images in base64 are written to ``image_dir``. In large benchmarks the value may be the index of
    another row instead, whose images are then meant. A row may list several images, or have none.

    Args:
        skip_missing: leave out questions that a run has no prediction for.

    Raises:
        FileError: a table cannot be read or matched, a prediction is missing, an image is no
            base64.
    """
    rows = _indexed_table(benchmark, ("question", "answer"))
    runs = [
        {row["index"]: row["prediction"] for row in _indexed_table(path, ("prediction",))}
        for path in predictions
    ]
    images = {row["index"]: row.get("image", "") for row in rows}
    records, missing, bare = [], Counter(), 0
    for row in rows:
        index = row["index"]
        candidates = [run.get(index, "") for run in runs]
        without = [path for path, text in zip(predictions, candidates, strict=True) if not text]
        if without and not skip_missing:
            raise FileError(
                f"{without[0]}: no prediction for index {index}; --skip_missing leaves out such "
                "questions"
            )
        if without:
            missing.update(without)
            continue
        paths = _listed(row.get("image_path", ""))
        paths = paths or _write_images(benchmark, index, images, image_dir)
        bare += not paths
        records.append(_record(row, candidates, paths))
    notes = [
        f"{path}: no prediction for {count(number, 'question')}" for path, number in missing.items()
    ]
    if missing:
        left_out = count(len(rows) - len(records), "question")
        notes.append(f"{benchmark}: {left_out} of {len(rows)} left out")
    return records, notes + text_only(benchmark, bare, "question")


def _record(row: Mapping[str, str], candidates: list[str], images: list[str]) -> dict:
    """The candidates record of a row; ``benchmark`` has all its columns except the images."""
    options = {letter: row[letter] for letter in OPTIONS if row.get(letter)}
    record = {
        "question": lettered(row["question"], options) if options else row["question"],
        "image_path": image_path(images),
        "candidates": candidates,
        "answer": row["answer"],
        "dataset": row.get("category") or None,
    }
    if options:
        last = OPTIONS.index(max(options))
        record["choices"] = [options.get(letter, "") for letter in OPTIONS[: last + 1]]
    own = {name: text for name, text in row.items() if name not in IMAGE_COLUMNS}
    return {**record, "benchmark": own}


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


def _write_images(
    benchmark: Path, index: str, images: dict[str, str], image_dir: Path
) -> list[str]:
    """Write the images of a row; returns their paths."""
    listed = _listed(images[index])
    if len(listed) == 1 and listed[0] in images:  # the index of another row
        index, listed = listed[0], _listed(images[listed[0]])
    name = index if _FILE_NAME.fullmatch(index) else hashlib.sha256(index.encode()).hexdigest()[:16]
    paths = []
    for place, encoded in enumerate(listed, start=1):
        try:
            body = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise FileError(f"{benchmark}: index {index}: column 'image': {error}") from error
        kind = "jpg" if body.startswith(b"\xff\xd8") else "png"
        # No index that is a file name by itself holds this sign.
        path = image_dir / (f"{name}.{kind}" if place == 1 else f"{name}~{place}.{kind}")
        with replacing(path, "wb") as file:
            file.write(body)
        paths.append(str(path))
    return paths


def to_vlmevalkit(lines: list[dict], output: Path) -> None:
    """Predictions as a TSV with all columns of the benchmark except the images.

    Where the lines do not hold their benchmark's columns, ``index`` counts the questions from 0.

    Args:
        lines: as :func:`~.choices.read_choices` returns them.
    """
    rows = []
    for number, line in enumerate(lines):
        own = line.get("benchmark") or {}
        if "index" not in own:
            answer = line.get("answer") or ""
            own = {"index": number, "question": line["question"], "answer": answer}
        rows.append({**own, "prediction": line["prediction"]})
    columns = dict.fromkeys(name for row in rows for name in row if name != "prediction")
    with replacing(output) as file:
        writer = csv.DictWriter(file, [*columns, "prediction"], delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
