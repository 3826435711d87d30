"""Chat completions, read from bytes that are not trusted."""

from __future__ import annotations

from dataclasses import dataclass

from ..system.server.body import (
    Refused,
    Unreadable,
    error_message,
    number_of_tokens,
    read_json_body,
)


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
        Unreadable: the body is not JSON, an error, or holds no completion.
        Refused: the completion was filtered or refused.
    """
    answer, broken = read_json_body(body)
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        if said := error_message(answer):
            raise Unreadable("the answer is an error", said) from error
        raise Unreadable("the answer holds no completion") from error
    if finish == "content_filter" or refusal:
        raise Refused(refusal or finish)
    if isinstance(content, list):  # parts, some of which are the text and others the thinking
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") in (None, "text")]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str | None):
        raise Unreadable("the answer's content is not text")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Completion(
        content or "",
        finish if isinstance(finish, str) else None,
        number_of_tokens(usage.get("prompt_tokens")),
        number_of_tokens(usage.get("completion_tokens")),
        broken,
    )
