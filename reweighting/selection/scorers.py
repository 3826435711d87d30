"""Who scores the candidates: a model on this machine, or one behind a server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..records.samples import CandidatesSample
from ..system.checkpoints.fingerprint import fingerprint
from ..system.checkpoints.opening import saved_head
from .identity import SAMPLES_FILE

if TYPE_CHECKING:
    from ..reward_model import RewardModel


class Scorer(Protocol):
    """A reward model, wherever it is.

    ``fingerprint`` tells models apart; ``step_pattern`` is the one it was trained with.
    """

    fingerprint: str
    step_pattern: str | None

    def score(
        self, samples: Sequence[CandidatesSample], folder: Path, aggregations: Sequence[str]
    ) -> list[dict]:
        """Score the candidates of all questions and choose among them.

        Args:
            folder: gets the samples; what an earlier run has scored there is used.

        Returns:
            The line of each question, see :func:`~.results.line_of`.

        Raises:
            FileError: the folder holds a line that is not what was written for its question.
            ServerError: a server is gone, or has not given all scores.
            UnusableServerError: nothing can be sent to the server.
        """
        ...


class LocalScorer:
    """A :class:`Scorer` on this machine.

    Args:
        arguments: the flags of :func:`~.command.add_scoring_flags`.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.step_pattern: Any = saved_head(arguments.weights_path).get("step_pattern")
        self.fingerprint = fingerprint(arguments.weights_path)
        self._arguments = arguments
        self._model: RewardModel | None = None  # opened when it is needed

    def score(
        self, samples: Sequence[CandidatesSample], folder: Path, aggregations: Sequence[str]
    ) -> list[dict]:
        # Takes seconds: the records are read and checked without it.
        from ..reward_model import RewardModel
        from .results import score_questions

        a = self._arguments
        if self._model is None:
            self._model = RewardModel.from_pretrained(
                a.weights_path, device=a.device, step_pattern=a.step_pattern
            ).eval()
        path = folder / SAMPLES_FILE
        limits = (a.max_tokens_per_batch, a.precision)
        return score_questions(self._model, samples, path, aggregations, *limits, title=folder.name)
