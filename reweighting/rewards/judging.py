"""From responses to scores of their steps and to one reward each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..records.answers.comparison import is_right
from ..records.images import content_key, load_pixels
from ..reward_model import RewardModel
from ..reward_model.aggregation import AGGREGATIONS, aggregate

RULES = ("aggregate", "ps_grpo")
DROP = 0.3  # of a step's score, relative to the step before
HALVED = 0.5
TOKENS = 8192  # of one forward pass


@dataclass(frozen=True)
class Asked:
    """One response of the policy and what it answers.

    Args:
        images: shown before the question, see :data:`~..records.images.ACCEPTED`, or as the
            ``{"bytes": …, "path": …}`` of :mod:`datasets`.
        answer: the right one, see :func:`right_answers`.
        choices: texts of the question's options, if it has any.
    """

    images: Sequence[Any]
    question: str
    response: str
    answer: Any = None
    choices: Sequence[str] | None = None


@dataclass(frozen=True)
class Judgement:
    """What the reward model says of a response, and what follows.

    Args:
        scores: V after each step; empty if the response has no steps or cannot be scored.
        aggregate: of the chain, in [0, 1]; 0 without scores.
        right: whether the final answer is; ``None`` if the right one is not known.
        dropped: whether the score of a step falls as :func:`drops` says.
        reward: by the rule; ``None`` where the rule needs the right answer and does not have it.
    """

    scores: list[float]
    aggregate: float
    right: bool | None
    dropped: bool
    reward: float | None


@dataclass(frozen=True)
class Rule:
    """How a reward is computed.

    Args:
        name: ``aggregate``, the score of the whole chain, or ``ps_grpo``, see :func:`ps_grpo`.
        aggregation: of the steps' scores, a name in
            :data:`~..reward_model.aggregation.AGGREGATIONS`.
        drop: what ``ps_grpo`` takes for the fall of a score.

    Raises:
        ValueError: there is no such rule or aggregation, or ``drop`` is not in (0, 1].
    """

    name: str = "aggregate"
    aggregation: str = "mean_log_odds"
    drop: float = DROP

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ValueError(f"rule {self.name!r} is none of {', '.join(RULES)}")
        if self.aggregation not in AGGREGATIONS:
            known = ", ".join(AGGREGATIONS)
            raise ValueError(f"aggregation {self.aggregation!r} is none of {known}")
        if not 0 < self.drop <= 1:
            raise ValueError(f"drop must lie in (0, 1], is {self.drop}")

    def judge(self, log_odds: Sequence[float], right: bool | None) -> Judgement:
        """The judgement of a response from z after each of its steps."""
        scores = torch.sigmoid(torch.tensor(log_odds)).tolist()
        whole = probability(log_odds, self.aggregation)
        dropped = drops(scores, self.drop)
        reward = ps_grpo(right, dropped) if self.name == "ps_grpo" else whole
        return Judgement(scores, whole, right, dropped, reward)


def drops(scores: Sequence[float], drop: float = DROP) -> bool:
    """Whether a step's score is lower than that of the step before by ``drop`` of it or more."""
    return any(before - after >= drop * before for before, after in itertools.pairwise(scores))


def ps_grpo(right: bool | None, dropped: bool) -> float | None:
    """PS-GRPO's reward (arXiv 2501.04686): 1 if right, half of it if the process
    reward model doubts a step on the way, 0 if wrong; ``None`` if that is not known."""
    if right is None:
        return None
    return float(right) * (HALVED if dropped else 1.0)


def probability(log_odds: Sequence[float], aggregation: str) -> float:
    """The aggregate of a chain on the scale of V, so that it is finite: 0 without steps."""
    if not log_odds:
        return 0.0
    value = aggregate(log_odds, aggregation)
    if aggregation.endswith("log_odds"):
        return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))
    return math.exp(value) if aggregation == "product" else value


def judge(model: RewardModel, asked: Sequence[Asked], rule: Rule) -> list[Judgement]:
    """Judge responses; neighbours with the same question and images share a prefix tree.

    A response that cannot be scored, such as one of more than 1,000 steps, has no scores: a policy
    writes what it likes, and its training must go on.

    Raises:
        TypeError, ValueError: a question or an image is unusable.
        OSError: an image cannot be read.
    """
    with_pixels = [(one, [load_pixels(_source(image)) for image in one.images]) for one in asked]
    groups = [
        list(group)
        for _, group in itertools.groupby(
            with_pixels, lambda pair: (pair[0].question, *map(content_key, pair[1]))
        )
    ]
    items = [
        (pixels, one.question, [other.response for other, _ in group])
        for group in groups
        for one, pixels in group[:1]
    ]
    try:
        found = model.log_odds_many(items, TOKENS)
    except ValueError:  # find the response that is to blame
        found = [_one_by_one(model, *item) for item in items]
    log_odds = itertools.chain.from_iterable(found)
    return [rule.judge(z, _right(one)) for one, z in zip(asked, log_odds, strict=True)]


def _one_by_one(
    model: RewardModel, images: list[Any], question: str, responses: list[str]
) -> list[list[float]]:
    model.log_odds(images, question, ["."])  # raises if the question or an image is to blame
    found = []
    for response in responses:
        try:
            found += model.log_odds(images, question, [response])
        except ValueError:
            found.append([])
    return found


def _right(one: Asked) -> bool | None:
    answers = right_answers(one.answer)
    known = [is_right(one.response, answer, one.choices) for answer in answers]
    return any(known) if known else None


def right_answers(value: Any) -> list[str]:
    """The answers that count as right, as a data set holds them; none if they are not known.

    Args:
        value: a text, a number, a list or array of these, of which any is right; ``None`` or "" if
            nothing is known.

    Raises:
        TypeError: it is something else.
    """
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, (str, int, float)):
        return [str(value)]
    if hasattr(value, "tolist"):  # of numpy
        return right_answers(value.tolist())
    if isinstance(value, (list, tuple)):
        return [answer for each in value for answer in right_answers(each)]
    raise TypeError(f"an answer is a text, a number or a list of these, not {type(value).__name__}")


def _source(image: Any) -> Any:
    """An image as :mod:`datasets` holds it undecoded, as what the reward model takes."""
    if isinstance(image, Mapping):
        return image.get("bytes") or image.get("path")
    return image


def open_model(model: RewardModel | str | Path, device: str | None = None) -> RewardModel:
    """A reward model, or the one in the directory of a run, ready to score."""
    if isinstance(model, RewardModel):
        return model
    return RewardModel.from_pretrained(model, device=device).eval()
