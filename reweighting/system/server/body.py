"""The body of an answer, read from bytes that are not trusted."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from ..files import parse_json

MAX_ANSWER_BYTES = 8 * 2**20  # as sent and unpacked; a rollout of 100,000 tokens needs one MiB
MAX_TOKENS = 10**7  # of an answer; a server that says more has not counted
# One escape of a JSON text; "half" names half of a surrogate pair without the other half.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


class Unreadable(Exception):
    """The answer cannot be read; ``said`` is what the server or the JSON parser says about it."""

    def __init__(self, reason: str, said: object = "") -> None:
        super().__init__(reason)
        self.said = said


class Refused(Exception):
    """The server or the model refuses to answer; the message is its own."""


def read_json_body(body: bytes) -> tuple[Any, bool]:
    """The value of a JSON answer, and whether it held what UTF-8 cannot hold, which is U+FFFD now.

    Raises:
        Unreadable: it is not JSON.
    """
    text, broken = _decode(body)
    try:
        return parse_json(text), broken
    except ValueError as error:
        raise Unreadable("the answer is not JSON", error) from error


def error_text(body: bytes) -> str:
    """The message in the body of an error, or the body itself."""
    text, _ = _decode(body)
    with contextlib.suppress(ValueError):
        return error_message(parse_json(text)) or text
    return text


def error_message(answer: Any) -> str | None:
    """The message of an answer that is an error, if it has one."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else None


def number_of_tokens(value: Any) -> int | None:
    """A number that a server stated, or None if it cannot be a number of tokens."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Comparisons with NaN are false.
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _decode(body: bytes) -> tuple[str, bool]:
    """The text of an answer with U+FFFD for all that UTF-8 cannot hold, and whether it has any."""
    try:
        text, broken = body.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, broken = body.decode("utf-8-sig", "replace"), True

    def whole(escape: re.Match) -> str:
        nonlocal broken
        broken |= escape["half"] is not None
        return "\ufffd" if escape["half"] else escape[0]

    return _ESCAPE.sub(whole, text), broken
