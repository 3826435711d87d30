"""Make the tiny Qwen2-VL checkpoint: tokenizer, processor, configuration, scaled random weights.

    python weights/make_tiny_model.py --out weights/tiny-qwen2-vl

The architecture is the real one (`Qwen2VLForConditionalGeneration`), shrunk to about 1.4 million
parameters. `weights/pretrain.py` then teaches it to see and to judge; until then the weights are
random. The tokenizer is trained here, on text drawn from the demo world.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The prompt layout of Qwen2-VL-Instruct, written as it is published: other layouts would not be
# the real model's, and the prompts built here must be the ones a 2B run sees.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PIXEL_LIMITS = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 256}
# Words that pre-training uses around the world's own sentences.
VERDICTS = ("yes", "no")


def corpus(count: int = 3000) -> list[str]:
    """Lines of the demo world's own text; lines, so that no token ever spans a line break.

    Both wordings, both grid sizes, stated and unstated evidence, one and two questions at a time:
    with all of them a word of the world is one token, and a chain stays about a hundred long.
    """
    from data.world.simulated_reasoner import MIXED, draw
    from data.world.tasks import TASKS

    rng = random.Random("tokenizer")
    lines = ["You are a helpful assistant.", "system", "user", "assistant", *VERDICTS] * 50
    names = list(TASKS)
    for i in range(count):
        first = names[i % len(names)]
        same = [name for name in names if TASKS[name].scene == TASKS[first].scene]
        chosen = rng.sample(same, 2) if len(same) > 1 and rng.random() < 0.3 else [first]
        question, chain = draw(
            rng,
            *chosen,
            profile=MIXED,
            grid=rng.choice((3, 4)),
            style=i // len(names) % 2,
            hint=rng.random() < 0.2,
        )
        lines += [question.text, *chain.text.split("\n"), chain.answer]
    return lines


def train_tokenizer(lines: list[str], vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE of at most `vocab_size` tokens; any text encodes, at worst byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    fast = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t != "<|endoftext|>"],
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """Processor whose pixel limits leave 28 px .. 448 px images at their own size."""
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(PIXEL_LIMITS)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(PIXEL_LIMITS)),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: Qwen2Tokenizer) -> Qwen2VLConfig:
    """Text 128 wide, 4 layers; vision 96 wide, 2 layers; every token id read from `tokenizer`."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # Half a head's 32 dimensions are rotated pairs: 4 for time, 6 for height, 6 for width.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 96,
            "hidden_size": 128,
            "num_heads": 3,
            "mlp_ratio": 4,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


@torch.no_grad()
def scale_to_width(model: Qwen2VLForConditionalGeneration) -> None:
    """Draw every weight matrix at 0.08, about 1/sqrt(width), in place.

    transformers' default range of 0.02 suits widths of thousands; at a width of 128 it leaves the
    residual stream so quiet that a from-scratch model learns colours and then stalls.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.08)


def make_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2VLForConditionalGeneration:
    """The untrained model, float32, reproducible from `seed`."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(tokenizer))
    scale_to_width(model)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return model.eval()


def main() -> None:
    """Write the checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "weights" / "tiny-qwen2-vl", help="folder to write"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights (default 1)")
    parser.add_argument(
        "--vocab_size", type=int, default=1000, help="largest number of tokens (default 1000)"
    )
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(corpus(), arguments.vocab_size)
    model = make_model(tokenizer, arguments.seed)
    make_processor(tokenizer).save_pretrained(arguments.out)
    model.save_pretrained(arguments.out)
    AutoProcessor.from_pretrained(arguments.out)
    count = sum(parameter.numel() for parameter in model.parameters())
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {len(tokenizer)} tokens, {count:,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
