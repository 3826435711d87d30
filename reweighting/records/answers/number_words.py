"""Numbers in English words, as "seven hundred and five point two"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from .notation import words

_SMALL = {
    word: size
    for size, word in enumerate(
        words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
}
_DIGITS = [word for word, size in _SMALL.items() if size < 10]
_TENS = {
    word: 10 * size
    for size, word in enumerate(words("thirty forty fifty sixty seventy eighty ninety"), 3)
}
NUMBER_WORDS = {**_SMALL, **_TENS}
_POWERS = {
    "hundred": 100,
    **{
        word: 1000**power
        for power, word in enumerate(words("thousand million billion trillion quadrillion"), 1)
    },
}
_PARTS = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}


def _one_of(names: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(names, key=len, reverse=True))})(?![A-Za-z])"


_WORD = _one_of([*NUMBER_WORDS, *_POWERS])
_WHOLE = re.compile(rf"(?:a )?{_WORD}(?:(?: and |-| ){_WORD})*", re.I)
_DECIMALS = re.compile(
    rf"[ -](?:point|dot)[ -](?P<digits>\d+(?![\w.])|{_one_of(_DIGITS)}(?:[ -]{_one_of(_DIGITS)})*)",
    re.I,
)
_AND_PART = re.compile(rf" and (?:a|one)[ -](?P<part>{_one_of(_PARTS)})", re.I)
_NEGATIVE = re.compile(r"(?:negative|minus) (?=\w)", re.I)
_HALF = re.compile(r"(?:(?:a|one)[ -])?half", re.I)


def without_negative(text: str) -> str:
    """``text`` with a sign for "negative" or "minus" before it."""
    return _NEGATIVE.sub("-", text, count=1) if _NEGATIVE.match(text) else text


def number_in_words(text: str) -> tuple[Fraction, int] | None:
    """The number in words that ``text`` begins with, and where it ends; None if there is none.

    Words of numbers that form no number together, as "five five", are none.
    """
    start = 1 if text.startswith("-") else 0
    if _HALF.fullmatch(text, start):  # "half circle" is none
        return Fraction(1 - 2 * start, 2), len(text)
    match = _WHOLE.match(text, start)
    whole = _whole(re.split(" and |-| ", match[0].casefold())) if match else None
    if whole is None:
        return None
    value, end = fraction_in_words(text, match.end())
    return (whole + value) * (1 - 2 * start), end


def fraction_in_words(text: str, end: int) -> tuple[Fraction, int]:
    """What " point two" or " and a half" at ``end`` adds to a number, and where that ends."""
    if match := _DECIMALS.match(text, end):
        said = re.split("[ -]", match["digits"].casefold())
        digits = "".join(word if word.isdigit() else str(_SMALL[word]) for word in said)
        return Fraction(int(digits), 10 ** len(digits)), match.end()
    if match := _AND_PART.match(text, end):
        return _PARTS[match["part"].casefold()], match.end()
    return Fraction(0), end


def _whole(said: list[str]) -> int | None:
    """The number that words form; None if they form none."""
    if said[0] == "a":
        said = said[1:]
        if said[0] not in _POWERS:
            return None
    total, group, room = 0, 0, max(_POWERS.values()) + 1
    for index, word in enumerate(said):
        before = said[index - 1] if index else ""
        if word in NUMBER_WORDS:
            # "five" after nothing, after "hundred" and the like, and after "twenty"
            tens = before in NUMBER_WORDS and NUMBER_WORDS[before] >= 20
            if before and before not in _POWERS and not (tens and 0 < NUMBER_WORDS[word] < 10):
                return None
            group += NUMBER_WORDS[word]
        elif word == "hundred":
            if index and not 0 < group < 100:
                return None
            group = (group or 1) * 100
        elif _POWERS[word] < room and (group or not index):
            room = _POWERS[word]
            total, group = total + (group or 1) * room, 0
        else:
            return None
    return total + group
