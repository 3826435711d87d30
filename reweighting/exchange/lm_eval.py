"""lm-eval: ``--log_samples`` writes ``doc``, ``target`` and ``resps`` as JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..records.answers.comparison import is_right, same
from ..records.answers.extraction import extract
from ..system.files import FileError, json_line, read_json_lines, replacing
from .notes import count, image_path, text_only


def from_lm_eval(
    samples: Path, question_field: str, image_field: str
) -> tuple[list[dict], list[str]]:
    """Candidates records from logged samples, and notes.

    Every response to a document is a candidate. A log with several filters lists a document once
    for each filter; it is taken once. A candidate is right if it agrees with any of the targets.

    Args:
        question_field: field of the document with the question.
        image_field: field of the document with the path of the image, or a list of several. A
            document without it is text alone.

    Raises:
        FileError: the file is missing or broken, or a line is not a logged sample.
    """
    records: list[dict] = []
    known: dict[str, list[str]] = {}
    repeated = bare = 0
    for number, _, line in read_json_lines(samples):
        where = f"{samples}: line {number}"
        doc = _document(line, where)
        images = doc.get(image_field) or []
        images = images if isinstance(images, list) else [images]
        named = [(question_field, doc.get(question_field)), *((image_field, i) for i in images)]
        for name, value in named:
            if not isinstance(value, str):
                raise FileError(f"{where}: field 'doc.{name}' must be text")
        responses = _responses(line["resps"], where)
        document = json.dumps(line.get("doc_id", ["line", number]))
        if document in known:
            if known[document] != responses:
                raise FileError(f"{where}: document {document} has other responses than before")
            repeated += 1
            continue
        known[document] = responses
        targets = _targets(line["target"])
        if not targets:
            raise FileError(f"{where}: field 'target' is empty")
        record = {
            "question": doc[question_field],
            "image_path": image_path(images),
            "candidates": responses,
            "answer": targets[0],
        }
        if len(targets) > 1:
            record["true_false"] = [
                any(is_right(response, target) for target in targets) for response in responses
            ]
        own = {name: line[name] for name in ("doc_id", "doc", "target") if name in line}
        records.append({**record, "benchmark": own})
        bare += not images
    notes = text_only(samples, bare, "document")
    if repeated:
        said = count(repeated, "line")
        notes.insert(0, f"{samples}: {said} with a document of another line, for another filter")
    return records, notes


def _document(line: Any, where: str) -> dict:
    """The document of a line that has all fields of a logged sample."""
    if not isinstance(line, dict):
        raise FileError(f"{where}: must be an object")
    for name in ("doc", "target", "resps"):
        if name not in line:
            raise FileError(f"{where}: field '{name}' is missing")
    if not isinstance(line["doc"], dict):
        raise FileError(f"{where}: field 'doc' must be an object")
    return line["doc"]


def _responses(resps: Any, where: str) -> list[str]:
    """The responses of all requests of a document, in one list."""
    groups = resps if isinstance(resps, list) else [None]
    groups = [group if isinstance(group, list) else [group] for group in groups]
    responses = [response for group in groups for response in group]
    if not responses or not all(isinstance(response, str) for response in responses):
        raise FileError(f"{where}: field 'resps' must be a list of responses")
    return responses


def _targets(target: Any) -> list[str]:
    return [str(value) for value in (target if isinstance(target, list) else [target])]


def to_lm_eval(lines: list[dict], output: Path) -> None:
    """Samples as lm-eval logs them, with the final answer as the filtered response.

    Where the lines do not hold their documents, ``doc_id`` counts the questions from 0.

    Args:
        lines: as :func:`~.choices.read_choices` returns them.
    """
    with replacing(output) as file:
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
            file.write(json_line(sample))
