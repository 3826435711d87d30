"""Numbers with a unit or without, and whether two of them are equal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .notation import MAX_CHARACTERS, words
from .units import DEGREES, SCALES, Unit, known_unit, unit, unit_of_expression

MAX_EXPONENT = 400  # of ten, in a number

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FORMS = [
    re.compile(pattern)
    for pattern in (
        r"(?P<sign>[-+]?)\s*(?P<whole>\d+)\s*\\frac\s*\{\s*(?P<a>\d+)\s*\}\s*\{\s*(?P<b>\d+)\s*\}",
        r"(?P<sign>[-+]?)\s*(?P<whole>\d+)(?: and | |-)(?P<a>\d+) ?/ ?(?P<b>\d+)(?![\d.])",
        rf"(?P<sign>[-+]?)\s*\\frac\s*\{{\s*(?P<a>-?(?:{_DIGITS}))\s*\}}\s*"
        rf"\{{\s*(?P<b>-?(?:{_DIGITS}))\s*\}}",
        r"(?P<sign>[-+]?)\s*\\frac\s*(?P<a>\d)\s*(?P<b>\d)(?!\d)",
        rf"(?P<sign>[-+]?)\s*(?P<a>{_DIGITS}) ?/ ?(?P<b>{_DIGITS})(?![\d.])",
        rf"(?P<sign>[-+]?)\s*(?P<a>{_DIGITS})\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*"
        r"(?:\{\s*(?P<e1>[-+]?\d+)\s*\}|\(\s*(?P<e3>[-+]?\d+)\s*\)|(?P<e2>[-+]?\d+))",
        r"(?P<sign>[-+]?)\s*10\s*\^\s*(?:\{\s*(?P<e1>[-+]?\d+)\s*\}|(?P<e2>[-+]?\d+))",
        rf"(?P<sign>[-+]?)\s*(?P<a>{_DIGITS})(?:[eE](?P<e1>[-+]?\d+))?(?![\d])",
    )
]
_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {
    **{word: index for index, word in enumerate(_WORDS)},
    **{w: 10 * i for i, w in enumerate(words("thirty forty fifty sixty seventy eighty ninety"), 3)},
}
_CURRENCY = re.compile(r"^([-+]?)\s*(USD|EUR|GBP|JPY|INR|CNY|Rs\.?)\s*(?=[\d.])")
# "$3m" is money, not a length.
_OF_MONEY = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_ABOUT = re.compile(
    r"^(?:\\approx|\\sim|~|about|approximately|approx\.?|roughly|around|exactly|precisely|only|just"
    r"|equals|equal to)\s+",
    re.I,
)
ROUNDED = 6  # significant digits from which on a decimal may be a rounded value


@dataclass(frozen=True)
class Quantity:
    """A number with a unit or without.

    Args:
        value: the number.
        unit: what it counts, if it says so.
        ulp: one unit of the last decimal place, if there are :data:`ROUNDED` digits; else 0.
    """

    value: Fraction
    unit: Unit | None
    ulp: Fraction


def without_about(text: str) -> str:
    """``text`` without "about", "≈" and the like before it."""
    return _ABOUT.sub("", text, count=1)


@lru_cache(maxsize=4096)
def quantity(text: str) -> Quantity | None:
    """A cleaned answer as a number with or without a unit; None if it is anything else."""
    if len(text) > MAX_CHARACTERS:
        return None
    currency = _CURRENCY.match(text)
    if currency:
        text = currency[1] + text[currency.end() :]
    found = _number(text)
    if found is None:
        return None
    value, ulp, end = found
    rest = text[end:]
    glued = not rest[:1].isspace()
    rest = rest.strip().lstrip("-").strip() if re.match(r"\s*-[a-z]{3}", rest) else rest.strip()
    first, _, others = rest.partition(" ")
    scales = {**SCALES, **_OF_MONEY} if currency else SCALES
    if scale := scales.get(first.casefold()):
        value, ulp, rest, glued = value * scale, ulp * scale, others.strip(), False
    if rest and glued and not known_unit(rest) and not DEGREES.match(rest):
        return None  # "2nd", "3x"
    measure = (unit_of_expression if text[:end].endswith("}") else unit)(rest) if rest else None
    if rest and measure is None:
        return None
    if currency:
        measure = measure or unit(currency[2].rstrip("."))
    return Quantity(value, measure, ulp)


def _number(text: str) -> tuple[Fraction, Fraction, int] | None:
    """Value, ulp and end index of the number that ``text`` begins with."""
    for form in _FORMS:
        match = form.match(text)
        if match and (value := _value(match.groupdict())) is not None:
            digits = match.groupdict().get("a") or ""
            point = digits.rfind(".")
            ulp = Fraction(0)
            significant = len(re.sub("[., ]", "", digits).lstrip("0"))
            if match.groupdict().get("b") is None and point >= 0 and significant >= ROUNDED:
                exponent = int(_exponent(match.groupdict()))
                ulp = Fraction(10) ** (exponent - (len(digits) - point - 1))
            return value, ulp, match.end()
    word = re.match(r"([A-Za-z]+)(?:[- ]([A-Za-z]+))?", text)
    if word and (first := _NUMBER_WORDS.get(word[1].lower())) is not None:
        second = _NUMBER_WORDS.get((word[2] or "").lower(), 0)
        if first >= 20 and 0 < second < 10:  # "twenty-five"
            return Fraction(first + second), Fraction(0), word.end()
        return Fraction(first), Fraction(0), word.end(1)
    return None


def _exponent(groups: dict[str, str | None]) -> str:
    return next((groups[name] for name in ("e1", "e2", "e3") if groups.get(name)), "0")


def _value(groups: dict[str, str | None]) -> Fraction | None:
    exponent = _exponent(groups)
    if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
        return None

    def number(name: str, missing: int) -> Fraction:
        text = groups.get(name)
        return Fraction(text.replace(",", "").replace(" ", "")) if text else Fraction(missing)

    divisor = number("b", 1)
    if divisor == 0:
        return None
    value = number("whole", 0) + number("a", 1) / divisor
    return (-value if groups["sign"] == "-" else value) * Fraction(10) ** int(exponent)


def same_quantity(left: Quantity, right: Quantity) -> bool:
    """Whether two quantities are equal.

    A unit may be missing in one of them; 5 % is also equal to 0.05.
    """
    ulp = max(left.ulp, right.ulp)

    def close(a: Fraction, b: Fraction) -> bool:
        return a == b or abs(a - b) * 2 <= ulp

    if left.unit is None or right.unit is None:
        if close(left.value, right.value):
            return True
        hundredth = [
            q.value / 100 if q.unit and q.unit.powers == (("%", 1),) else q.value
            for q in (left, right)
        ]
        return left.unit != right.unit and close(*hundredth)
    if left.unit.powers != right.unit.powers:
        return False
    ulp *= max(left.unit.size, right.unit.size)
    return close(left.value * left.unit.size, right.value * right.unit.size)
