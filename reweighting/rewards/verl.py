"""A custom reward function for verl, which calls it once a response, from several threads.

    reward.custom_reward_function.path=pkg://reweighting.rewards.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.weights_path=weights/dreamprm

Written after the loader and the reward manager of verl 0.9.1; it was never run there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..reward_model import RewardModel
from .judging import DROP, Asked, Rule, judge, open_model, right_answers

_one_at_a_time = threading.Lock()  # the model, and is_right's own worker


@lru_cache(maxsize=1)
def _opened(weights_path: str, device: str | None) -> RewardModel:
    return open_model(weights_path, device)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    weights_path: str,
    rule: str = "ps_grpo",
    aggregation: str = "mean_log_odds",
    drop: float = DROP,
    device: str | None = None,
    **_: Any,
) -> dict[str, float | str]:
    """The reward of one response and what verl logs beside it.

    Args:
        data_source: is not looked at.
        solution_str: the response as text.
        ground_truth: the right answer, see :func:`~.judging.right_answers`.
        extra_info: holds ``question`` and, if there are any, ``images`` (paths, URLs, or bytes as
            :mod:`datasets` keeps them) and ``choices``. verl has the prompt and the images as
            tokens and pixels only, so the data set must repeat them here.
        weights_path: the directory of a run.
        rule, aggregation, drop: see :class:`~.judging.Rule`.
        device: ``cuda`` if there is one, otherwise ``cpu``.

    Returns:
        ``score`` (the reward), ``aggregate``, ``lowest`` (V of the worst step, 0 without steps),
        ``dropped`` and ``acc`` (0 or 1) as numbers, so that verl averages them, and ``step_scores``
        as a JSON text, since verl cannot stack lists of different lengths. ``acc`` is missing
        where the right answer is not known; a data set should know all or none.

    Raises:
        ValueError: ``extra_info`` has no question, a setting is unusable, or ``ps_grpo`` has no
            right answer.
        What :func:`~.judging.judge` raises.
    """
    about = extra_info or {}
    if not about.get("question"):
        raise ValueError("extra_info needs the 'question' that the response answers")
    if rule == "ps_grpo" and not right_answers(ground_truth):
        raise ValueError("rule 'ps_grpo' needs the right answer as 'ground_truth'")
    images = about.get("images")
    choices = about.get("choices")
    asked = Asked(
        [] if images is None else list(images),
        about["question"],
        solution_str,
        ground_truth,
        None if choices is None else list(choices),
    )
    settings = Rule(rule, aggregation, drop)
    with _one_at_a_time:
        [one] = judge(_opened(weights_path, device), [asked], settings)
    found: dict[str, float | str] = {
        "score": float(one.reward),
        "aggregate": one.aggregate,
        "lowest": min(one.scores, default=0.0),
        "dropped": float(one.dropped),
        "step_scores": json.dumps([round(score, 4) for score in one.scores]),
    }
    return found if one.right is None else found | {"acc": float(one.right)}
