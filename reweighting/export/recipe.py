"""How prompts are made and scores are read, for programs that do so themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..records.images import data_url, image_problem, is_data_uri, load_pixels
from ..records.patterns import compiled
from ..records.steps import LABELS, Prompt
from ..reward_model import RewardModel
from ..reward_model.encoder import conversation, fitted, response_prompts, system_turn
from ..system.files import FileError, is_number, parse_json, read_text

RECIPE_FILE = "reward.json"
QUESTION = "Question: How many bars are higher than 5?"
STEPS = ("Step 1: The bars are 3, 6 and 8 high.", "Step 2: Two of them are higher than 5.")
_TURNS = {
    "linear": [
        "One user turn: the images, if any, then the question, a blank line and steps 1 to i, "
        "each on a line of its own.",
    ],
    "plus_minus": [
        "The system turn.",
        "A user turn: the images, if any, then the question, a blank line and step 1.",
        f"For each of the steps 2 to i: an assistant turn that is '{LABELS[0]}', the label of the "
        "step before it, and a user turn that is the step.",
    ],
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a program that scores through a server reads of ``reward.json``."""

    score_head: str
    system: str
    step_pattern: str | None
    sizes: dict[str, int | None]  # see fitted() in reward_model.encoder
    question: str  # those of the example
    steps: list[str]
    image: str
    log_odds: list[float]
    digest: str  # of the file; as the log-odds are in it, it differs between models

    def turns(self, prompt: Prompt, images: int) -> list[dict]:
        """The conversation of a prompt with this number of images."""
        return conversation(prompt, self.score_head, self.system, images)

    def image_url(self, source: str) -> str:
        """An image as the model sees it, without loss, as a ``data:`` URI.

        Its sides are whole visual tokens already, so the server's processor has nothing to resize.

        Raises what :func:`~..records.images.open_image` does.
        """
        return data_url(fitted(load_pixels(source), **self.sizes))


def recipe(model: RewardModel) -> dict[str, Any]:
    """The content of ``reward.json``: the prompt of a step, its score, the score of a chain."""
    encoder = model.encoder
    image = data_url(example_image())
    [log_odds] = model.log_odds(image, QUESTION, [STEPS])
    whole_tokens = {}
    if encoder.resizes:
        whole_tokens = {
            "whole_tokens": "then resized to whole visual tokens of this side within these bounds "
            "of the area, in training by Pillow (bicubic); a processor may round a colour "
            "differently",
            **{name: value for name, value in encoder.sizes.items() if name != "longest_side"},
        }
    text_alone = {}
    if encoder.score_head == "plus_minus" and system_turn(encoder.system, 0) != encoder.system:
        text_alone = {"system_without_image": system_turn(encoder.system, 0)}
    return {
        "score_head": encoder.score_head,
        "system": encoder.system if encoder.score_head == "plus_minus" else None,
        **text_alone,
        "turns_of_step_i": _TURNS[encoder.score_head],
        "add_generation_prompt": True,
        "step_pattern": encoder.step_pattern,
        "image": {
            "mode": "RGB, upright, on white where it is transparent",
            "longest_side": encoder.max_image_size,
            "larger_images": "shrunk to the longest side by Lanczos, sides rounded down, before "
            "the processor sees them",
            **whole_tokens,
        },
        "score": {
            "read_at": "the last token of the prompt, which is the end of the generation prompt",
            "log_odds": "z of step i: the one logit",
            "probability": "V = sigmoid(z)",
        },
        "aggregation": {
            "name": "mean_log_odds",
            "log_odds": "of a chain: the mean of z over its steps",
            "probability": "sigmoid of that mean",
        },
        "example": {
            "question": QUESTION,
            "steps": STEPS,
            "image": image,
            "log_odds": log_odds,
            "prompts": [
                {"messages": encoder.turns(prompt), "text": encoder.chat(prompt)}
                for prompt in response_prompts(QUESTION, STEPS)
            ],
        },
    }


def example_image() -> Image.Image:
    """The picture of the example: three bars, as its first step says."""
    image = Image.new("RGB", (112, 112), "white")
    for number, height in enumerate((3, 6, 8)):
        left = 12 + 32 * number
        ImageDraw.Draw(image).rectangle((left, 104 - 12 * height, left + 23, 104), "navy")
    return image


def read_recipe(path: Path) -> Recipe:
    """What an export has written.

    Raises:
        FileError: the file cannot be read, or lacks something.
    """
    text = read_text(path)
    try:
        return _recipe(parse_json(text), hashlib.sha256(text.encode()).hexdigest())
    except KeyError as error:
        raise FileError(f"{path}: field {error} is missing or unusable; export again") from error
    except ValueError as error:
        raise FileError(f"{path}: not JSON: {error}") from error


def _recipe(made: Any, digest: str) -> Recipe:
    """The recipe in a JSON value; a :class:`KeyError` names the first field that is unusable."""

    def field(usable: Callable[[Any], bool], *names: str, optional: bool = False) -> Any:
        value = made
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if not (usable(value) or (optional and value is None)):
            raise KeyError(".".join(names))
        return value

    def bound(name: str) -> int | None:
        return field(_is_size, "image", name, optional="whole_tokens" not in made["image"])

    longest_side = field(_is_size, "image", "longest_side")
    score_head = field(lambda value: value in list(_TURNS), "score_head")
    steps = field(_all(_is_text), "example", "steps")
    return Recipe(
        score_head=score_head,
        system=field(_is_text, "system", optional=score_head == "linear") or "",
        step_pattern=field(_is_pattern, "step_pattern", optional=True),
        sizes={
            "longest_side": longest_side,
            **{name: bound(name) for name in ("token_side", "min_pixels", "max_pixels")},
        },
        question=field(_is_text, "example", "question"),
        steps=steps,
        image=field(_is_image, "example", "image"),
        log_odds=field(
            lambda value: _all(is_number)(value) and len(value) == len(steps), "example", "log_odds"
        ),
        digest=digest,
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_image(value: Any) -> bool:
    return _is_text(value) and is_data_uri(value) and image_problem(value) is None


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_pattern(value: Any) -> bool:
    try:
        compiled(value)
    except (TypeError, ValueError):
        return False
    return True


def _all(usable: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(usable, value))
