"""Wording that the formats share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def count(number: int, noun: str) -> str:
    """``1 question``, ``2 questions``."""
    return f"{number} {noun}" + "s" * (number != 1)


def text_only(source: Path | str, number: int, noun: str) -> list[str]:
    """The note that some records have no image, if there is need for it."""
    return [f"{source}: {count(number, noun)} without an image: text alone"] * (number > 0)


def image_path(images: Sequence[str]) -> str | list[str] | None:
    """The field of a record: the path of its image, a list of several, or null without any."""
    return list(images) if len(images) > 1 else next(iter(images), None)
