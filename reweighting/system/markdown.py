"""Tables in Markdown, for the cards of models and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def cell(value: Any) -> str:
    """A value on one line of a table; of a path only its name, as others have other folders."""
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    text = str(value)
    if isinstance(value, str) and Path(value).is_absolute():
        text = Path(value).name
    return " ".join(text.split()).replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells as :func:`cell` makes them."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
