"""A user's regular expression of what starts a step (``--step_pattern``), its time bounded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

try:
    from re import _compiler as compiler  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_compile as compiler
    import sre_parse as parser

MAX_PATTERN = 200  # characters
MAX_TIMES = 50  # how often anything in the pattern is repeated
MAX_WAYS = 10_000  # how many ways there may be to try the pattern at one place


@lru_cache
def compiled(pattern: str) -> re.Pattern[str]:
    """The compiled pattern, read with MULTILINE: ``^`` is the start of a line.

    Everything it repeats, with ``*`` and ``+`` too, is repeated at most :data:`MAX_TIMES` times.
    This bounds the number of ways to try it at one place of the text, so that its time is linear
    in the length of the text.

    Raises:
        ValueError: it is no regular expression, is too long, finds a step between any two letters,
            or can be tried in more than :data:`MAX_WAYS` ways.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"is {len(pattern)} characters long, at most {MAX_PATTERN} can be used")
    try:
        parsed = parser.parse(pattern, re.MULTILINE)
        re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if _bound(parsed) > MAX_WAYS:
        raise ValueError(
            f"can be tried in more than {MAX_WAYS:,} ways at one place, as (a+)+ or a*b*c*, which "
            "takes too long: repeat less"
        )
    expression = compiler.compile(parsed, re.MULTILINE)
    if expression.match("ab", 1) and not expression.match("ab", 1).group():
        raise ValueError("finds the start of a step between any two letters")
    return expression


def _bound(parsed: parser.SubPattern) -> int:
    """Let nothing in a parsed expression be repeated more than :data:`MAX_TIMES` times.

    Returns:
        An upper bound on the ways to try it at one place; MAX_WAYS + 1 if there are more.
    """
    ways = 1
    for index, (kind, value) in enumerate(parsed):
        if "REPEAT" in str(kind):
            low, high, body = value
            if low > MAX_TIMES:
                raise ValueError(f"repeats something {low:,} times, at most {MAX_TIMES} can be")
            parsed[index] = (kind, (low, min(high, MAX_TIMES), body))
            once = _bound(body)
            ways *= sum(once**times for times in range(min(high, MAX_TIMES) + 1))
        elif parts := list(
            _parts(value)
        ):  # alternatives, the content of a group or of a lookaround
            ways *= sum(map(_bound, parts))
        ways = min(ways, MAX_WAYS + 1)
    return ways


def _parts(value: object) -> Iterable[parser.SubPattern]:
    if isinstance(value, parser.SubPattern):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
