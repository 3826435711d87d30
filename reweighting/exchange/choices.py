"""The choices of a selection, read from its ``samples.jsonl``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..system.files import FileError, read_json_lines


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# Fields of a selection's lines that are read here, and what they must be.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "question": (lambda value: isinstance(value, str), "text"),
    "answer": (lambda value: isinstance(value, str | None), "text or null"),
    "candidates": (_is_texts, "a list of texts"),
    "chosen": (lambda value: isinstance(value, dict), "an object"),
    "benchmark": (lambda value: isinstance(value, dict | None), "an object or null"),
    "choices": (lambda value: value is None or _is_texts(value), "a list of texts or null"),
}


def read_choices(samples: Path, aggregation: str) -> list[dict]:
    """The lines of a selection, each with the chosen response as ``prediction``.

    Args:
        aggregation: whose choice.

    Raises:
        FileError: the file is missing or broken, or a line was not written by a selection or holds
            no choice by this aggregation.
    """
    lines = []
    for number, _, line in read_json_lines(samples):
        where = f"{samples}: line {number}"
        if not isinstance(line, dict):
            raise FileError(f"{where}: no line of a selection: must be an object")
        for name, (holds, kind) in _FIELDS.items():
            if not holds(line.get(name)):
                raise FileError(f"{where}: no line of a selection: '{name}' must be {kind}")
        if aggregation not in line["chosen"]:
            raise FileError(f"{where}: no '{aggregation}' among {', '.join(line['chosen'])}")
        index, candidates = line["chosen"][aggregation], line["candidates"]
        if type(index) is not int or not 0 <= index < len(candidates):
            raise FileError(f"{where}: the choice of '{aggregation}' is no candidate")
        lines.append({**line, "prediction": candidates[index]})
    return lines
