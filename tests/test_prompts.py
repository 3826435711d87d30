"""Step splitting and token ids."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reweighting.steps import Prompt, chain_prompts, split_question, split_steps


@pytest.mark.parametrize(
    "first", ["Step {}:", "### Step {}:", "**Step {}**", "STEP {}.", "step {}"]
)
def test_every_marker_style_is_split_before_its_decoration(first):
    parts = [f"{first.format(k)} part {k}" for k in (1, 2, 3)]
    response = "\n\n".join(parts) + "\n\n**Final answer:** B"
    assert split_steps(response) == [
        parts[0],
        "\n\n".join(parts[:2]),
        "\n\n".join(parts),
    ]


def test_mentions_of_a_step_do_not_cut_and_step_10_is_not_step_1():
    response = "\n".join(
        [f"Step {k}: as Step 2 and Step 10 say, use step {k + 1} later." for k in range(1, 12)]
    )
    prefixes = split_steps(response)
    assert len(prefixes) == 11
    assert prefixes[0] == response.splitlines()[0]
    assert prefixes[9].endswith("use step 11 later.")


def test_steps_on_one_line_need_a_sentence_end_and_a_delimiter():
    response = "Step 1: look at the bar. Step 2: it reads 4 as in Step 3 above. Final answer: 4"
    assert split_steps(response) == [
        "Step 1: look at the bar.",
        "Step 1: look at the bar. Step 2: it reads 4 as in Step 3 above.",
    ]


def test_a_response_without_steps_is_one_step_taken_whole():
    assert split_steps("It is red.\nFinal answer: red") == ["It is red.\nFinal answer: red"]


def test_question_and_response_of_a_meta_record():
    question = "Question: Use Step 1 and Step 2.\n\nOptions: (A) yes (B) no"
    assert split_question(question + "\n\nStep 1: x\nStep 2: y") == (
        question,
        "Step 1: x\nStep 2: y",
    )
    assert split_question("Question: what?\n\nOptions: (A) yes") == (
        "Question: what?\n\nOptions: (A) yes",
        "",
    )
    assert split_question("Question: what?\n\nIt is red.") == ("Question: what?", "It is red.")
    assert split_question("Question: q\nOptions: (A) a\n\nFinal answer: A") == (
        "Question: q\nOptions: (A) a",
        "Final answer: A",
    )


def test_chain_prompts_join_as_train_records_do():
    prompts = chain_prompts("Q", "Step 1: a\nStep 2: b\nFinal answer: c")
    assert [prompt.text for prompt in prompts] == [
        "Q\n\nStep 1: a",
        "Q\n\nStep 1: a\nStep 2: b",
    ]


def test_token_ids_are_those_of_the_processor(reward_model):
    """The whole prompt, spelled out, and the same ids as the processor's own call."""
    encoder = reward_model.encoder
    image = Image.fromarray(np.zeros((84, 112, 3), dtype=np.uint8))  # 3 x 4 visual tokens
    [ids] = encoder.encode(image, [Prompt("Q", ("Step 1: a",))]).token_ids
    tokenizer = encoder.processor.tokenizer
    special = tokenizer.convert_tokens_to_ids
    expected = [
        special("<|im_start|>"),
        *tokenizer("system\nYou are a helpful assistant.")["input_ids"],
        special("<|im_end|>"),
        *tokenizer("\n")["input_ids"],
        special("<|im_start|>"),
        *tokenizer("user\n")["input_ids"],
        special("<|vision_start|>"),
        *[special("<|image_pad|>")] * 12,
        special("<|vision_end|>"),
        *tokenizer("Q\n\nStep 1: a")["input_ids"],
        special("<|im_end|>"),
        *tokenizer("\n")["input_ids"],
        special("<|im_start|>"),
        *tokenizer("assistant\n")["input_ids"],
    ]
    assert ids == expected
    turn = [{"type": "image"}, {"type": "text", "text": "Q\n\nStep 1: a"}]
    text = encoder.processor.apply_chat_template(
        [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
    )
    inputs = encoder.processor(text=[text], images=[image], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ids


@pytest.mark.parametrize("size", [(28, 28), (100, 61), (448, 28)])
def test_images_get_the_tokens_that_the_processor_gives_them(reward_model, size):
    processor, image = reward_model.encoder.processor, Image.new("RGB", size)
    inputs = processor(text=[processor.image_token], images=[image], return_tensors="pt")
    assert grid(reward_model.encoder, image) == inputs["image_grid_thw"][0].tolist()


@pytest.mark.parametrize("side, longest", [(1200, 504), (300, 308)])
def test_images_are_shrunk_to_the_longest_side(reward_model, side, longest):
    encoded = reward_model.encoder.encode_image(Image.new("RGB", (side, side // 2)))
    [[_, height, width]] = encoded.inputs["image_grid_thw"].tolist()
    # Sides are whole visual tokens of 28 px; the tiny checkpoint allows 448 x 448 px in all.
    assert width * 14 == longest and height * 14 <= longest


def grid(encoder, image) -> list[int]:
    """Patches along time, height, width."""
    return encoder.encode_image(image).inputs["image_grid_thw"][0].tolist()


def test_a_long_strip_keeps_one_visual_token_across(reward_model):
    from reweighting.prompts import PromptEncoder

    encoder = PromptEncoder(reward_model.encoder.processor, max_pixels=1000)
    assert grid(encoder, Image.new("RGB", (500, 20)))[1] == 2


def test_pixel_bounds_change_the_number_of_visual_tokens(reward_model):
    from reweighting.prompts import PromptEncoder

    image = Image.new("RGB", (112, 112))
    processor = reward_model.encoder.processor
    assert grid(PromptEncoder(processor, max_pixels=56 * 56), image) == [1, 4, 4]
    assert grid(PromptEncoder(processor, min_pixels=224 * 224), image) == [1, 16, 16]


def test_the_image_cache_keeps_to_its_bytes(reward_model, tmp_path):
    from reweighting.prompts import PromptEncoder

    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (84, 84), (number, 0, 0)).save(paths[-1])
    size = reward_model.encoder.encode_image(paths[0]).nbytes
    encoder = PromptEncoder(reward_model.encoder.processor, cache_bytes=2 * size)
    first = encoder.encode_image(paths[0])
    assert encoder.encode_image(paths[0]) is first
    for path in paths[1:]:
        encoder.encode_image(path)
    assert encoder._cached == 2 * size
    assert encoder.encode_image(paths[0]) is not first
