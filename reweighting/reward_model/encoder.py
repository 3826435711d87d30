"""From text and images to token ids: one code path for training and for selection.

A *prefix* is a question followed by the first i steps of a chain of thought; the reward is read at
the last position of its prompt. With the head ``linear`` a prefix is one chat turn, ``<image>
question\\n\\nsteps``, followed by the generation prompt (DreamPRM, section 3). With ``plus_minus``
(DreamPRM-1.5) every step is a turn of its own with a label after it, and the generation prompt
stands where the label of the last step would be. Several images stand there one after another, as
the chat template places them, and without an image the text stands alone.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from qwen_vl_utils import smart_resize

from ..records.images import (
    Images,
    Source,
    content_key,
    listed,
    load_pixels,
    shrunk_size,
    source_key,
)
from ..records.steps import LABELS, Prompt, chain_prompts, check_count, join, step_prompts

# The system turn of the head plus_minus if the data have none, with images and without.
INSTRUCTION = (
    "You are given a question about an image and a solution of it, step by step. After each step "
    "say whether the solution is right so far: answer + if it is and - if it is not, nothing else."
)
TEXT_INSTRUCTION = INSTRUCTION.replace(" about an image", "")
# What a processor returns in addition to the inputs of the image.
_TEXT_INPUTS = ("attention_mask", "mm_token_type_ids")
_BETWEEN = "#"  # tells the placeholders of several images apart; no processor has it within one


@dataclass
class EncodedImages:
    """The images of a prompt as the model takes them.

    Args:
        inputs: by the names of the model's arguments, images concatenated along the first
            dimension; empty without an image.
        placeholders: what stands for each image in a prompt, one token per visual feature.
    """

    inputs: dict[str, torch.Tensor]
    placeholders: list[str]

    @property
    def nbytes(self) -> int:
        text = sum(map(len, self.placeholders))
        return text + sum(value.nbytes for value in self.inputs.values())


@dataclass
class EncodedPrompts:
    """Prompts that show the same images.

    Those with equal ``image_key`` show equal images in the same order, or none and ask the same.
    """

    image_key: str
    images: EncodedImages
    token_ids: list[list[int]]  # one list per prompt, image placeholders already expanded


def response_prompts(
    question: str, response: str | Sequence[str], pattern: str | None = None
) -> list[Prompt]:
    """A prompt for every step of a response, shortest first; none if it is empty.

    Args:
        response: its text, or its steps, which are put on lines of their own and not split further.
        pattern: of the step markers in a text, see :func:`~..records.steps.layout`.

    Raises:
        ValueError: it has more steps than :data:`~..records.steps.MAX_STEPS`.
    """
    if isinstance(response, str):
        return chain_prompts(question, response, pattern) if response.strip() else []
    check_count(len(response))
    steps = [step.strip("\n") for step in response]
    return step_prompts(question, (*steps[:1], *(f"\n{step}" for step in steps[1:])))


def conversation(prompt: Prompt, score_head: str, system: str, images: int = 1) -> list[dict]:
    """The turns of a prompt, as chat templates take them.

    Args:
        score_head: see :class:`PromptEncoder`.
        system: the first turn, with the head ``plus_minus`` only.
        images: their number.
    """
    if score_head == "linear":
        return [_turn("user", prompt.text, images)]
    first, *later = [step.strip() for step in prompt.steps] or [""]
    turns = [
        _turn("system", system_turn(system, images)),
        _turn("user", join(prompt.question, first), images),
    ]
    # Steps that nobody has labelled count as right.
    labels = itertools.chain(prompt.labels, itertools.repeat(True))
    for step, label in zip(later, labels, strict=False):
        turns += [_turn("assistant", LABELS[not label]), _turn("user", step)]
    return turns


def system_turn(system: str, images: int) -> str:
    """What a ``plus_minus`` prompt opens with: the default speaks of an image only where one is."""
    return TEXT_INSTRUCTION if not images and system == INSTRUCTION else system


def fitted(
    image: Image.Image,
    longest_side: int,
    token_side: int | None,
    min_pixels: int | None,
    max_pixels: int | None,
) -> Image.Image:
    """An image at the size at which the model sees it.

    Args:
        longest_side: in pixels; larger images are shrunk.
        token_side: pixels along a visual token, of which the sides then become multiples; None
            where the processor resizes in a way of its own.
        min_pixels, max_pixels: bounds of the area in whole visual tokens.
    """
    if (size := shrunk_size(image.size, longest_side)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if token_side is None:
        return image
    height, width = (
        max(side, token_side)  # qwen-vl-utils rounds the short side of a long strip down to 0
        for side in smart_resize(image.height, image.width, token_side, min_pixels, max_pixels)
    )
    return image.resize((width, height))


class PromptEncoder:
    """Turns images and prompts into the model's inputs, with the checkpoint's own processor.

    Args:
        processor: the checkpoint's ``AutoProcessor``.
        max_image_size: longest side in pixels; larger images are shrunk first (the paper: 512).
        min_pixels, max_pixels: bounds of the area after rounding to whole visual tokens; ``None``
            keeps the processor's own.
        cache_bytes: processed images kept in memory; the least recently used are dropped first.
        score_head: ``linear``, a prompt is one user turn; ``plus_minus``, one turn per step with a
            label after each, up to where the last label would be.
        system: first turn of every ``plus_minus`` prompt; :data:`INSTRUCTION` speaks of no image
            where there is none.
        step_pattern: what starts a step, see :func:`~..records.steps.layout`; saved with the model,
            because its scores depend on it.

    Raises:
        ValueError: the processor lacks something that is needed.
    """

    def __init__(
        self,
        processor,
        max_image_size: int = 512,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_bytes: int = 0,
        score_head: str = "linear",
        system: str = INSTRUCTION,
        step_pattern: str | None = None,
    ) -> None:
        self.processor = processor
        self.max_image_size = max_image_size
        # Qwen's processors resize to whole visual tokens; others to sizes of their own.
        self.resizes = hasattr(processor.image_processor, "merge_size")
        if self.resizes:
            size = processor.image_processor.size
            self.min_pixels = min_pixels or size["shortest_edge"]
            self.max_pixels = max_pixels or size["longest_edge"]
        elif min_pixels or max_pixels:
            raise ValueError("its image processor knows no bounds of the number of pixels")
        self.cache_bytes = cache_bytes
        self.score_head = score_head
        self.system = system
        self.step_pattern = step_pattern
        self._cache: OrderedDict[str, EncodedImages] = OrderedDict()
        self._cached = 0

    @property
    def label_ids(self) -> tuple[int, int]:
        """Token ids of ``+`` and ``-``.

        Raises:
            ValueError: one of them is not a single token.
        """
        found = []
        for label in LABELS:
            ids = self.processor.tokenizer(label, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise ValueError(f"its tokenizer makes {len(ids)} tokens of the label '{label}'")
            found += ids
        return found[0], found[1]

    def control_token(self, text: str) -> str | None:
        """The first special token or image placeholder that the tokenizer finds in ``text``."""
        found = self._control_tokens.search(text)
        return found.group() if found else None

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        added = self.processor.tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special} | {self.processor.image_token}
        return re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)))

    def check(self) -> None:
        """Encode a small prompt, to see whether the processor can.

        Raises:
            ValueError: it cannot.
        """
        if self.score_head == "plus_minus":
            _ = self.label_ids
        try:
            self.encode(Image.new("RGB", (56, 56)), [Prompt("Q", ("Step 1: a", "Step 2: b"))])
        except Exception as error:  # processors and templates raise errors of any kind
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise ValueError(f"its processor makes no prompt: {reason}") from error

    def encode(self, images: Images, prompts: list[Prompt]) -> EncodedPrompts:
        """Encode ``prompts``, which all show ``images``; without any they ask the same question.

        Raises what :func:`~..records.images.open_image` does.
        """
        if found := listed(images):
            key, encoded = self._encoded(found)
        else:  # no path holds a NUL, so no image has such a key
            key, encoded = f"\0{prompts[0].question}", EncodedImages({}, [])
        texts = [self._text(prompt, encoded.placeholders) for prompt in prompts]
        # The chat template has already written the special tokens.
        token_ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return EncodedPrompts(key, encoded, token_ids)

    def encode_image(self, image: Source) -> EncodedImages:
        """Decode, shrink and normalise one image."""
        return self._encoded([image])[1]

    def _encoded(self, images: Sequence[Source]) -> tuple[str, EncodedImages]:
        """The images of a prompt and their key: with equal keys they are equal."""
        keys, opened = [], []
        for image in images:
            pixels = None
            if isinstance(image, (str, Path)):
                keys.append(source_key(image))
            else:  # by content: id() and address of an object are used again once it is gone
                pixels = load_pixels(image)
                keys.append(content_key(pixels))
            opened.append(pixels)
        key = "\0".join(keys)
        if key in self._cache:
            self._cache.move_to_end(key)
            return key, self._cache[key]
        encoded = self._process(
            [pixels or load_pixels(image) for image, pixels in zip(images, opened, strict=True)]
        )
        if encoded.nbytes <= self.cache_bytes:
            self._cache[key] = encoded
            self._cached += encoded.nbytes
            while self._cached > self.cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return key, encoded

    def _process(self, images: list[Image.Image]) -> EncodedImages:
        """The images of one prompt: some processors cut an image that stands alone into tiles."""
        images = [fitted(image, **self.sizes) for image in images]
        options = {"add_special_tokens": False, "return_tensors": "pt"}
        if self.resizes:
            options["do_resize"] = False
        # The processor knows how many tokens stand for an image: it is given the placeholder only.
        text = _BETWEEN.join([self.processor.image_token] * len(images))
        inputs = dict(self.processor(images=[images], text=[text], **options))
        placeholders = self.processor.tokenizer.decode(inputs.pop("input_ids")[0]).split(_BETWEEN)
        for name in _TEXT_INPUTS:
            inputs.pop(name, None)
        if "token_type_ids" in inputs:
            raise ValueError("it needs token types, which prompts here do not have")
        if inputs["pixel_values"].dim() == 5:  # images with their tiles, padded to equal numbers
            inputs["pixel_values"] = inputs["pixel_values"].flatten(0, 1)
        return EncodedImages(inputs, placeholders)

    @property
    def sizes(self) -> dict[str, int | None]:
        """What :func:`fitted` is told of the images."""
        if not self.resizes:
            bounds = dict.fromkeys(("token_side", "min_pixels", "max_pixels"))
            return {"longest_side": self.max_image_size, **bounds}
        processor = self.processor.image_processor
        return {
            "longest_side": self.max_image_size,
            "token_side": processor.patch_size * processor.merge_size,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
        }

    def _text(self, prompt: Prompt, placeholders: list[str]) -> str:
        """The conversation of a prompt with the placeholders of its images."""
        chat = self.chat(prompt, len(placeholders))
        pieces = chat.split(self.processor.image_token, len(placeholders))
        return "".join(itertools.chain(*zip(pieces, [*placeholders, ""], strict=True)))

    def chat(self, prompt: Prompt, images: int = 1) -> str:
        """The conversation up to where the model would speak next, with a token an image."""
        turns = self.turns(prompt, images)
        return self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def turns(self, prompt: Prompt, images: int = 1) -> list[dict]:
        """The turns of the conversation, see :func:`conversation`."""
        return conversation(prompt, self.score_head, self.system, images)


def _turn(role: str, text: str, images: int = 0) -> dict:
    return {
        "role": role,
        "content": [{"type": "image"}] * images + [{"type": "text", "text": text}],
    }
