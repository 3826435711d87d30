"""Lines after an answer that go on with it: "6" makes a list, "million" another number."""

from __future__ import annotations

import re

from .notation import clean
from .quantities import quantity
from .units import SCALES

MAX_LINES = 16  # after an answer that are looked at
MAX_LINE = 60  # characters of a line that goes on with an answer

_ITEM = re.compile(r"^(?:[\s*_#>•]|[-+–]\s)+")
_LABEL = re.compile(r"^\(?(?:[a-z]|[ivx]{1,4}|\d{1,2})[.)]\s+")
_ASSIGNED = re.compile(r"^[\w\\{}()|, ]{1,20}(?:=|<=?|>=?|≤|≥|≠)\s*\S{1,30}$")
# "or x = -3", "and 6"; "= 6", "/6", "+ 1", "\times 10"
_JOINED = re.compile(r"^(?P<word>or|and|&)\s+(?P<part>.+)$", re.I)
_OPERATED = re.compile(
    r"^(?:[=+*/^×·÷±<>≤≥≠]|!=|\\(?:times|cdot|div|pm|neq?|leq?|geq?|cup|cap)(?![A-Za-z])"
    r"|(?:to|times|plus|minus|over|percent|per cent|squared|cubed)\b)\s*(?P<part>.{0,40})$"
)
_LETTER = re.compile(r"^[(\[]?[A-J][)\]]?[.:]?$")


def going_on(value: str, rest: str) -> tuple[str, int]:
    """What the lines after an answer add to it, and where they end in ``rest``.

    Args:
        value: the answer, as written in its line.
        rest: the text after that line.
    """
    more, end, position, last = "", 0, 0, clean(_bare_item(value))
    said = {last}
    for line in rest.split("\n")[: MAX_LINES + 1]:
        position += len(line) + 1
        item = _bare_item(line)
        if not item or (item not in ("%", "!") and re.fullmatch(r"[\W_]{1,3}", item)):
            continue
        added = _added(item)
        if not added or "\\boxed" in line:
            break
        end = position - 1
        if clean(item) not in said:
            said.add(clean(item))
            more += added
    return more, end


def _bare_item(line: str) -> str:
    """A line without the sign of a list, decoration and final punctuation."""
    item = _ITEM.sub("", line).strip(" *_\t\r,;$")
    return item if len(item) <= MAX_LINE else ""


def _added(item: str) -> str:
    """What a line adds to the answer before it; "" if it does not go on with it."""
    words = clean(item).split()
    if words and words[0].casefold() in SCALES and len(words) <= 3:
        return f" {item}"
    if joined := _JOINED.match(item):
        return f" {joined['word']} {joined['part']}" if is_bare(joined["part"]) else ""
    if operated := _OPERATED.match(item):
        plain = not re.search(r"(?<!\\)\b[A-Za-z]{3}", operated["part"])
        return f" {item}" if plain else ""
    return f", {item}" if is_bare(item) else ""


def is_bare(text: str) -> bool:
    """Whether a text is nothing but a number, an option's letter or an equation."""
    plain = clean(_LABEL.sub("", text)).rstrip(".")
    return bool(quantity(plain) or _LETTER.match(plain) or _ASSIGNED.match(plain))
