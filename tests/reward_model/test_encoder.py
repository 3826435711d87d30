"""Token ids and images as the model takes them, against the processor's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reweighting.records.steps import Prompt
from reweighting.reward_model.encoder import PromptEncoder


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
    encoder = PromptEncoder(reward_model.encoder.processor, max_pixels=1000)
    assert grid(encoder, Image.new("RGB", (500, 20)))[1] == 2


def test_pixel_bounds_change_the_number_of_visual_tokens(reward_model):
    image = Image.new("RGB", (112, 112))
    processor = reward_model.encoder.processor
    assert grid(PromptEncoder(processor, max_pixels=56 * 56), image) == [1, 4, 4]
    assert grid(PromptEncoder(processor, min_pixels=224 * 224), image) == [1, 16, 16]


def test_the_image_cache_keeps_to_its_bytes(reward_model, tmp_path):
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
