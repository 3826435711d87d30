"""A reward function for TRL's ``GRPOTrainer``, as its ``reward_funcs`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..reward_model import RewardModel
from .judging import DROP, Asked, Rule, judge, open_model


def trl_reward(
    model: RewardModel | str | Path,
    rule: str = "aggregate",
    aggregation: str = "mean_log_odds",
    drop: float = DROP,
    device: str | None = None,
) -> Callable[..., list[float | None]]:
    """A function that TRL calls with a batch of completions and the columns of its data set.

    Of the columns it reads ``image`` or ``images`` (without them the images of the prompt count),
    ``question`` (without it the text of the last user turn is the question, instructions and all),
    ``answer`` and ``choices``. Besides the rewards it gives TRL the scores of all steps for its
    table of completions, and for its log the mean aggregate, the share of chains with a drop and,
    with answers, the share of right ones.

    Args:
        model: a reward model or the directory of a run.
        rule, aggregation, drop: see :class:`~.judging.Rule`.
        device: for a model that is opened here: ``cuda`` if there is one, otherwise ``cpu``.

    Raises:
        ValueError: a setting is unusable; on call: ``ps_grpo`` has no column ``answer``.
        What :func:`~.judging.judge` raises.
    """
    settings = Rule(rule, aggregation, drop)
    opened = open_model(model, device)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if rule == "ps_grpo" and "answer" not in columns:
            raise ValueError("rule 'ps_grpo' needs a column 'answer' in the data set")
        asked = [
            Asked(
                _images(columns, row, prompt),
                _cell(columns, "question", row) or _text(_last_turn(prompt)),
                _text(_last_turn(completion)),
                _cell(columns, "answer", row),
                _cell(columns, "choices", row),
            )
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        judged = judge(opened, asked, settings)
        if log_extra:
            log_extra(f"{reward.__name__}/step_scores", [one.scores for one in judged])
        if log_metric and judged:
            log_metric(f"{reward.__name__}/aggregate", fmean(one.aggregate for one in judged))
            log_metric(f"{reward.__name__}/dropped", fmean(one.dropped for one in judged))
            if known := [one.right for one in judged if one.right is not None]:
                log_metric(f"{reward.__name__}/right", fmean(known))
        return [one.reward for one in judged]

    reward.__name__ = f"process_{rule}"  # TRL names its columns after it
    return reward


def _cell(columns: dict[str, Any], name: str, row: int) -> Any:
    return columns[name][row] if name in columns else None


def _images(columns: dict[str, Any], row: int, prompt: Any) -> list[Any]:
    """Those of the columns, or without such columns those that stand in the prompt."""
    if "images" in columns:
        return list(columns["images"][row] or ())
    if "image" in columns:
        image = columns["image"][row]
        return [] if image is None else [image]
    turns = [] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    parts = [part for content in turns if not isinstance(content, str) for part in content]
    return [part["image"] for part in parts if part["type"] == "image"]


def _last_turn(said: Any) -> Any:
    """A text as it is, of a conversation the content of its last turn."""
    return said if isinstance(said, str) else said[-1]["content"]


def _text(content: Any) -> str:
    """The text of a turn, which may be a list of images and texts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part["type"] == "text")
