"""From text and an image to token ids: one code path for training and for selection.

A *prefix* is a question followed by the first i steps of a chain of thought. Every prefix becomes
one chat turn, ``<image> question\\n\\nsteps``, closed by the generation prompt; the reward is read
at the last position (DreamPRM, section 3: the PRM scores each step given all before it).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from qwen_vl_utils import fetch_image, smart_resize

# Real chains write "Step 1:", "### Step 1:", "**Step 1**", "STEP 1." at the start of a line. Inside
# a line only a marker that opens a sentence and carries a delimiter counts, so that "as seen in
# Step 2, ..." does not cut a step in two.
_LINE_START = r"(?:^[ \t]*(?:[#>*_-]+[ \t]*)*)"
_SENTENCE_START = r"(?:(?<=[.!?])[ \t]+[*_#]*)"
_FINAL_ANSWER = re.compile(
    rf"{_LINE_START}final\s+answer\b|{_SENTENCE_START}final\s+answer\s*(?:is\b|[*_]*\s*:)",
    re.IGNORECASE | re.MULTILINE,
)


def _step_marker(number: int) -> re.Pattern[str]:
    step = rf"step[ \t]*:?[ \t]*{number}(?!\d)"
    return re.compile(
        rf"{_LINE_START}{step}|{_SENTENCE_START}{step}[*_]*[ \t]*[:.)-]",
        re.IGNORECASE | re.MULTILINE,
    )


def step_starts(text: str, start: int = 0) -> list[int]:
    """Character offsets of the markers of steps 1, 2, 3, … in ``text``, searched from ``start``.

    The numbers must run upwards from 1; the first gap ends the chain.
    """
    offsets: list[int] = []
    while match := _step_marker(len(offsets) + 1).search(text, start):
        offsets.append(match.start())
        start = match.end()
    return offsets


def split_steps(response: str) -> list[str]:
    """All prefixes of a response, shortest first.

    Prefix i ends before the marker of step i+1 and the last one before "Final answer", so the
    verdict is never shown to the reward model. Text before step 1 belongs to every prefix. A
    response without step markers is one step, taken whole.
    """
    starts = step_starts(response)
    if not starts:
        return [response.strip()]
    final = _FINAL_ANSWER.search(response, starts[-1])
    ends = [*starts[1:], final.start() if final else len(response)]
    return [response[:end].rstrip() for end in ends]


def split_question(text: str) -> tuple[str, str]:
    """Cut a meta record's ``input`` (question + whole response) into its two parts.

    The response starts at the last "Step 1" (a question may quote the step-by-step instruction).
    Without any step, it is what follows the first blank line that does not open answer options or
    another part of the question. The response is empty when there is none.
    """
    first_steps = [m.start() for m in _step_marker(1).finditer(text)]
    if first_steps:
        cut = first_steps[-1]
        return text[:cut].rstrip(), text[cut:].strip()
    for blank in re.finditer(r"\n[ \t]*\n", text):
        rest = text[blank.end() :].lstrip()
        if rest and not re.match(r"(question|options?|choices|hint|\(?[A-J][).:])", rest, re.I):
            return text[: blank.start()].rstrip(), rest.strip()
    return text.strip(), ""


def final_answer(response: str) -> str:
    """What follows the last "Final answer" on its line, as written; "" if there is none."""
    matches = list(_FINAL_ANSWER.finditer(response))
    if not matches:
        return ""
    rest = response[matches[-1].end() :].strip().removeprefix("is")
    line = rest.lstrip(" *_:\n").splitlines()
    return line[0].strip(" *_") if line else ""


def join(question: str, prefix: str) -> str:
    """The text of one user turn: the question, a blank line, the steps so far."""
    return f"{question}\n\n{prefix}" if prefix else question


@dataclass(frozen=True)
class Prompt:
    """What one score is read from: a question and the first steps of a response.

    Args:
        question: as the record gives it.
        steps: as written, with what lies between them: put together they are the prefix itself.
        labels: of the steps before the last one, right or not; all right where there are none.
            Only ``plus_minus`` shows them to the model.
        system: the instruction that the data bring along, if any; for ``plus_minus``.
    """

    question: str
    steps: tuple[str, ...] = ()
    labels: tuple[bool, ...] = ()
    system: str = ""

    @property
    def text(self) -> str:
        """Question and steps in one user turn."""
        return join(self.question, "".join(self.steps))


def cut(prefixes: list[str]) -> tuple[str, ...]:
    """The pieces by which prefixes grow, the shortest prefix being the first piece."""
    grown = zip(prefixes[1:], prefixes, strict=False)
    return (*prefixes[:1], *(longer[len(shorter) :] for longer, shorter in grown))


def step_prompts(question: str, steps: tuple[str, ...], system: str = "") -> list[Prompt]:
    """A prompt for every step, shortest first."""
    return [Prompt(question, steps[:count], system=system) for count in range(1, len(steps) + 1)]


def chain_prompts(question: str, response: str) -> list[Prompt]:
    """A prompt for every step prefix of ``response``, shortest first."""
    return step_prompts(question, cut(split_steps(response)))


def record_prompt(question: str, prefix: str) -> Prompt:
    """The prompt of a train record's ``prefix``, which is kept to the letter."""
    return Prompt(question, cut([*split_steps(prefix)[:-1], prefix]))


