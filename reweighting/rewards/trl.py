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
                _cell(columns, "question", row) or _said(prompt, "user"),
                _said(completion, "assistant"),
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
    """Those of the columns, or without such columns those that stand in the prompt.

    Raises:
        ValueError: the prompt shows an image that is not there.
    """
    if "images" in columns:
        images = columns["images"][row]
        return [] if images is None else list(images)
    if "image" in columns:
        image = columns["image"][row]
        return [] if image is None else [image]
    turns = [] if isinstance(prompt, str) else [turn.get("content") for turn in prompt]
    parts = [part for content in turns if isinstance(content, list) for part in content]
    found = [_image(part) for part in parts if part["type"] in ("image", "image_url")]
    if None in [image if image is None else "" for image in found]:
        raise ValueError("a prompt shows an image, but there is no column 'images' or 'image'")
    return found


def _image(part: dict[str, Any]) -> Any:
    """The image of a part of a turn, in any of the ways in which chat templates take it."""
    if part["type"] == "image_url":
        url = part.get("image_url")
        return url.get("url") if isinstance(url, dict) else url
    return next(
        (part[name] for name in ("image", "url", "path") if part.get(name) is not None), None
    )


def _said(said: Any, role: str) -> str:
    """A text as it is; of a conversation the text of the last turn of ``role``, or ""."""
    if isinstance(said, str):
        return said
    contents = [turn.get("content") for turn in said or () if turn.get("role", role) == role]
    return _text(contents[-1]) if contents else ""


def _text(content: Any) -> str:
    """The text of a turn, which may be a list of images and texts, or calls of tools alone."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content if part["type"] == "text")
