"""Numbers with a unit or without, and whether two of them are equal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .notation import MAX_CHARACTERS
from .number_words import fraction_in_words, number_in_words, without_negative
from .units import DEGREES, SCALES, Unit, known_unit, unit, unit_of_expression

MAX_EXPONENT = 400  # of ten, in a number

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FORMS = [
    re.compile(pattern)
    for pattern in (
        r"(?P<sign>[-+]?)\s*(?P<whole>\d+)\s*\\frac\s*\{\s*(?P<a>\d+)\s*\}\s*\{\s*(?P<b>\d+)\s*\}",
        r"(?P<sign>[-+]?)\s*(?P<whole>\d+)(?: and | )(?P<a>\d+) ?/ ?(?P<b>\d+)(?![\d.])",
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
_CURRENCY = re.compile(r"^([-+]?)\s*(USD|EUR|GBP|JPY|INR|CNY|Rs\.?)\s*(?=[\d.])")
# "$3m" is money, not a length.
_OF_MONEY = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_ABOUT = re.compile(
    r"^(?:\\approx|\\sim|~|about|approximately|approx\.?|roughly|around|exactly|precisely|only|just"
    r"|equals|equal to)\s+",
    re.I,
)
_IN_TOTAL = re.compile(r"(?<=\w)\s+(?:in (?:total|all)|altogether)$")
_WHOLE = re.compile(r"[-+]?[\d,]+")
_TWO_UNITS = re.compile(
    r"(?P<large>\d+ ?[A-Za-z]+\.?)(?:,? and |, | )(?P<small>\d+(?:\.\d+)? ?[A-Za-z]+)"
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
    text = _IN_TOTAL.sub("", without_negative(text))
    found = _number(text)
    if found is None:
        return None
    value, ulp, end = found
    if _WHOLE.fullmatch(text, 0, end):  # "5 point two", "5 and a half"
        more, end = fraction_in_words(text, end)
        value += more if value >= 0 else -more
    rest = text[end:]
    glued = not rest[:1].isspace()
    rest = rest.strip().lstrip("-").strip() if re.match(r"\s*-[a-z]{3}", rest) else rest.strip()
    scales = {**SCALES, **_OF_MONEY} if currency else SCALES
    while (
        scale := 1000
        if glued and rest == "k"
        else scales.get(rest.partition(" ")[0].casefold().rstrip("."))
    ):
        value, ulp, rest, glued = value * scale, ulp * scale, rest.partition(" ")[2].strip(), False
    if rest and glued and not known_unit(rest) and not DEGREES.match(rest):
        return _in_two_units(text)  # "2m 50cm", but neither "2nd" nor "3x"
    measure = (unit_of_expression if text[:end].endswith("}") else unit)(rest) if rest else None
    if rest and measure is None:
        return _in_two_units(text)
    if currency:
        measure = measure or unit(currency[2].rstrip("."))
    return Quantity(value, measure, ulp)


def _in_two_units(text: str) -> Quantity | None:
    """A quantity such as "2 h 30 min", in the larger unit; None if the text is none."""
    match = _TWO_UNITS.fullmatch(text)
    large, small = (quantity(match["large"]), quantity(match["small"])) if match else (None, None)
    if not (large and small and large.unit and small.unit):
        return None
    share = small.value * small.unit.size / large.unit.size
    if large.unit.powers != small.unit.powers or not (0 <= share < 1 <= large.value):
        return None
    return Quantity(large.value + share, large.unit, Fraction(0))


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
    if said := number_in_words(text):
        return said[0], Fraction(0), said[1]
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
    if groups.get("whole") and number("a", 1) >= divisor:
        return None  # "7 10/2" is no mixed number
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
