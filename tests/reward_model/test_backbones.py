"""Other architectures than Qwen2-VL: their own processor's tokens, their own model's logits."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import main as program
from reweighting.records.steps import chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.encoder import PromptEncoder
from reweighting.reward_model.prefix_tree import pack
from reweighting.selection import __main__ as selection
from tests.conftest import TINY, command
from tests.support.backbones import BACKBONES, make_backbone

QUESTION = "Which colour is at row 2, column 3?"
RESPONSES = [
    "Step 1: row 2, column 3.\nStep 2: it is red.\nStep 3: so red.",
    "Step 1: row 2, column 3.\nStep 2: it is blue.",
]
TREES = [name for name in BACKBONES if name != "llava_onevision-llama"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {name: make_backbone(name, folder / name) for name in BACKBONES}


def load(path, **options) -> RewardModel:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of separate forwards
        return RewardModel.from_pretrained(path, device="cpu", **options)


def pictures() -> list[Image.Image]:
    """Of several shapes, so that the images of a batch have different numbers of tiles.

    Sides are whole visual tokens of Qwen: it then resizes nothing, here and there alike.
    """
    pixels = np.random.default_rng(0)
    shapes = ((84, 84, 3), (112, 56, 3), (56, 112, 3), (28, 28, 3))
    return [Image.fromarray(pixels.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def separate_logits(path, encoder: PromptEncoder, prompts) -> tuple[torch.nn.Module, torch.Tensor]:
    """Logits by the book: the processor on image and text, the model on what it returns."""
    model = AutoModelForImageTextToText.from_pretrained(path)
    processor, rows = AutoProcessor.from_pretrained(path), []
    for image in pictures():
        encoded = encoder.encode(image, prompts)
        for prompt, ids in zip(prompts, encoded.token_ids, strict=True):
            text = encoder.chat(prompt)
            inputs = processor(text=[text], images=[image], return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == ids
            rows.append(model(**inputs).logits[0, -1])
    return model, torch.stack(rows)


@pytest.mark.parametrize("score_head", ["linear", "plus_minus"])
@pytest.mark.parametrize("name", BACKBONES)
def test_scores_and_gradients_equal_processor_and_model(checkpoints, name, score_head):
    model = load(checkpoints[name], score_head=score_head)
    assert model.packs_trees == (name in TREES)
    prompts = [prompt for text in RESPONSES for prompt in chain_prompts(QUESTION, text)]
    packed = pack([model.encoder.encode(image, prompts) for image in pictures()])
    assert len(packed.input_ids) < 0.8 * packed.prompt_tokens
    reference, logits = separate_logits(checkpoints[name], model.encoder, prompts)
    if score_head == "linear":
        theirs = model.LN(logits)[:, 0]
    else:
        plus, minus = model.encoder.processor.tokenizer.convert_tokens_to_ids(["+", "-"])
        theirs = logits[:, plus] - logits[:, minus]
    ours = model(packed)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    direction = torch.linspace(-1, 1, len(ours))
    (theirs * direction).sum().backward()
    model.zero_grad()
    (ours * direction).sum().backward()
    gradients = dict(model.base_model.named_parameters())
    for parameter_name, parameter in reference.named_parameters():
        if parameter.grad is not None and parameter.grad.norm() > 1e-4:
            error = (gradients[parameter_name].grad - parameter.grad).norm()
            assert error / parameter.grad.norm() < 1e-3, parameter_name


@pytest.mark.parametrize("name", BACKBONES)
def test_training_saving_and_selection(checkpoints, dataset, tmp_path, name, capsys):
    """main.py and selection from end to end; plus_minus on the trees, linear one by one."""
    head = ["--score_head", "plus_minus"] if name in TREES else []
    flags = ["--reward_model", str(checkpoints[name]), "--iteration_num", "3", *head]
    assert program.main(command(dataset, tmp_path / "dry", *flags, "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "lower steps                3" in said
    assert ("a forward pass a prompt" in said) == (name not in TREES)
    run = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert program.main(command(dataset, run, *flags)) == 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["hypergradient_norm"] > 0 and metrics[-1]["parameters_moved"] > 0.5

    images = [f"images/{number}.png" for number in range(3)]
    records = [{"question": QUESTION, "image_path": i, "candidates": RESPONSES} for i in images]
    (tmp_path / "test.json").write_text(json.dumps(records))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = selection.main(
            [
                *("--weights_path", str(run), "--candidates", str(tmp_path / "test.json")),
                *("--output_dir", str(tmp_path / "out"), "--image_root", str(dataset)),
                *("--device", "cpu", "--precision", "fp32"),
            ]
        )
    assert code == 0
    lines = (tmp_path / "out" / "test" / "samples.jsonl").read_text().splitlines()
    model = load(run)
    for line, image in zip(map(json.loads, lines), images, strict=True):
        expected = model.log_odds(dataset / image, QUESTION, RESPONSES)
        for ours, theirs in zip(line["step_log_odds"], expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_separate_forwards_are_said(checkpoints):
    with pytest.warns(UserWarning, match="prefix trees are not tested for this architecture"):
        RewardModel.from_pretrained(checkpoints["llava_onevision-llama"])


def test_trees_that_score_wrongly_are_left(checkpoints, monkeypatch):
    """As with an architecture that has other positions than are made for it."""
    right = load(checkpoints["internvl"])
    prompts = [prompt for text in RESPONSES for prompt in chain_prompts(QUESTION, text)]
    packed = pack([right.encoder.encode(pictures()[0], prompts)])
    with torch.no_grad():
        expected = right(packed)
        monkeypatch.setattr(
            RewardModel,
            "_positions",
            lambda self, packed: torch.arange(len(packed.input_ids))[None],
        )
        assert (right(packed) - expected).abs().max() > 1e-3  # silently wrong
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="prefix trees give other scores than separate"):
            model = RewardModel.from_pretrained(checkpoints["internvl"], device="cpu")
        assert not model.packs_trees
        torch.testing.assert_close(model(packed), expected, atol=1e-5, rtol=1e-5)


def test_trees_that_cannot_be_computed_are_left(checkpoints, monkeypatch):
    """As with an architecture that asks for masks of its own."""
    from transformers import AutoConfig

    from reweighting.reward_model import network as reward_model

    path = checkpoints["internvl-qwen3"]
    config = AutoConfig.from_pretrained(path)
    config.text_config.sliding_window = 4
    config.text_config.layer_types = ["sliding_attention"] * 2
    base = AutoModelForImageTextToText.from_pretrained(path, config=config)
    assert not reward_model.packs_trees(base.config)
    monkeypatch.setattr(reward_model, "packs_trees", lambda config: True)
    model = RewardModel(base, PromptEncoder(AutoProcessor.from_pretrained(path)))
    assert model.check_trees() is False and not model.packs_trees
    [log_odds] = model.log_odds(pictures()[0], QUESTION, RESPONSES[:1])
    assert len(log_odds) == 3 and np.isfinite(log_odds).all()


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trees_that_score_rightly_pass_their_check(checkpoints, name, dtype):
    model = load(checkpoints[name], dtype=dtype)
    assert model.check_trees() and model.packs_trees
    assert model.base_model.get_decoder().config._attn_implementation == "packed_trees"


def test_a_causal_mask_alone_would_be_noticed(checkpoints):
    model = load(checkpoints["internvl"])
    prompts = [prompt for text in RESPONSES for prompt in chain_prompts(QUESTION, text)]
    packed = pack([model.encoder.encode(pictures()[0], prompts)])
    with torch.no_grad():
        right = model(packed)
        packed.trees[0].branches = [(-1, packed.trees[0].end)]
        assert (right - model(packed)).abs().max() > 1e-3


def test_sliding_windows_are_not_packed(checkpoints):
    from transformers import AutoConfig

    from reweighting.reward_model.network import packs_trees

    config = AutoConfig.from_pretrained(checkpoints["internvl"])
    assert packs_trees(config)
    config.text_config.layer_types = ["full_attention", "sliding_attention"]
    assert not packs_trees(config)


def refusal(dataset, tmp_path, capsys, model, *flags: str) -> str:
    assert (
        program.main(command(dataset, tmp_path / "run", "--reward_model", str(model), *flags)) == 2
    )
    return capsys.readouterr().err


def test_models_that_lack_what_is_needed_are_refused(checkpoints, dataset, tmp_path, capsys):
    bounds = refusal(dataset, tmp_path, capsys, checkpoints["internvl"], "--max_pixels", "9999")
    assert "knows no bounds of the number of pixels" in bounds

    processor = AutoProcessor.from_pretrained(checkpoints["internvl"])
    processor.chat_template = None
    (tmp_path / "mute").mkdir()
    for file in checkpoints["internvl"].iterdir():
        (tmp_path / "mute" / file.name).symlink_to(file)
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    said = refusal(dataset, tmp_path, capsys, tmp_path / "mute")
    assert "its processor makes no prompt" in said and "template" in said

    processor = AutoProcessor.from_pretrained(TINY)
    for file in TINY.iterdir():
        (tmp_path / "two" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "two" / file.name).symlink_to(file)
    state = json.loads((TINY / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["unused"] = vocabulary.pop("-")  # as if no token stood for it
    (tmp_path / "two" / "tokenizer.json").unlink()
    (tmp_path / "two" / "tokenizer.json").write_text(json.dumps(state))
    said = refusal(dataset, tmp_path, capsys, tmp_path / "two", "--score_head", "plus_minus")
    assert "of the label '-'" in said
