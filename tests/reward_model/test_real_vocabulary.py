"""The paper's command on a checkpoint with Qwen2-VL-2B's own vocabulary and processor settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

import main as program
from tests.conftest import TINY
from tests.support.qwen_vocabulary import qwen2_tokenizer, vocabulary_file

VOCABULARY = vocabulary_file()
pytestmark = pytest.mark.skipif(
    VOCABULARY is None, reason="the package dashscope, which ships the vocabulary, is not installed"
)


@pytest.fixture(scope="module")
def tokenizer():
    return qwen2_tokenizer(VOCABULARY)


def make_checkpoint(path: Path, tokenizer, width: int, heads: int, vision: dict) -> Path:
    """A random checkpoint with the published ids, rotary sections and image limits."""
    head = width // heads
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": width,
            "intermediate_size": 8960 * width // 1536,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
            },
            "tie_word_embeddings": True,
        },
        vision_config={"hidden_size": width, **vision},
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=True,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(path)
    template = (TINY / "chat_template.jinja").read_text()
    limits = {"shortest_edge": 3136, "longest_edge": 12845056}
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=limits),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=limits),
        chat_template=template,
    ).save_pretrained(path)
    return path


def test_prompt_in_the_real_vocabulary(tokenizer, tmp_path):
    """Known ids: the ones every Qwen2-VL prompt opens and closes with."""
    assert tokenizer("Hello world")["input_ids"] == [9707, 1879]
    chat = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert tokenizer(chat)["input_ids"] == [
        *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198)
    ]
    assert tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"] == [
        *(151645, 198, 151644, 77091, 198)
    ]


def test_a_step_border_can_merge_and_the_tree_keeps_the_prompts_own_ids(tokenizer):
    """A prefix tokenised alone differs from the same text inside a longer one."""
    from reweighting.reward_model.prefix_tree import build_trie

    prompts = [
        tokenizer(text)["input_ids"]
        for text in ("Step 1: a.<|im_end|>", "Step 1: a.\n\nStep 2: b<|im_end|>")
    ]
    shared = next(i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b)
    assert tokenizer.decode(prompts[1][shared]) == ".\n\n"
    nodes, _, paths, _ = build_trie(prompts)
    assert [[nodes[i] for i in path] for path in paths] == prompts


def paper_command(data: Path, model: Path, run: Path, *flags: str) -> list[str]:
    """The command of the paper's README, with a short run on the CPU."""
    return [
        *("--train_json_file", str(data / "train.json")),
        *("--meta_json_file", str(data / "meta.json")),
        *("--weights_path", str(run), "--reward_model", str(model)),
        *("--image_root", str(data), "--device", "cpu", "--iteration_num", "5"),
        *flags,
    ]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_papers_command(dataset, tokenizer, tmp_path, precision):
    vision = {"depth": 1, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 4}
    model = make_checkpoint(tmp_path / "model", tokenizer, 64, 4, vision)
    flags = paper_command(dataset, model, tmp_path / "run", "--precision", precision)
    assert program.main(flags) == 0
    weights = json.loads((tmp_path / "run" / "domain_weights.json").read_text())
    assert sum(weights.values()) / 3 == pytest.approx(1) and len(set(weights.values())) > 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_papers_command_at_full_width(dataset, tokenizer, tmp_path, precision):
    """Width 1536 and vision width 1280 as in Qwen2-VL-2B, one layer each."""
    vision = {"depth": 1, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
    model = make_checkpoint(tmp_path / "model", tokenizer, 1536, 12, vision)
    flags = paper_command(dataset, model, tmp_path / "run", "--precision", precision)
    assert program.main(flags) == 0
