"""The checkpoint the demo and the tests use: in the hub's own format, small, reproducible."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration

from .conftest import TINY


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


def test_the_auto_classes_open_it_and_it_is_small():
    model = AutoModelForImageTextToText.from_pretrained(TINY)
    assert isinstance(model, Qwen2VLForConditionalGeneration)
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 10e6


def test_token_ids_of_the_configuration_are_the_tokenizers(processor):
    config = json.loads((TINY / "config.json").read_text())
    ids = processor.tokenizer.convert_tokens_to_ids
    assert config["image_token_id"] == ids("<|image_pad|>")
    assert config["video_token_id"] == ids("<|video_pad|>")
    assert config["vision_start_token_id"] == ids("<|vision_start|>")
    assert config["text_config"]["eos_token_id"] == ids("<|im_end|>")
    assert config["text_config"]["vocab_size"] == len(processor.tokenizer)


def test_any_text_survives_the_tokenizer(processor):
    text = "Ünknown → 漢字\n\tand 3.14!"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_the_chat_template_is_qwen2_vls(processor):
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
    assert processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
