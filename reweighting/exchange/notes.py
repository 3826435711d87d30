"""Wording that the formats share."""

from __future__ import annotations

from pathlib import Path


def count(number: int, noun: str) -> str:
    """``1 question``, ``2 questions``."""
    return f"{number} {noun}" + "s" * (number != 1)


def several_images(source: Path, number: int, noun: str) -> list[str]:
    """The note that of several images the first is taken, if there is need for it."""
    note = f"{source}: {count(number, noun)} with several images: the first of them is taken"
    return [note] * (number > 0)