@dataclass
class EncodedImage:
    """An image as the vision tower takes it."""

    pixel_values: torch.Tensor  # [patches, patch_dim], float32
    grid_thw: torch.Tensor  # [3], patches along time, height, width

    @property
    def nbytes(self) -> int:
        return self.pixel_values.nbytes + self.grid_thw.nbytes


@dataclass
class EncodedPrompts:
    """Prompts about one image; ``image_key`` tells equal images apart from different ones."""

    image_key: str
    image: EncodedImage
    token_ids: list[list[int]]  # one list per prompt, image placeholders already expanded


class PromptEncoder:
    """Turns an image and user turns into the model's inputs, with the checkpoint's own processor.

    Args:
        processor: the checkpoint's ``AutoProcessor``.
        max_image_size: longest side in pixels; larger images are shrunk first (the paper: 512).
        min_pixels, max_pixels: area bounds after rounding to whole visual tokens; ``None`` keeps
            the processor's own.
        cache_bytes: processed images kept in memory, least recently used ones dropped first.
    """

    def __init__(
        self,
        processor,
        max_image_size: int = 512,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.processor = processor
        self.max_image_size = max_image_size
        size = processor.image_processor.size
        self.min_pixels = min_pixels or size["shortest_edge"]
        self.max_pixels = max_pixels or size["longest_edge"]
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, EncodedImage] = OrderedDict()
        self._cached = 0

    def encode(self, image: str | Path | Image.Image, prompts: list[Prompt]) -> EncodedPrompts:
        """Encode ``prompts`` about ``image`` (a path, an http(s) URL or a picture)."""
        key = f"{id(image):x}" if isinstance(image, Image.Image) else str(image)
        encoded = self.encode_image(image)
        patches_per_token = self.processor.image_processor.merge_size**2
        image_tokens = int(encoded.grid_thw.prod()) // patches_per_token
        texts = [self._chat(prompt.text, image_tokens) for prompt in prompts]
        token_ids = self.processor.tokenizer(texts)["input_ids"]
        return EncodedPrompts(key, encoded, token_ids)

    def encode_image(self, image: str | Path | Image.Image) -> EncodedImage:
        """Decode, shrink, round to whole visual tokens and normalise one image."""
        if isinstance(image, Image.Image):
            return self._process(image)
        key = str(image)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        encoded = self._process(open_image(key))
        if encoded.nbytes <= self.cache_bytes:
            self._cache[key] = encoded
            self._cached += encoded.nbytes
            while self._cached > self.cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return encoded

    def _process(self, image: Image.Image) -> EncodedImage:
        if max(image.size) > self.max_image_size:
            scale = self.max_image_size / max(image.size)
            size = tuple(max(1, int(side * scale)) for side in image.size)
            image = image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA", "P") else "RGB")
            image = image.resize(size, Image.Resampling.LANCZOS)
        processor = self.processor.image_processor
        token = processor.patch_size * processor.merge_size  # pixels along a visual token
        height, width = (
            max(side, token)  # qwen-vl-utils rounds the short side of a long strip down to nothing
            for side in smart_resize(
                image.height, image.width, token, self.min_pixels, self.max_pixels
            )
        )
        image = fetch_image({"image": image, "resized_height": height, "resized_width": width})
        inputs = processor(images=[image], do_resize=False, return_tensors="pt")
        return EncodedImage(inputs["pixel_values"], inputs["image_grid_thw"][0])

    def _chat(self, prompt: str, image_tokens: int) -> str:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text = self.processor.apply_chat_template(
            [turn], tokenize=False, add_generation_prompt=True
        )
        placeholder = self.processor.image_token
        before, after = text.split(placeholder, 1)
        return before + placeholder * image_tokens + after


def open_image(source: str) -> Image.Image:
    """Open and fully decode an image from a path or an http(s) URL.

    Raises:
        OSError: the file is missing, empty, truncated or no image.
        PIL.Image.DecompressionBombError: it unpacks to more pixels than Pillow holds for safe.
    """
    if source.startswith(("http://", "https://")):
        import requests  # a dependency of qwen-vl-utils; only URL images need it

        response = requests.get(source, timeout=30)
        response.raise_for_status()
        image = Image.open(BytesIO(response.content))
    else:
        image = Image.open(source)
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        # Pillow only warns up to twice its limit; training on such an image is never meant.
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    image.load()
    return image
