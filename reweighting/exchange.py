"""Candidates from, and choices to, the result files of other evaluation tools.

    python -m reweighting.exchange from-vlmevalkit --benchmark MathVista.tsv \
        --predictions run1.tsv run2.tsv … --output candidates.json --image_dir images
    python -m reweighting.exchange from-lm-eval --samples samples_task.jsonl --image_field image \
        --output candidates.json
    python -m reweighting.exchange to-vlmevalkit --samples selected/x/samples.jsonl --output x.tsv
    python -m reweighting.exchange to-lm-eval --samples selected/x/samples.jsonl --output x.jsonl

VLMEvalKit describes a benchmark in a TSV (`index`, `question`, `image` in base64 or `image_path`,
options `A` … `J`, `answer`) and writes one `prediction` per row and run. lm-eval's `--log_samples`
writes `doc`, `target` and `resps` as JSON Lines. The way back has the chosen response as the
prediction, so that either tool's own scorer can be applied to it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import csv
import json
import sys
from pathlib import Path

from .answers import extract, same

OPTIONS = "ABCDEFGHIJ"
csv.field_size_limit(2**31 - 1)  # images are in the rows


class FormatError(Exception):
    """A file does not hold what its format promises; names file, row and column."""


def read_tsv(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a TSV file.

    Raises:
        FormatError: a needed column is missing.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        for name in needed:
            if name not in (reader.fieldnames or ()):
                raise FormatError(f"{path}: column '{name}' is missing")
        return list(reader)


def from_vlmevalkit(benchmark: Path, predictions: list[Path], image_dir: Path) -> list[dict]:
    """Candidates records from a benchmark and one file of predictions per run.

    Images in base64 are written to ``image_dir``; a value that is another row's index (as large
    benchmarks have it) stands for that row's image.
    """
    rows = read_tsv(benchmark, ("index", "question", "answer"))
    runs = [
        {row["index"]: row["prediction"] for row in read_tsv(path, ("index", "prediction"))}
        for path in predictions
    ]
    images = {row["index"]: row.get("image") or "" for row in rows}
    records = []
    for row in rows:
        index = row["index"]
        candidates = [run.get(index) for run in runs]
        for path, candidate in zip(predictions, candidates, strict=True):
            if not candidate:
                raise FormatError(f"{path}: no prediction for index {index}")
        choices = [row[letter] for letter in OPTIONS if row.get(letter)]
        question = row["question"]
        if choices:
            lettered = zip(OPTIONS, choices, strict=False)
            question += "\n" + "\n".join(f"{letter}. {choice}" for letter, choice in lettered)
        record = {
            "question": question,
            "image_path": row.get("image_path") or _image(benchmark, index, images, image_dir),
            "candidates": candidates,
            "answer": row["answer"],
            "dataset": row.get("category") or None,
        }
        records.append(record | ({"choices": choices} if choices else {}))
    return records


def _image(benchmark: Path, index: str, images: dict[str, str], image_dir: Path) -> str:
    """Write a row's image; returns its path."""
    encoded = images[index]
    if encoded in images:  # shared with another row
        index, encoded = encoded, images[encoded]
    try:
        body = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise FormatError(f"{benchmark}: index {index}: column 'image': {error}") from error
    if not body:
        raise FormatError(f"{benchmark}: index {index}: neither 'image' nor 'image_path'")
    kind = "jpg" if body.startswith(b"\xff\xd8") else "png"
    path = image_dir / f"{index}.{kind}"
    image_dir.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return str(path)


def from_lm_eval(samples: Path, question_field: str, image_field: str) -> list[dict]:
    """Candidates records from logged samples; every response of a document is a candidate."""
    records = []
    for number, text in enumerate(samples.read_text(encoding="utf-8").splitlines(), start=1):
        line = json.loads(text)
        for name in ("doc", "target", "resps"):
            if name not in line:
                raise FormatError(f"{samples}: line {number}: field '{name}' is missing")
        for name in (question_field, image_field):
            if not isinstance(line["doc"].get(name), str):
                raise FormatError(f"{samples}: line {number}: field 'doc.{name}' must be text")
        groups = [[group] if isinstance(group, str) else group for group in line["resps"]]
        responses = [response for group in groups for response in group]
        records.append(
            {
                "question": line["doc"][question_field],
                "image_path": line["doc"][image_field],
                "candidates": responses,
                "answer": str(line["target"]),
            }
        )
    return records


def chosen(samples: Path, aggregation: str) -> list[dict]:
    """Lines of ``samples.jsonl`` with the response an aggregation chose as ``prediction``."""
    lines = [json.loads(text) for text in samples.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines, start=1):
        if aggregation not in line["chosen"]:
            known = ", ".join(line["chosen"])
            raise FormatError(f"{samples}: line {number}: no '{aggregation}' among {known}")
        line["prediction"] = line["candidates"][line["chosen"][aggregation]]
    return lines


def to_vlmevalkit(lines: list[dict], output: Path) -> None:
    """Predictions as a TSV; ``index`` counts the questions from 0."""
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "question", "answer", "prediction"])
        for index, line in enumerate(lines):
            row = (line["question"], line["answer"] or "", line["prediction"])
            writer.writerow([index, *row])


def to_lm_eval(lines: list[dict], output: Path) -> None:
    """Samples as lm-eval logs them, with the final answer as the filtered response."""
    with output.open("w", encoding="utf-8") as file:
        for index, line in enumerate(lines):
            answer = extract(line["prediction"])
            sample = {
                "doc_id": index,
                "doc": {"question": line["question"]},
                "target": line["answer"],
                "resps": [[line["prediction"]]],
                "filtered_resps": [answer],
            }
            if line["answer"] is not None:
                sample["exact_match"] = float(same(answer, line["answer"]))
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The four directions and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m reweighting.exchange",
        description="Candidates from, and choices to, VLMEvalKit and lm-eval.",
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    add = directions.add_parser("from-vlmevalkit").add_argument
    add("--benchmark", type=Path, required=True, help="the benchmark's TSV")
    add("--predictions", type=Path, nargs="+", required=True, help="a TSV of predictions a run")
    add("--image_dir", type=Path, required=True, help="where images in base64 are written")
    add("--output", type=Path, required=True, help="candidates file to write")
    add = directions.add_parser("from-lm-eval").add_argument
    add("--samples", type=Path, required=True, help="logged samples")
    add("--question_field", default="question", help="of the document (default: question)")
    add("--image_field", default="image_path", help="of the document (default: image_path)")
    add("--output", type=Path, required=True, help="candidates file to write")
    for name in ("to-vlmevalkit", "to-lm-eval"):
        add = directions.add_parser(name).add_argument
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
                records = from_vlmevalkit(a.benchmark, a.predictions, a.image_dir)
            else:
                records = from_lm_eval(a.samples, a.question_field, a.image_field)
            lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
            a.output.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        else:
            write = to_vlmevalkit if a.direction == "to-vlmevalkit" else to_lm_eval
            write(chosen(a.samples, a.aggregation), a.output)
    except (FormatError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
