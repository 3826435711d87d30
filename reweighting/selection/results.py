"""What a selection writes: a line per question, and the accuracies and tables from the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..records.answers.comparison import unreadable, unreadable_note
from ..records.samples import CandidatesSample
from ..reward_model.aggregation import AGGREGATIONS, LogOdds, aggregate, select
from ..reward_model.model import RewardModel
from ..reward_model.scoring import score_candidates
from ..system.files import (
    FileError,
    complete_lines,
    is_number,
    json_line,
    replacing,
    write_records,
)
from .best_of_n import Pool, evaluate, interval


def score_questions(
    model: RewardModel,
    samples: Sequence[CandidatesSample],
    path: Path,
    aggregations: Sequence[str],
    max_tokens_per_batch: int,
    precision: str,
    title: str = "",
) -> list[dict]:
    """Score the candidates of all questions and choose among them, continuing where ``path`` ends.

    Only whole batches are continued: the questions that share a forward pass can change each
    other's last digits, and a resumed run must write the same file as an undisturbed one.

    Args:
        path: gets one JSON line per question.
        title: of the progress bar.

    Returns:
        All lines of the file.

    Raises:
        FileError: ``path`` holds a line that is not what was written for its question.
    """
    lines = _complete_batches(path, samples)
    with replacing(path) as file:
        file.writelines(map(json_line, lines))
    batch_number = lines[-1]["batch"][0] + 1 if lines else 0
    rest = samples[len(lines) :]
    batches = score_candidates(model, rest, max_tokens_per_batch, precision)
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(samples), initial=len(lines), desc=title, unit="question") as bar,
    ):
        for batch in batches:
            new = []
            for log_odds in batch:
                sample = samples[len(lines) + len(new)]
                line = line_of(sample, log_odds, aggregations)
                new.append({"batch": [batch_number, len(batch)], **line})
            file.write("".join(map(json_line, new)))
            file.flush()
            lines += new
            batch_number += 1
            bar.update(len(new))
    return lines


def write_lines(
    samples: Sequence[CandidatesSample],
    log_odds: Sequence[LogOdds],
    path: Path,
    aggregations: Sequence[str],
) -> list[dict]:
    """Choose among the candidates of all questions, whose scores are there.

    Args:
        path: gets one JSON line per question, in place of those that it has.

    Returns:
        All lines of the file.
    """
    lines = [
        {"batch": [number, 1], **line_of(sample, found, aggregations)}
        for number, (sample, found) in enumerate(zip(samples, log_odds, strict=True))
    ]
    write_records(path, lines, lines=True)
    return lines


def line_of(sample: CandidatesSample, log_odds: LogOdds, aggregations: Sequence[str]) -> dict:
    """What is written about a question: the record, the scores, and the choices by aggregation."""
    chosen = {name: select(log_odds, name) for name in aggregations}
    line = {
        "record": sample.record,
        "question": sample.question,
        "dataset": sample.dataset,
        "answer": sample.answer,
        "candidates": sample.candidates,
        "step_log_odds": log_odds,
        "step_scores": [torch.sigmoid(torch.tensor(z)).tolist() for z in log_odds],
        # The -inf of a candidate without steps is not JSON.
        "aggregates": {
            name: [aggregate(z, name) if z else None for z in log_odds] for name in aggregations
        },
        "chosen": chosen,
    }
    if sample.benchmark is not None:
        line["benchmark"] = sample.benchmark
    if sample.choices is not None:
        line["choices"] = sample.choices
    if sample.true_false is not None:
        line["true_false"] = sample.true_false
        line["right"] = {name: sample.true_false[index] for name, index in chosen.items()}
    return line


def _is_line_of(line: object, sample: CandidatesSample) -> bool:
    """Whether a line belongs to a question and has what further lines and the table need."""
    if not isinstance(line, dict):
        return False
    batch, log_odds, chosen = (line.get(name) for name in ("batch", "step_log_odds", "chosen"))
    return (
        all(line.get(n) == getattr(sample, n) for n in ("record", "question", "candidates"))
        and line.get("true_false") == sample.true_false
        and line.get("choices") == sample.choices
        and isinstance(batch, list)
        and len(batch) == 2
        and all(type(number) is int and number >= 0 for number in batch)
        and isinstance(log_odds, list)
        and len(log_odds) == len(sample.candidates)
        and all(isinstance(z, list) and all(is_number(value) for value in z) for z in log_odds)
        and isinstance(chosen, dict)
        and bool(chosen.keys() <= AGGREGATIONS.keys())
        and all(type(i) is int and 0 <= i < len(log_odds) for i in chosen.values())
    )


def read_lines(path: Path, samples: Sequence[CandidatesSample]) -> list[dict]:
    """The lines of ``path``, one for each of the first ``samples``.

    Raises:
        FileError: a line is not what was written for its question.
    """
    lines = complete_lines(path)
    for number, line in enumerate(lines, start=1):
        if number > len(samples) or not _is_line_of(line, samples[number - 1]):
            raise FileError(
                f"{path}: line {number} is damaged or belongs to other candidates; if it is "
                "damaged, delete the file to start anew"
            )
    return lines


def _complete_batches(path: Path, samples: Sequence[CandidatesSample]) -> list[dict]:
    """The lines of all whole batches in ``path``; raises what :func:`read_lines` raises."""
    lines = read_lines(path, samples)
    if lines:
        number, size = lines[-1]["batch"]
        last = [line for line in lines if line["batch"][0] == number]
        if len(last) < size:
            lines = lines[: -len(last)]
    return lines


def accuracies(lines: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy of every method at every N, over the questions whose candidates are known to be
    right or wrong: {method: {N: numbers}}.

    ``one sample`` is the expected accuracy of one candidate, ``oracle`` that of a perfect judge,
    ``last`` that of the model used as an outcome reward model. The numbers are the mean accuracy
    over subsets of N candidates, its standard error over questions, its 95 % bootstrap interval and
    the number of questions.
    """
    pools = [
        Pool.of(
            line["candidates"],
            line["true_false"],
            line["step_log_odds"],
            list(line["chosen"]),
            line.get("choices"),
        )
        for line in lines
        if "true_false" in line
    ]
    if not pools:
        return {}
    names = ("accuracy", "standard_error", "low", "high")
    return {
        method: {
            str(size): {**dict(zip(names, interval(values), strict=True)), "questions": len(values)}
            for size, values in by_size.items()
        }
        for method, by_size in evaluate(pools).items()
    }


def table_notes(lines_by_set: dict[str, list[dict]]) -> list[str]:
    """What the table does not show: questions left out, candidates without a readable answer."""
    found = []
    for name, lines in lines_by_set.items():
        known = sum("true_false" in line for line in lines)
        if 0 < known < len(lines):
            found.append(
                f"{name}: the table covers {known:,} of {len(lines):,} questions: of the others, "
                "no right and wrong is known"
            )
        missing = sum(unreadable(line["candidates"], line.get("choices")) for line in lines)
        total = sum(len(line["candidates"]) for line in lines)
        if note := unreadable_note(missing, total):
            found.append(
                f"{name}: {note}: these have no vote, and are wrong where the answer counts"
            )
    return found


def format_table(by_set: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Accuracies in per cent with standard errors: a block per set, a row per method, a column per
    N."""
    rows = []
    for name, methods in by_set.items():
        numbers = list(next(iter(methods.values())))
        rows.append(f"{name:<24}" + "".join(f"{'N = ' + n:>14}" for n in numbers))
        for method, values in methods.items():
            cells = [
                f"{100 * values[n]['accuracy']:.1f} ± {100 * values[n]['standard_error']:.1f}"
                for n in numbers
            ]
            rows.append(f"  {method:<22}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(rows)
