"""Mathematical expressions: their units, their LaTeX, and whether two of them are equal."""

from __future__ import annotations

import math
import re
import threading

from . import mathematics
from .notation import closing, joined, words
from .units import unit, unit_of_expression

FUNCTIONS = words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi "
    "infty infinity inf alpha beta gamma delta theta lambda phi omega sigma det "
    "gcd lcm max min mod"
)
COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+")
MAX_POWERS = 20  # of an expression that are looked at
LETTERS = re.compile(r"[A-Za-z]+")
_SPACED_DIGITS = re.compile(r"(?<![\w{}^\\])\d+ \d+")
_SYMBOL = re.compile(r"\\?[A-Za-z]+")
_WITH_UNIT = re.compile(
    r"^(.*(?:[\d})]|\\pi))\s*(?<=[\s})])(°[CF]?|%|[A-Za-zΩµ][A-Za-z/^ {}\d]*)$", re.S
)


def without_unit(text: str) -> tuple[str, str]:
    """An expression and the unit after it, as in "2\\sqrt{3} cm"."""
    match = _WITH_UNIT.match(text)
    if match and len(match[2]) <= 40 and (measure := unit_of_expression(match[2].strip())):
        return match[1].strip(), str(measure)
    if match := re.match(r"^(.*\S)\s*°$", text):
        return match[1], str(unit("°"))
    return text, ""


def same_expressions(left: str, right: str) -> bool:
    """Whether two expressions, in LaTeX or in plain notation, are equal; see :func:`equal`."""
    texts = [latex(text) for text in (left, right)]
    if joined(texts[0]) == joined(texts[1]):
        return True
    if len({tuple(_SPACED_DIGITS.findall(text)) for text in texts}) > 1:
        return False  # math-verify would read "5 5" as 55
    # math-verify ignores case in names, and takes a letter after a number for a unit.
    names = [set(LETTERS.findall(COMMAND.sub(" ", text))) for text in texts]
    names = [set("".join(found)) - set("ei") for found in names]
    symbols = [_SYMBOL.fullmatch(text.strip()) is not None and "pi" not in text for text in texts]
    return names[0] == names[1] and not all(symbols) and equal(*texts)


class TooManyUnknownError(Exception):
    """More comparisons ran out of time than allowed. Unlike a value, it is kept by no cache."""


class _Allowance(threading.local):
    """How many further comparisons of this thread may run out of time."""

    unknown = 0


_allowance = _Allowance()


def allow_unknown(count: int) -> None:
    """Allow ``count`` further comparisons of this thread to run out of time; -1: none is begun."""
    _allowance.unknown = count


def still_allowed() -> int:
    """How many of those that :func:`allow_unknown` allowed are left; -1 if there were too many."""
    return _allowance.unknown


def equal(left: str, right: str) -> bool:
    """Whether math-verify finds two LaTeX expressions equal; False if it runs out of time.

    Raises:
        TooManyUnknownError: time has run out more often than :func:`allow_unknown` allows.
    """
    if any(_is_misread(text) or _is_huge(text) for text in (left, right)):
        return False
    if _allowance.unknown < 0:
        raise TooManyUnknownError
    found = mathematics.equal(left, right)
    if found is None:
        _allowance.unknown -= 1
        if _allowance.unknown < 0:
            raise TooManyUnknownError
    return bool(found)


# What math-verify reads as something else, or can be read in two ways: the digits of a base, quotes
# and primes, an ellipsis, "1/2x", "\\frac123", a residue.
_MISREAD = re.compile(
    r"[\d)}]\s*_|['\"]|\.\.|/\s*\d+\s*(?:[A-Za-z(]|\\(?!cdot|times|pm|leq|geq|neq|cup|in\b))"
    r"|\\frac\s*\d{3}|(?<![a-z])mod(?![a-z])"
)
_NUMBER_AND_FRACTION = re.compile(r"\d\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
# An exponent, up to its opening bracket if it has brackets.
_EXPONENT = re.compile(r"\s*\^\s*([-+]?\d+(?:\.\d+)?|\\?[A-Za-z]+|[{(])")


def _is_misread(text: str) -> bool:
    # 3\frac{5}{4} may be a product, and would be read as 4.25.
    pairs = _NUMBER_AND_FRACTION.findall(text)
    return bool(_MISREAD.search(text)) or any(int(a) >= int(b) for a, b in pairs)


_TOWER = re.compile(r"\^\s*\{?\s*(\d{1,9})\s*\^\s*\{?\s*(\d{1,9})")
MAX_EXPONENT = 5  # decimal digits of a power's exponent that is itself a power


def _is_huge(text: str) -> bool:
    """Whether a text has a tower of powers, as 10^10^10, that would run out of time for sure."""
    return any(int(b) * math.log10(int(a) or 1) >= MAX_EXPONENT for a, b in _TOWER.findall(text))


_PLAIN_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({'|'.join(FUNCTIONS)})(?![a-z])")
_NUMBER_WITH_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")


def latex(text: str) -> str:
    """An expression in plain notation as LaTeX that math-verify reads."""
    text = _NUMBER_WITH_COMMAS.sub(lambda m: m.group().replace(",", ""), text)
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\b(infinity|inf)\b", "infty", text)
    text = re.sub(r"\bsqrt\s*\(", r"\\sqrt(", text)
    text = _PLAIN_FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = _right_associative(text.replace("**", "^"))
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)
    if re.search(r"\\(?:sin|cos|tan)", text):
        text = text.replace("°", r" \cdot \frac{\pi}{180} ")
    text = re.sub(r"_\s*\{\s*(\w)\s*\}", r"_\1", text)
    return text.replace("<=", r" \leq ").replace(">=", r" \geq ").replace("!=", r" \neq ")


def _exponent_end(text: str, start: int) -> int:
    """Where the exponent ends that begins with "^" at ``start``; -1 if there is none."""
    match = _EXPONENT.match(text, start)
    if match is None or match[1] not in ("{", "("):
        return match.end() if match else -1
    return closing(text, match.end() - 1, "{}" if match[1] == "{" else "()") + 1 or -1


def _right_associative(text: str) -> str:
    """Powers of powers with braces: 2^3^2 is 2^9. From the right, so that 2^3^2^2 is 2^3^(2^2)."""
    for start in [match.start() for match in _EXPONENT.finditer(text)][::-1][:MAX_POWERS]:
        end = _exponent_end(text, start)
        last = _exponent_end(text, end) if end > 0 else -1
        if last > 0:
            tower = text[start:last].strip()[1:]
            text = f"{text[:start]}^{{{tower}}}{text[last:]}"
    return text
