"""What an answer consists of: parts of a list, sides of a relation, an expression, or words."""

from __future__ import annotations

import re
from functools import lru_cache

from .expressions import COMMAND, FUNCTIONS, LETTERS, without_unit
from .notation import closing
from .quantities import quantity

MAX_PARTS = 16  # of a list that is compared in any order

# ---- lists, tuples, intervals, unions

_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_CONNECTIVE = re.compile(r",\s*(?:and|or)\s+|\s+(?:and|or)\s+|[,;]|\\text\s*\{\s*(?:and|or)\s*\}")

# "20-30 years", "20 to 30", "12:30", "3/4/2010": numbers side by side, not an expression.
_JOINED = (
    ("-", re.compile(r"(?<=[\w%°)}])(?:\s*-\s*|\s+to\s+)(?=[\d.A-Z\\])"), 2),
    (":", re.compile(r":"), 2),
    ("/", re.compile(r"/"), 3),
)


@lru_cache(maxsize=16_384)
def list_parts(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The kind of a list and its parts; None if the text is no list.

    The kinds are the brackets (``()``, ``[]``, ``(]``, ``[)``, ``{}``), ``-`` (a range, a score, a
    date), ``:``, ``/`` (a date), ``union`` and, without brackets, "".
    """
    text = text.strip()
    if len(_SIGN.findall(text)) == 1:
        return "", tuple(_SIGN.sub(sign, text).lstrip("+ ") for sign in ("+", "-"))
    union = _split(text, re.compile(r"\\cup(?![A-Za-z])"))
    if len(union) > 1:
        return "union", union
    for kind, separator, least in _JOINED:
        joined = () if quantity(text) else _split(text, separator)
        if len(joined) >= least and all(
            quantity(p) or (list_parts(p) or " ")[0] == ":" for p in joined
        ):
            return kind, joined
    braces = text.startswith("\\{") and text.endswith("\\}")
    inner = text[2:-2] if braces else text[1:-1]
    if braces or (text[:1] in "([{" and text[-1:] in ")]}" and _encloses(text)):
        # "(12,345)" is a point; commas of numbers need other commas with spaces beside them.
        parts = _split(inner, _CONNECTIVE, numbers=bool(re.search(r"[,;]\s", inner)))
        kind = "{}" if braces else text[0] + text[-1]
        if len(parts) > 1 or kind == "{}":
            return kind, parts
        return None
    parts = _split(text, _CONNECTIVE)
    return ("", parts) if 1 < len(parts) <= MAX_PARTS else None


def _encloses(text: str) -> bool:
    return closing(text, 0, "([{)]}") == len(text) - 1


def _split(text: str, separator: re.Pattern[str], numbers: bool = True) -> tuple[str, ...]:
    """The parts between separators outside brackets.

    Args:
        numbers: whether a comma within a number separates nothing.
    """
    level, depth = [], 0
    for character in text:
        depth -= character in ")]}"
        level.append(depth)
        depth += character in "([{"
    parts, start = [], 0
    for match in separator.finditer(text):
        if level[match.start()] == 0 and not (numbers and _in_number(text, match)):
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return tuple(part.strip() for part in parts if part.strip())


def _in_number(text: str, match: re.Match[str]) -> bool:
    if match.group() != ",":
        return False
    before, after = text[max(0, match.start() - 4) : match.start()], text[match.end() :][:4]
    return bool(re.search(r"(?<!\d)\d{1,3}$", before) and re.match(r"\d{3}(?!\d)", after))


# ---- relations

_RELATION = re.compile(r"<=|>=|!=|\\in(?![A-Za-z])|\\approx(?![A-Za-z])|=|<|>")
# What may be assigned a value: x, x_1, f(x), y', AB, (x, y), "area of the circle"
_NAME = re.compile(r"^\(?\\?[A-Za-z|][\w\\{}()|',. ]{0,50}$")
_REVERSED = {">": "<", ">=": "<="}


@lru_cache(maxsize=16_384)
def relation_parts(text: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The operators of an equation or inequality, and its sides; > is turned round into <."""
    signs = _RELATION.findall(text)
    if not signs:
        return None
    parts = tuple(part.strip() for part in _RELATION.split(text))
    if all(sign in _REVERSED for sign in signs):
        return tuple(_REVERSED[sign] for sign in reversed(signs)), parts[::-1]
    return tuple(signs), parts


def name_and_value(text: str) -> tuple[str, str] | None:
    """Left side and last value of an assignment, as in "x = 5" or "AB = 2 + 3 = 5", else None."""
    relation = relation_parts(text)
    if relation is None or not all(sign in ("=", "\\approx", "\\in") for sign in relation[0]):
        return None
    if (
        len(relation[0]) > 1
        and (parts := list_parts(text))
        and sum(map(bool, map(relation_parts, parts[1]))) > 1
    ):
        return None  # "x = 1 or x = 2"
    name, value = relation[1][0], relation[1][-1]
    if value and (_NAME.match(name) or not LETTERS.search(COMMAND.sub("", name))) and name:
        return " ".join(name.split()), value
    return None


def assigned_value(text: str) -> str | None:
    """The value in an assignment; None if the text is no assignment."""
    found = name_and_value(text)
    return found[1] if found else None


# ---- mathematics

_FUNCTION = re.compile("|".join(FUNCTIONS))
_FORMULA = re.compile(r"[A-Za-z]\d")  # H2O, Q2
_CONTENT = re.compile(r"[A-Za-z\d]")
_SIGNS = re.compile(r"[\\\d^=+*/<>(\[{|-]")


@lru_cache(maxsize=16_384)
def is_mathematics(text: str) -> bool:
    """Whether a cleaned answer as a whole is mathematics; words and chemical formulas are not."""
    if quantity(text) or re.fullmatch("[A-Za-z]", text):
        return True
    body, _ = without_unit(text)
    rest = COMMAND.sub(" ", body)
    if not _SIGNS.search(text) or not rest.isascii() or not _CONTENT.search(text):
        return False
    words = [word for word in LETTERS.findall(rest) if len(word) > 2]
    if any(word not in FUNCTIONS for word in words) and assigned_value(text) is None:
        return list_parts(text) is not None and all(map(is_mathematics, list_parts(text)[1]))
    return not _FORMULA.search(_FUNCTION.sub(" ", rest))
