"""How prompts are made and scores are read, for programs that do so themselves."""

from __future__ import annotations

from typing import Any

from ..records.steps import LABELS
from ..reward_model.encoder import PromptEncoder, response_prompts

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


def recipe(encoder: PromptEncoder) -> dict[str, Any]:
    """The content of ``reward.json``: the prompt of a step, its score, the score of a chain."""
    whole_tokens = {}
    if encoder.resizes:
        whole_tokens = {
            "whole_tokens": "then resized to whole visual tokens within these bounds of the area, "
            "in training by Pillow (bicubic); a processor may round a colour differently",
            "min_pixels": encoder.min_pixels,
            "max_pixels": encoder.max_pixels,
        }
    text_alone = {}
    if encoder.score_head == "plus_minus" and encoder.system_turn(0) != encoder.system:
        text_alone = {"system_without_image": encoder.system_turn(0)}
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
            "prompts": [
                {"messages": encoder.turns(prompt), "text": encoder.chat(prompt)}
                for prompt in response_prompts(QUESTION, STEPS)
            ],
        },
    }
