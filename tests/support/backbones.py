"""Tiny random checkpoints of other architectures, in the hub's format, made offline.

Each has the real classes of configuration, model, image processor and processor; only sizes and
vocabulary are small. The chat templates arrange turns and images as the published ones do.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.conftest import TINY
from weights.make_tiny_model import CHAT_TEMPLATE, PIXEL_LIMITS, scale_to_width

TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
TILE = 32  # pixels along a tile, of 8 x 8 pixels a patch

INTERNVL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A past turn opens with "assistant \n", the next one with "assistant\n".
LLAVA_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>"
    "{% endif %}{% endfor %}"
    "{% for content in message['content'] %}{% if content['type'] == 'text' %}"
    "\n{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_config(model_type: str, tokenizer, **more) -> dict:
    return {"model_type": model_type, "vocab_size": len(tokenizer), **TEXT, **more}


def qwen2_5_vl() -> tuple[PreTrainedConfig, ProcessorMixin]:
    """Window attention in the first of two vision layers, M-RoPE."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(PIXEL_LIMITS)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(PIXEL_LIMITS)),
        chat_template=CHAT_TEMPLATE,
    )
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "window_size": 56,  # 2 x 2 visual tokens
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
    }
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=text_config("qwen2_5_vl_text", tokenizer, rope_parameters=rope),
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return config, processor


def qwen3_vl() -> tuple[PreTrainedConfig, ProcessorMixin]:
    """Features of two vision layers enter two layers of the language model; interleaved M-RoPE."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(PIXEL_LIMITS)),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=dict(PIXEL_LIMITS), patch_size=14),
        chat_template=CHAT_TEMPLATE,
    )
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 48,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    ids = tokenizer.convert_tokens_to_ids
    text = {"rope_parameters": rope, "head_dim": 12, "num_hidden_layers": 3}
    config = Qwen3VLConfig(
        text_config=text_config("qwen3_vl_text", tokenizer, **text),
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return config, processor


def internvl(language_model: str = "qwen2") -> tuple[PreTrainedConfig, ProcessorMixin]:
    """One to four tiles and a thumbnail, four visual tokens each, 1-D positions."""
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = AutoTokenizer.from_pretrained(TINY, extra_special_tokens=special)
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = InternVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": TILE, "width": TILE}),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    config = InternVLConfig(
        text_config=text_config(language_model, tokenizer, head_dim=12)
        if language_model == "qwen3"
        else text_config(language_model, tokenizer),
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": TILE,
            "patch_size": 8,
        },
        image_token_id=processor.image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, processor


def llava_onevision(language_model: str = "qwen2") -> tuple[PreTrainedConfig, ProcessorMixin]:
    """A grid of tiles cut to the image's shape, with a token at the end of every row."""
    special = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = AutoTokenizer.from_pretrained(TINY, extra_special_tokens=special)
    grids = [[TILE * rows, TILE * columns] for rows in (1, 2) for columns in (1, 2)]
    image_processor = LlavaOnevisionImageProcessor(
        size={"height": TILE, "width": TILE}, image_grid_pinpoints=grids
    )
    processor = LlavaOnevisionProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": TILE, "width": TILE}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaOnevisionConfig(
        text_config=text_config(language_model, tokenizer),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=grids,
    )
    return config, processor


BACKBONES = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "internvl-qwen3": functools.partial(internvl, "qwen3"),
    "llava_onevision": llava_onevision,
    # Trees are not tested with its language model, so it runs separate forward passes.
    "llava_onevision-llama": functools.partial(llava_onevision, "llama"),
}


def make_backbone(name: str, directory: Path) -> Path:
    """Write the checkpoint ``name`` of :data:`BACKBONES`."""
    config, processor = BACKBONES[name]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    scale_to_width(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
