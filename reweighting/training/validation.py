"""Best-of-N accuracy on a validation set while training, and the checkpoint where it was best."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ..records.answers.comparison import unreadable, unreadable_note
from ..records.samples import CandidatesSample
from ..reward_model.aggregation import select
from ..reward_model.model import RewardModel
from ..reward_model.scoring import score_candidates
from ..system.checkpoints.finding import EVALUATIONS_FILE
from ..system.files import json_line, write_text
from ..system.processes import Processes

BEST_DIRECTORY = "best"


class Validation:
    """Scores the candidates of a validation set every so many lower steps.

    Never give it a test set: the best checkpoint is chosen by what it reports.

    Args:
        samples: questions with candidates whose truth is known.
        every: lower steps between two evaluations.
        directory: of the run; gets ``evaluations.jsonl`` and ``best/``.
        precision: of the computation.
        processes: that share the questions.
    """

    def __init__(
        self,
        samples: Sequence[CandidatesSample],
        every: int,
        directory: Path,
        precision: str,
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
        self.history: list[dict] = []  # one entry an evaluation, oldest first

    @property
    def best(self) -> dict | None:
        """The best evaluation so far, the earliest among equals."""
        return max(self.history, key=lambda entry: entry["accuracy"], default=None)

    def due(self, iteration: int, last: bool) -> bool:
        """Whether to evaluate after this lower step."""
        done = self.history and self.history[-1]["iteration"] == iteration
        return (last or iteration % self.every == 0) and not done

    def run(self, model: RewardModel, iteration: int, write: Callable[[Path], None]) -> float:
        """Evaluate, report, and keep the model if it is the best so far.

        Args:
            write: writes the model's files into an empty folder.

        Returns:
            the share of questions of which a right candidate is chosen.
        """
        own = self.samples[self.processes.rank :: self.processes.count]
        batches = score_candidates(model, own, precision=self.precision) if own else []
        log_odds = [question for batch in batches for question in batch]
        chosen = [sample.true_false[select(z)] for sample, z in zip(own, log_odds, strict=True)]
        right = [found for share in self.processes.gather(chosen) for found in share]
        accuracy = sum(right) / len(right)
        before = self.best
        self.history.append({"iteration": iteration, "accuracy": accuracy, "questions": len(right)})
        self.processes.together(lambda: self._write(before, write))
        return accuracy

    def _write(self, before: dict | None, write: Callable[[Path], None]) -> None:
        if self.processes.first:
            path = self.directory / EVALUATIONS_FILE
            write_text(path, "".join(map(json_line, self.history)))
            if before is None or self.history[-1]["accuracy"] > before["accuracy"]:
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
