"""What a reasoner is asked and what it returns, whether it is on a server or a local checkpoint.

A *reasoner* is the model whose chains of thought the reward model will judge. It is asked for whole
chains and for completions of the first i steps of a chain; both are called *rollouts*.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Protocol

from PIL import Image

from ..records.images import not_too_thin, open_image, source_key, to_pixels

# The paper's structured thinking (DreamPRM, section 3: restate, evidence from the image, background
# knowledge, reasoning, conclusion) in our own words.
CHAIN_INSTRUCTION = """\
Answer the question about the image. Think in five steps; begin each on a new line with its marker.

Step 1: Say in your own words what is asked.
Step 2: Collect the evidence: what the image shows that bears on the question.
Step 3: Recall the background knowledge that is needed: facts, definitions, formulas.
Step 4: Reason from the evidence and the background knowledge, one conclusion after the other.
Step 5: Sum up what follows for the question.

Close with a line that holds nothing but "Final answer:" and the answer; if there are options, its \
letter."""

CONTINUATION = """\
The solution has been started:

{prefix}

Go on right after its last line. Write only what is missing, up to the final answer."""


@dataclass(frozen=True)
class Query:
    """What the reasoner is asked: a question about an image, perhaps with the steps so far."""

    question: str
    image: str  # path or URL
    prefix: str = ""


@dataclass(frozen=True)
class Rollout:
    """One sampled response, or the rest of one after a prefix."""

    text: str
    finish_reason: str  # "stop", or "length" if it was cut off at the limit of tokens
    tokens_in: int
    tokens_out: int


class MissingReasonerError(Exception):
    """The reasoner cannot be set up: a checkpoint or a device is missing, or an option is wrong."""


class Reasoner(Protocol):
    """A source of rollouts.

    ``settings`` is everything besides query and seed that a response depends on;
    ``rollouts_per_call`` is how many seeds :meth:`sample` should be given at once.
    """

    settings: dict
    rollouts_per_call: int

    async def sample(self, query: Query, seeds: Sequence[int]) -> list[Rollout]:
        """One rollout per seed.

        Raises:
            ItemError: these rollouts are lost.
            ServerError: no other rollout would succeed either.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def user_text(question: str, instruction: str, prefix: str = "") -> str:
    """The text of the user's turn: question, instruction and, if given, the steps so far."""
    parts = [question, instruction]
    if prefix:
        parts.append(CONTINUATION.format(prefix=prefix))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class PreparedImage:
    """An image as it is sent to the reasoner."""

    body: bytes
    kind: str  # "png" or "jpeg"
    digest: str  # SHA-256 of the body

    @cached_property
    def data_url(self) -> str:
        return f"data:image/{self.kind};base64,{base64.b64encode(self.body).decode()}"


def prepare_image(source: str, max_size: int) -> PreparedImage:
    """Shrink an image to at most ``max_size`` pixels on its longest side and encode it once.

    JPEG stays JPEG; everything else becomes PNG, which loses nothing. The pixels are those that
    the reward model sees, see :func:`~..records.images.to_pixels`.

    Raises:
        OSError: the image is missing or broken.
    """
    return _prepare_image(source, source_key(source), max_size)


# Questions are worked on in order, so few images are in use at a time. ``key`` changes with the
# file's content.
@lru_cache(maxsize=256)
def _prepare_image(source: str, key: str, max_size: int) -> PreparedImage:
    image = open_image(source)
    kind = "jpeg" if image.format == "JPEG" else "png"
    gray = kind == "png" and image.mode == "L" and not image.has_transparency_data
    image = to_pixels(image)
    image.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
    if (size := not_too_thin(image.size)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if gray:
        image = image.convert("L")
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "jpeg" else {}))
    body = buffer.getvalue()
    return PreparedImage(body, kind, hashlib.sha256(body).hexdigest())
