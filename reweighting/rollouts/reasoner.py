"""What a reasoner is asked, and what it gives back: the part that servers and local models share.

A *reasoner* is the model whose chains of thought the reward model will judge. It is asked for whole
chains, and for *rollouts*: completions of the first i steps of a chain.
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
from ..terminal import printable

# The paper's structured thinking (DreamPRM, section 3: restate, evidence from the image, background
# knowledge, reasoning, conclusion) in words of our own.
INSTRUCTION = """\
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
class Prompt:
    """What is put to the reasoner: a question about an image, perhaps with the steps so far."""

    question: str
    image: str  # path or URL
    prefix: str = ""


@dataclass(frozen=True)
class Rollout:
    """One sampled response (or the rest of one), as it came."""

    text: str
    finish_reason: str  # "stop"; "length" when cut off at the limit of tokens
    tokens_in: int
    tokens_out: int


class ItemError(Exception):
    """This rollout could not be had; others may. The reason is one printable line."""

    def __init__(self, reason: object) -> None:
        super().__init__(printable(reason))


class ReasonerError(Exception):
    """Nothing can be had: wrong key, unknown model, a server that stays dead."""


class MissingReasonerError(Exception):
    """There is no such reasoner: a package, a checkpoint or a device is missing."""


class Reasoner(Protocol):
    """A source of rollouts.

    ``settings`` is everything besides prompt and seed that a response depends on;
    ``rollouts_per_call`` is how many rollouts of one prompt :meth:`sample` is best given at once.
    """

    settings: dict
    rollouts_per_call: int

    async def sample(self, prompt: Prompt, seeds: Sequence[int]) -> list[Rollout]:
        """One rollout a seed.

        Raises:
            ItemError: these rollouts are lost.
            ReasonerError: it makes no sense to go on.
        """
        ...

    async def close(self) -> None: ...


def user_text(question: str, instruction: str, prefix: str = "") -> str:
    """The user turn's text: question, instruction and, where given, the steps to go on from."""
    parts = [question, instruction]
    if prefix:
        parts.append(CONTINUATION.format(prefix=prefix))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class PreparedImage:
    """An image file as it is sent."""

    body: bytes
    kind: str  # "png" or "jpeg"
    digest: str

    @cached_property
    def data_url(self) -> str:
        return f"data:image/{self.kind};base64,{base64.b64encode(self.body).decode()}"


def prepare_image(source: str, max_size: int) -> PreparedImage:
    """Shrink an image to ``max_size`` pixels on its longest side and encode it, once.

    JPEG stays JPEG; everything else becomes PNG, which loses nothing. The pixels are those that
    the reward model sees, see :func:`~..records.images.to_pixels`.

    Raises:
        OSError: the image is missing or broken.
    """
    return _prepare_image(source, source_key(source), max_size)


# Work goes on question by question, so few images are in use at a time. ``key`` changes with the
# file.
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
