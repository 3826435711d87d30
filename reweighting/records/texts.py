"""Which texts a model can be given."""

from __future__ import annotations

import json
import re
from typing import Any

from ..system.files import check_json
from ..system.terminal import printable

MAX_CHARACTERS = 200_000  # of a text: more tokens than a forward pass takes
# Text that a tokenizer would take for an image, a video or the end of a turn or a document.
_CONTROL_TOKEN = re.compile(
    r"<\|(?:(?:image|video|vision)_pad|(?:vision|im)_(?:start|end)|endoftext)\|>"
    r"|<IMG_CONTEXT>|</?img>|<image>|<video>"
)
# Many data sets mark the place of the image so; here it always stands before the question.
_IMAGE_TAG = re.compile(r"<image>[ \t]*\n?")


def without_image_tags(text: str) -> str:
    """The text of a record without tags for its image, whose place the prompt decides."""
    return _IMAGE_TAG.sub("", text)


def holds_control_token(text: str) -> bool:
    """Whether a tokenizer would take a part of the text for an image or the end of a turn.

    The tags that :func:`without_image_tags` removes count as such parts.
    """
    return _CONTROL_TOKEN.search(text) is not None


def text_fault(text: Any) -> tuple[str, ...] | None:
    """Why a model cannot be given this text: a sentence with ``{}`` for values, then the values.

    None if nothing is wrong. An empty text is no fault here: some fields may be empty.
    """
    if not isinstance(text, str):
        return "must be text, is {}", shown(text)
    if len(text) > MAX_CHARACTERS:
        return f"holds {{}} characters, more than {MAX_CHARACTERS}", str(len(text))
    if control := _CONTROL_TOKEN.search(text):
        return "holds the control token {}", control.group()
    return None if text.isascii() else json_fault(text)


def json_fault(value: Any) -> tuple[str, ...] | None:
    """Why :func:`~..system.files.check_json` refuses a value, in the form of :func:`text_fault`."""
    try:
        check_json(value)
    except ValueError as error:
        kind, *half = str(error).split(", ")
        return kind + ", {}" * len(half), *half
    return None


def shown(value: Any) -> str:
    """A value as JSON writes it, cut short if it is long."""
    return printable(json.dumps(value, ensure_ascii=False), 40)
