"""What the page shows of a selection: questions, candidates, their steps and scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..records.answers.extraction import extract
from ..records.samples import CandidatesSample
from ..reward_model.aggregation import aggregate
from ..reward_model.encoder import response_prompts
from ..selection.identity import IDENTITY_FILE, SAMPLES_FILE, contents
from ..selection.results import read_lines
from ..system import terminal
from ..system.files import FileError, complete_lines, read_json
from .page import Pictures, shown

DIGITS = 4  # of scores, after the point


def settings_of(folder: Path) -> dict[str, Any]:
    """What the results in ``folder`` belong to, see :mod:`..selection.identity`.

    Raises:
        FileError: ``folder`` holds no results of a selection.
    """
    known = folder / IDENTITY_FILE
    if not known.is_file():
        raise FileError(f"{folder}: holds no results of a selection ({IDENTITY_FILE} is missing)")
    settings = read_json(known)
    return settings if isinstance(settings, dict) else {}


def check_scored(folder: Path, file: Path, samples: Sequence[CandidatesSample]) -> None:
    """Make sure that the results in ``folder`` are of these candidates and images.

    Raises:
        FileError: they are of others.
    """
    settings = settings_of(folder)
    for name, value in contents(file, samples).items():
        if settings.get(name, value) != value:
            raise FileError(f"{folder} holds the results of other {name} than those of {file}")


def set_of_choices(
    folder: Path, samples: Sequence[CandidatesSample], pattern: str | None, pictures: Pictures
) -> list[dict[str, Any]]:
    """The questions of one file of candidates, as far as they are scored.

    Args:
        folder: with the results.
        samples: the questions.
        pattern: with which the results were made.
        pictures: get the images.

    Raises:
        FileError: the results are damaged or belong to other candidates.
    """
    path = folder / SAMPLES_FILE
    # Questions whose scores were lost have no line.
    by_record = {sample.record: sample for sample in samples}
    scored = [line.get("record") for line in complete_lines(path) if isinstance(line, dict)]
    kept = [by_record[record] for record in scored if record in by_record]
    lines = read_lines(path, kept)
    if not lines:
        raise FileError(f"{path}: no such file, or no results in it")
    if len(lines) < len(samples):
        terminal.warning(f"{path}: {len(lines):,} of {len(samples):,} questions are scored so far")
    return [
        _question(line, sample, pattern, pictures, f"{path}: line {number}")
        for number, (line, sample) in enumerate(zip(lines, kept, strict=True), start=1)
    ]


def _question(
    line: dict[str, Any],
    sample: CandidatesSample,
    pattern: str | None,
    pictures: Pictures,
    where: str,
) -> dict[str, Any]:
    candidates = []
    for index, (response, log_odds) in enumerate(
        zip(sample.candidates, line["step_log_odds"], strict=True)
    ):
        steps = _steps(sample.question, response, pattern)
        if len(steps["steps"]) != len(log_odds):
            raise FileError(
                f"{where}: candidate {index + 1} has {len(steps['steps'])} steps and "
                f"{len(log_odds)} scores; was it scored with another --step_pattern?"
            )
        candidates.append(
            {
                **steps,
                "scores": _rounded(torch.sigmoid(torch.tensor(log_odds)).tolist()),
                "log_odds": _rounded(log_odds),
                # JSON has no -inf, which an empty candidate gets.
                "totals": {
                    name: round(aggregate(log_odds, name), DIGITS) if log_odds else None
                    for name in line["chosen"]
                },
                "answer": shown(extract(response, sample.choices)),
                "right": sample.true_false[index] if sample.true_false else None,
            }
        )
    return {
        "record": sample.record,
        "question": shown(sample.question),
        "dataset": shown(sample.dataset or ""),
        "answer": shown(sample.answer or ""),
        "images": [pictures.add(image) for image in sample.images],
        "chosen": line["chosen"],
        "candidates": candidates,
    }


def _steps(question: str, response: str, pattern: str | None) -> dict[str, Any]:
    """The steps of a response as they were scored, and what stands before and after them."""
    prompts = response_prompts(question, response, pattern)
    steps = prompts[-1].steps if prompts else ()
    start = response.find("".join(steps))
    end = start + len("".join(steps))
    return {
        "before": shown(response[:start].strip()),
        "steps": [shown(step.strip()) for step in steps],
        "after": shown(response[end:].strip()),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
