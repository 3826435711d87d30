"""Chat completions, read from bytes that are not trusted."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from ..system.files import parse_json

MAX_ANSWER_BYTES = 8 * 2**20  # as sent and unpacked; a rollout of 100,000 tokens needs one MiB
MAX_TOKENS = 10**7  # of an answer; a server that says more has not counted
# One escape of a JSON text; "half" names half of a surrogate pair without the other half.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


class NoCompletion(Exception):
    """The answer cannot be read; ``said`` is what the server or the JSON parser says about it."""

    def __init__(self, reason: str, said: object = "") -> None:
        super().__init__(reason)
        self.said = said


class Refused(Exception):
    """The server or the model refuses to answer; the message is its own."""


@dataclass(frozen=True)
class Completion:
    """What is read of an answer. What the server did not say, or not plausibly, is None."""

    text: str
    finish_reason: str | None
    tokens_in: int | None
    tokens_out: int | None
    broken: bool  # whether it held what UTF-8 cannot hold, which is U+FFFD now


def read_completion(body: bytes) -> Completion:
    """The first choice of a chat completion; an empty text is a completion too.

    Raises:
        NoCompletion: the body is not JSON, an error, or holds no completion.
        Refused: the completion was filtered or refused.
    """
    text, broken = _decode(body)
    try:
        answer = parse_json(text)
    except ValueError as error:
        raise NoCompletion("the answer is not JSON", error) from error
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        if said := _error_message(answer):
            raise NoCompletion("the answer is an error", said) from error
        raise NoCompletion("the answer holds no completion") from error
    if finish == "content_filter" or refusal:
        raise Refused(refusal or finish)
    if isinstance(content, list):  # parts, some of which are the text and others the thinking
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") in (None, "text")]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str | None):
        raise NoCompletion("the answer's content is not text")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Completion(
        content or "",
        finish if isinstance(finish, str) else None,
        number_of_tokens(usage.get("prompt_tokens")),
        number_of_tokens(usage.get("completion_tokens")),
        broken,
    )


def error_text(body: bytes) -> str:
    """The message in the body of an error, or the body itself."""
    text, _ = _decode(body)
    with contextlib.suppress(ValueError):
        return _error_message(parse_json(text)) or text
    return text


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


def _error_message(answer: Any) -> str | None:
    """The message of an answer that is an error, if it has one."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
