"""Plain transformers, in a process without this package, gives the scores that it gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reweighting.export import recipe
from reweighting.reward_model.encoder import response_prompts
from tests.export.runs import (
    exported,
    make_run,
    open_run,
    our_log_odds,
    picture,
    run_elsewhere,
    their_log_odds,
)

# Backbone, head, LoRA, dtype of the export.
CASES = [
    *((name, head, False, "float32") for name in ("qwen2_vl", "qwen2_5_vl", "internvl")
      for head in ("linear", "plus_minus")),
    ("qwen3_vl", "linear", False, "float32"),
    ("llava_onevision", "plus_minus", False, "float32"),
    ("qwen2_vl", "linear", True, "float32"),
    ("internvl", "plus_minus", True, "float32"),
    ("qwen2_vl", "linear", False, "bfloat16"),
]  # fmt: skip


def name_of(case: tuple) -> str:
    backbone, head, lora, dtype = case
    return f"{backbone}-{head}-{'lora' if lora else 'full'}-{dtype}"


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return picture(tmp_path_factory.mktemp("image") / "image.png")


@pytest.fixture(scope="module")
def exports(tmp_path_factory, image) -> dict[str, tuple[Path, Path, dict]]:
    """For every case the run, what was exported, and what others make of it."""
    folder, runs, outputs = tmp_path_factory.mktemp("exports"), [], []
    for case in CASES:
        backbone, head, lora, dtype = case
        runs.append(make_run(backbone, head, folder / name_of(case), lora))
        output = folder / "out" / name_of(case)
        outputs.append(exported(runs[-1], output, "--for", "transformers", "--dtype", dtype))
    found = their_log_odds(outputs, image, folder)
    names = map(name_of, CASES)
    return {n: rest for n, *rest in zip(names, runs, outputs, found, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_scores_are_the_same_without_this_package(exports, image, case):
    run, _, theirs = exports[name_of(case)]
    ours = our_log_odds(run, image)
    assert len(ours) == 2 and abs(ours[0] - ours[1]) > 1e-3
    assert theirs["loading"] == [] and theirs["attention"] == "sdpa"
    assert theirs["labels"] == {"0": "log-odds of a right answer"}
    assert theirs["dtype"] == f"torch.{case[3]}"
    close = 1e-5 if case[3] == "float32" else 0.05
    for way in ("single", "left", "right"):
        assert theirs[way] == pytest.approx(ours, abs=close), way


def test_the_row_is_the_head_after_the_vocabulary(exports):
    """In float64 by hand; a bias that got lost would show here and in every score."""
    run, output, _ = exports["qwen2_5_vl-linear-full-float32"]
    model, tensors = open_run(run), load_file(output / "model.safetensors")
    vocabulary = model.base_model.lm_head.weight.double()
    expected = model.LN.weight.double() @ vocabulary
    assert torch.equal(tensors["score.weight"], expected.float())
    assert torch.equal(tensors["score.bias"], model.LN.bias) and model.LN.bias.abs() > 1e-4

    run, output, _ = exports["qwen2_5_vl-plus_minus-full-float32"]
    model, tensors = open_run(run), load_file(output / "model.safetensors")
    plus, minus = model.base_model.lm_head.weight[list(model.label_ids)]
    torch.testing.assert_close(tensors["score.weight"], (plus - minus)[None], atol=1e-7, rtol=1e-6)
    assert tensors["score.bias"].tolist() == [0]
    assert not any("lm_head" in name for name in tensors)


def test_the_folder_describes_itself(exports):
    _, output, _ = exports["internvl-linear-full-float32"]
    config = json.loads((output / "config.json").read_text())
    name = "DreamPRMForSequenceClassification"
    assert config["architectures"] == [name] and config["num_labels"] == 1
    assert config["auto_map"] == {"AutoModelForSequenceClassification": f"modeling_dreamprm.{name}"}
    source = (output / "modeling_dreamprm.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported == {"__future__", "torch", "transformers"}
    assert {"chat_template.jinja", "tokenizer.json", "processor_config.json", "README.md"} <= {
        path.name for path in output.iterdir()
    }


def test_what_is_read_of_a_recipe_makes_the_prompts_that_it_shows(exports):
    for case in CASES:
        _, output, _ = exports[name_of(case)]
        path = output / recipe.RECIPE_FILE
        found, example = recipe.read_recipe(path), json.loads(path.read_text())["example"]
        prompts = response_prompts(found.question, found.steps)
        for prompt, shown in zip(prompts, example["prompts"], strict=True):
            assert found.turns(prompt, 1) == shown["messages"]
        assert found.score_head == case[1] and len(found.log_odds) == len(prompts)
        assert (found.sizes["token_side"] is None) == (case[0] in ("internvl", "llava_onevision"))


def test_bf16_is_stored_as_such(exports):
    _, output, _ = exports["qwen2_vl-linear-full-bfloat16"]
    tensors = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_the_bounds_of_the_training_reach_the_processor(tmp_path):
    model = open_run(make_run("qwen2_vl", "linear", tmp_path))
    model.encoder.min_pixels, model.encoder.max_pixels = 28 * 28 * 4, 28 * 28 * 9
    (tmp_path / "bounded").mkdir()
    model.save_pretrained(tmp_path / "bounded")
    output = exported(tmp_path / "bounded", tmp_path / "out", "--for", "transformers")
    size = json.loads((output / "processor_config.json").read_text())["image_processor"]["size"]
    assert size == {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 9}
    made = json.loads((output / recipe.RECIPE_FILE).read_text())
    assert made["image"]["min_pixels"] == 28 * 28 * 4


@pytest.mark.parametrize(
    "case", ["qwen2_vl-linear-lora-float32", "internvl-plus_minus-full-float32"]
)
def test_the_script_of_the_card_scores_a_question(exports, image, tmp_path, case):
    run, output, _ = exports[case]
    [script] = re.findall(r"^```python\n(.*?)^```", (output / "README.md").read_text(), re.M | re.S)
    script = script.replace('FOLDER = "."', f"FOLDER = {str(output)!r}")
    said = run_elsewhere(script.replace("image.png", str(image)), tmp_path)
    steps, whole = (json.loads(line.split(" ", 2)[2].removeprefix("step ")) if "step" in line
                    else float(line.split()[-1]) for line in said.splitlines())  # fmt: skip
    ours = open_run(run)
    assert steps == pytest.approx(ours.score(image, recipe.QUESTION, recipe.STEPS), abs=1e-5)
    z = ours.chain_score(image, recipe.QUESTION, recipe.STEPS)
    assert whole == pytest.approx(torch.sigmoid(torch.tensor(z)).item(), abs=1e-5)
