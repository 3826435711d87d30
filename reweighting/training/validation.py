"""How good the model is on held-out records while it trains, and the checkpoint where it was best.

Candidates give the accuracy of best of N, labelled steps the measures of :mod:`..evaluate`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluate.layouts import StepReader, StepRecord, has_both, load_told_steps
from ..evaluate.results import RULES, at_a_glance, scores_of
from ..records.answers.comparison import unreadable, unreadable_note
from ..records.problems import DataError
from ..records.samples import CandidatesSample
from ..reward_model.aggregation import LogOdds, select
from ..reward_model.model import RewardModel
from ..reward_model.scoring import score_candidates
from ..system.checkpoints.finding import EVALUATIONS_FILE
from ..system.files import json_line, write_text
from ..system.processes import Processes
from ..system.terminal import warning

BEST_DIRECTORY = "best"


@dataclass(frozen=True)
class LabelledSteps:
    """The chains of ``--eval_steps``, with the layout that says how they are judged."""

    layout: str
    records: list[StepRecord]


def load_eval_steps(arguments: argparse.Namespace) -> LabelledSteps | None:
    """The checked file of ``--eval_steps``, if it is given; warns of what is left out of it.

    Raises:
        DataError: a record cannot be read, or the steps are all right or all wrong.
    """
    file = arguments.eval_steps
    if not file:
        return None
    reader = StepReader.of(arguments, file, arguments.eval_image_root)
    layout, records = load_told_steps(reader)
    if not has_both(records):
        raise DataError([f"{reader.name}: --eval_steps needs both right and wrong steps"])
    for note in filter(None, [reader.left_out(), reader.text_only(records)]):
        warning(note)
    return LabelledSteps(layout, records)


class Validation:
    """Scores a validation set every so many lower steps.

    Never give it a test set: the best checkpoint is chosen by what it reports, which is the
    accuracy of best of N if there are candidates, else the AUROC of the steps.

    Args:
        samples: questions with candidates whose truth is known; there may be none.
        every: lower steps between two evaluations.
        directory: of the run; gets ``evaluations.jsonl`` and ``best/``.
        precision: of the computation.
        steps: chains with labelled steps.
        processes: that share the questions.
    """

    def __init__(
        self,
        samples: Sequence[CandidatesSample],
        every: int,
        directory: Path,
        precision: str,
        steps: LabelledSteps | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.samples = [sample for sample in samples if sample.true_false is not None]
        missing = sum(unreadable(s.candidates, s.choices) for s in self.samples)
        # What the reports of accuracies say beside them; "" where every answer can be read.
        self.note = unreadable_note(missing, sum(len(s.candidates) for s in self.samples))
        self.every = every
        self.directory = directory
        self.precision = precision
        self.steps = steps
        self.history: list[dict] = []  # one entry an evaluation, oldest first

    @property
    def best(self) -> dict | None:
        """The best evaluation so far, the earliest among equals.

        A resumed run may have evaluated something else before; such entries do not count.
        """
        if not self.samples and self.steps is None:
            return None
        known = [entry for entry in self.history if self._value(entry) is not None]
        return max(known, key=self._value, default=None)

    def _value(self, entry: dict) -> float | None:
        """What tells better evaluations from worse ones."""
        return entry.get("accuracy") if self.samples else entry.get("steps", {}).get("auroc")

    def due(self, iteration: int, last: bool) -> bool:
        """Whether to evaluate after this lower step."""
        if not self.samples and self.steps is None:
            return False
        done = self.history and self.history[-1]["iteration"] == iteration
        return (last or iteration % self.every == 0) and not done

    def run(
        self, model: RewardModel, iteration: int, write: Callable[[Path], None]
    ) -> float | None:
        """Evaluate, report, and keep the model if it is the best so far.

        Args:
            write: writes the model's files into an empty folder.

        Returns:
            the share of questions of which a right candidate is chosen; without candidates the
            AUROC of the steps.
        """
        before = self.best
        entry: dict = {"iteration": iteration}
        if self.samples:
            right = [
                sample.true_false[select(z)]
                for sample, z in zip(self.samples, self._scored(model, self.samples), strict=True)
            ]
            entry |= {"accuracy": sum(right) / len(right), "questions": len(right)}
        if self.steps is not None:
            records = self.steps.records
            log_odds = self._scored(model, [record.sample for record in records])
            rules = RULES[self.steps.layout]
            entry["steps"] = at_a_glance(records, scores_of(log_odds), rules)
        self.history.append(entry)
        value = self._value(entry)
        best = before is None or value > self._value(before)
        self.processes.together(lambda: self._write(best, write))
        return value

    def _scored(self, model: RewardModel, samples: Sequence[CandidatesSample]) -> list[LogOdds]:
        """The log-odds of every step of every candidate, by question.

        Every process scores its share of the questions.
        """
        rank, count = self.processes.rank, self.processes.count
        share = samples[rank::count]
        batches = score_candidates(model, share, precision=self.precision) if share else []
        own = [question for batch in batches for question in batch]
        if count == 1:
            return own
        found: list[LogOdds] = [[] for _ in samples]
        for other, scored in enumerate(self.processes.gather(own)):
            found[other::count] = scored
        return found

    def latest(self) -> dict[str, float]:
        """The numbers of the last evaluation that the reports of a run show."""
        entry = self.history[-1] if self.history else {}
        steps = entry.get("steps", {})
        numbers = {
            "best_of_n_accuracy": entry.get("accuracy"),
            "step_auroc": steps.get("auroc"),
            "step_macro_f1": steps.get("macro_f1"),
        }
        return {name: value for name, value in numbers.items() if value is not None}

    def _write(self, best: bool, write: Callable[[Path], None]) -> None:
        """Report, and keep the ``best`` model: the first process does it for all."""
        if self.processes.first:
            path = self.directory / EVALUATIONS_FILE
            write_text(path, "".join(map(json_line, self.history)))
            if best:
                self._keep(write)

    def state_dict(self) -> list[dict]:
        """The evaluations so far, for a checkpoint."""
        return self.history

    def load_state_dict(self, state: list[dict]) -> None:
        """Continue from a checkpoint."""
        self.history = state

    def _keep(self, write: Callable[[Path], None]) -> None:
        aside, old = (self.directory / f"{BEST_DIRECTORY}.{end}" for end in ("unfinished", "old"))
        best = self.directory / BEST_DIRECTORY
        for folder in (aside, old):
            shutil.rmtree(folder, ignore_errors=True)
        aside.mkdir()
        write(aside)
        write_text(aside / "evaluation.json", json_line(self.history[-1]))
        if best.exists():
            best.rename(old)
        aside.rename(best)
        shutil.rmtree(old, ignore_errors=True)
