"""The checkpoint the demo and the tests use: in the hub's own format, small, reproducible."""

from __future__ import annotations

import json
import random

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration

from data.world.scenes import render, rgb
from data.world.tasks import TASKS
from reweighting.records.steps import Prompt
from reweighting.reward_model.encoder import PromptEncoder
from tests.conftest import TINY
from weights import pretrain
from weights.curriculum import CHAINS, SILENT_CHAINS, Layout, Mix, draw_sheet
from weights.evaluate_tiny_model import auroc, draw_evidence, draw_sheets, judge
from weights.pretrain import SEEING, forward, next_level


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(TINY).eval()


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


@pytest.mark.parametrize("grid", [3, 4])
def test_pretraining_sees_what_the_processor_and_the_model_see(processor, model, grid):
    """Patches, token ids and logits of the packed training path are those of the real one."""
    layout, encoder = Layout(processor.tokenizer), PromptEncoder(processor)
    sheets = [draw_sheet(random.Random(f"test/{i}"), CHAINS, grid) for i in range(3)]
    for sheet in sheets:
        sheet.spoken = []
    batch = layout.collate(sheets)
    with torch.no_grad():
        logits = iter(forward(model, batch)[batch.counted])
        for row, sheet in enumerate(sheets):
            image = Image.fromarray(rgb(render(sheet.scene)))
            encoded = encoder.encode(image, [Prompt(item.text) for item in sheet.items])
            torch.testing.assert_close(batch.patches[row], encoded.images.inputs["pixel_values"])
            for ids in encoded.token_ids:
                tokens = torch.tensor([ids])
                alone = model(
                    input_ids=tokens,
                    **encoded.images.inputs,
                    mm_token_type_ids=(tokens == model.config.image_token_id).int(),
                ).logits[0, -1]
                torch.testing.assert_close(next(logits), alone, atol=2e-3, rtol=1e-3)
    assert next(logits, None) is None


def test_it_looks_up_cells(processor, model):
    layout = Layout(processor.tokenizer)
    for name in ("colour_cell", "shape_cell", "bar_height", "table_digit", "polygon_sides"):
        found = judge(model, layout, draw_evidence(f"test/{name}", 40, TASKS[name], 3))
        assert sum(right for *_, right in found) >= 36, name


def test_it_judges_claims_and_chain_prefixes(processor, model):
    layout = Layout(processor.tokenizer)
    found = judge(model, layout, draw_sheets("test/claims", 60, Mix(0, 4, 0, grids=(3,))))
    assert sum(right for *_, right in found) / len(found) > 0.85
    assert auroc(judge(model, layout, draw_sheets("test", 60, Mix(0, 0, 1, grids=(3,))))) > 0.9


def test_a_base_that_only_sees_is_never_shown_a_verdict():
    for number in range(20):
        sheet = draw_sheet(random.Random(f"silent/{number}"), SILENT_CHAINS, 3)
        assert {item.kind for item in sheet.items} <= {"lookup"}
        chains = [said for said in sheet.spoken if not said.kind]
        assert chains and all("Final answer: " in said.pieces[-1][0] for said in chains)
        predicted = {text for said in sheet.spoken for text, wanted in said.pieces if wanted}
        assert not predicted & {"yes", "no"}


def test_a_level_begins_when_the_one_before_is_mastered_or_at_the_latest():
    assert next_level(SEEING, 0, 10, 1000, {"caption": 0.5}) == 0
    assert next_level(SEEING, 0, 10, 1000, {"caption": 0.98}) == 1
    assert next_level(SEEING, 0, 150, 1000, {"caption": 0.5}) == 1
    assert next_level(SEEING, 2, 999, 1000, {"lookup": 1.0}) == 2


def test_a_weaker_base_does_not_overwrite_the_shipped_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretrain.py", "--curriculum", "seeing", "--steps", "1"])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert "--out is needed" in capsys.readouterr().err
