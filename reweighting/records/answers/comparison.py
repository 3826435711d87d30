"""Whether a response is right: final answers are compared, without a judge model.

Options are compared in :mod:`.options`, everything else in :mod:`.values`. Benchmarks have official
scorers of their own; use those for a number that is to be published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from .expressions import FUNCTIONS, LETTERS, TooManyUnknownError, allow_unknown, still_allowed
from .extraction import extract, without_lead_in
from .notation import clean
from .options import named_options, same_labelled, text_after_letter
from .quantities import quantity
from .units import SCALES, known_unit
from .values import equally_plain, same_value

__all__ = ["extract", "is_right", "parties", "same", "unreadable", "unreadable_note"]

MAX_UNKNOWN = 4  # how often two answers may hold expressions whose comparison runs out of time
MAX_UNKNOWN_IN_VOTE = 10  # the same of all answers to a question; then algebra is not asked

Choices = Sequence[str] | None


def same(predicted: str, true: str, choices: Choices = None) -> bool:
    """Whether two final answers say the same. Nothing is the same as no answer.

    Args:
        choices: texts of the options A, B, …; an answer may give a text instead of its letter.
    """
    return _compared(predicted, true, None if choices is None else tuple(choices))[0]


def is_right(response: str, true: str, choices: Choices = None) -> bool:
    """Whether a response ends with the right final answer."""
    return same(extract(response, choices), true, choices)


def parties(answers: Sequence[str], choices: Choices = None) -> list[int]:
    """A number for each answer, equal for answers that say the same, and -1 for no answer.

    An answer joins the first party all of whose members it is the :func:`same` as: "5%" agrees with
    "5" and with "0.05", which do not agree with each other.
    """
    members: list[list[str]] = []  # the different answers of each party
    number: dict[str, int] = {}
    options, unknown = None if choices is None else tuple(choices), 0

    def agree(answer: str, member: str) -> bool:
        nonlocal unknown
        allowed = MAX_UNKNOWN if unknown <= MAX_UNKNOWN_IN_VOTE else -1
        found, times = _compared(answer, member, options, allowed)
        unknown += times
        return found

    for answer in answers:
        if answer.strip() and answer not in number:
            found = (
                index
                for index, party in enumerate(members)
                if all(agree(answer, member) for member in party)
            )
            number[answer] = next(found, len(members))
            if number[answer] == len(members):
                members.append([])
            members[number[answer]].append(answer)
    return [number.get(answer, -1) for answer in answers]


def unreadable(responses: Sequence[str], choices: Choices = None) -> int:
    """How many responses have no final answer that can be read."""
    return sum(not extract(response, choices) for response in responses)


def unreadable_note(missing: int, total: int) -> str:
    """A note for tables of results on answers that are missing; "" if none is."""
    return f"{missing} of {total} candidates have no readable answer" if missing else ""


@lru_cache(maxsize=65_536)
def _compared(
    predicted: str, true: str, choices: tuple[str, ...] | None, allowed: int = MAX_UNKNOWN
) -> tuple[bool, int]:
    """Whether two answers say the same, and how many comparisons ran out of time.

    Args:
        allowed: how many may; with -1, what needs algebra counts as different.
    """
    if not predicted.strip() or not true.strip():
        return False, 0
    if predicted.strip() == true.strip():
        return True, 0
    allow_unknown(allowed)
    predicted, true = (without_lead_in(clean(text)) for text in (predicted, true))
    try:
        found = _say_the_same(predicted, true, choices)
        if found is False:
            left, right = (_PREDICATE.sub("", _REASON.sub("", text)) for text in (predicted, true))
            if not (_BRACKET.search(left) and _BRACKET.search(right)):  # "5 (red)", "5 (blue)"
                left, right = _without_bracket(left), _without_bracket(right)
            found = (left, right) != (predicted, true) and _say_the_same(left, right, choices)
    except TooManyUnknownError:
        found = False
    return bool(found), allowed - still_allowed()


# "C because the others are larger", "B, not C"
_REASON = re.compile(r"(?:[\s,]+(?:because|since)|,\s+as)\b.*$|,\s+not\s+\S+$", re.I | re.S)
# "12 (since 3 × 4 = 12)", "0.75 (75%)", but neither "5 (or more)" nor "2 (sin x)"
_BRACKET = re.compile(r"(?<=[^\s\\])\s+\((?P<inside>[^()]*)\)$")
_SAID_BESIDE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}|[=%°]")
_CHANGES = re.compile(
    r"\b(?:not|wrong|incorrect|false|except|without|if|only|squared|cubed|negative|per|base|also)\b"
    r"|^(?:and|or|but|also|alternatively|maybe|perhaps|possibly|loss|debt|plus|minus|times|divided|mod|at|more|less|over|under|above|below)\b",
    re.I,
)


def _without_bracket(text: str) -> str:
    """An answer without what it says beside it in brackets; "5 (cm)" and "5 (millions)" need it."""
    match = _BRACKET.search(text)
    if match is None:
        return text
    before, inside = text[: match.start()], match["inside"].strip()
    number = quantity(before)
    if number and not number.unit and (known_unit(inside) or SCALES.keys() & set(inside.split())):
        return f"{before} {inside}"
    names = LETTERS.findall(inside)
    if _CHANGES.search(inside) or (names and all(name in FUNCTIONS for name in names if name[1:])):
        return text
    return before if _SAID_BESIDE.search(inside) else text


# "The area of the square is 12 cm²", "x is 5": only what follows counts.
_PREDICATE = re.compile(
    r"^(?!.*\b(?:not?|none|neither|never|nor|if|or|cannot|impossible|wrong|incorrect|false|half|twice"
    r"|whether|unsure|doubt)\b)(?!.*n't\b)(?:the\s.{1,200}|\w{1,2}\s+)\b(?:is|are|equals)\s+(?=\S)",
    re.I | re.S,
)


def _say_the_same(predicted: str, true: str, choices: tuple[str, ...] | None) -> bool | None:
    """Whether two cleaned answers say the same; None if one contradicts itself."""
    found, wanted = (named_options(text, choices) for text in (predicted, true))
    if frozenset() in (found, wanted):
        return None
    if found and wanted:
        if choices is None and text_after_letter(predicted) and text_after_letter(true):
            return same_labelled(predicted, true)
        return found == wanted
    if found or wanted:
        lettered, other = (predicted, true) if found else (true, predicted)
        if not choices and (text := text_after_letter(lettered)):
            return same_value(text, other)  # "(B) 45°" where the options are unknown, and "45°"
        return equally_plain(predicted, true)
    return same_value(predicted, true)
