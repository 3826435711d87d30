"""What is written for vLLM: names, shapes, dtypes, config and overrides. Nothing runs vLLM here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from reweighting.export import __main__ as export
from reweighting.export import checkpoint
from tests.export.runs import exported, make_run, open_run

# Read in the wheel of vLLM 0.33.0:
# vllm/model_executor/models/qwen2_vl.py and qwen2_5_vl.py, ``hf_to_vllm_mapper``: prefixes of names
# in a checkpoint, and what they become.
PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
# The parts of the model there that have weights; ``score`` is that of
# ``ModelForSequenceClassification`` in vllm/model_executor/models/adapters.py.
PARTS = ("language_model.model.", "language_model.score.", "visual.")
# vllm/model_executor/models/registry.py, entries from which vllm/config/model.py
# (``_SUFFIX_TO_DEFAULTS``) and ``_normalize_arch`` derive the classifiers.
REGISTERED = {"Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"}
BACKBONES = ["qwen2_vl", "qwen2_5_vl"]


def mapped(name: str) -> str:
    for before, after in PREFIXES.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("runs")
    heads = ("linear", "plus_minus")
    return {(b, h): make_run(b, h, folder / f"{b}-{h}") for b in BACKBONES for h in heads}


def test_the_names_are_those_of_the_version_that_was_read():
    assert checkpoint.VLLM_VERSION == "0.33.0"
    assert {
        name.replace("ForSequenceClassification", "ForConditionalGeneration")
        for name in checkpoint.VLLM_CLASSES.values()
    } == REGISTERED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_score_row_belongs_to_the_language_model(runs, tmp_path, backbone, dtype):
    run = runs[backbone, "linear"]
    output = exported(run, tmp_path / "out", "--for", "vllm", "--dtype", dtype)
    tensors = load_file(output / "model.safetensors")
    model = open_run(run)
    hidden = model.base_model.config.get_text_config().hidden_size
    assert tensors["language_model.score.weight"].shape == (1, hidden)
    assert tensors["language_model.score.bias"].shape == (1,)
    assert not any(name.startswith("score") for name in tensors)
    assert all(mapped(name).startswith(PARTS) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    weight, bias = checkpoint.score_row(model)
    assert torch.equal(tensors["language_model.score.weight"], weight.to(getattr(torch, dtype)))
    assert torch.equal(tensors["language_model.score.bias"], bias.to(getattr(torch, dtype)))
    names = {f"model.{name}" for name in model.base_model.model.state_dict()}
    assert tensors.keys() - names == {"language_model.score.weight", "language_model.score.bias"}

    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == [checkpoint.VLLM_CLASSES[backbone]]
    assert config["model_type"] == backbone and config["num_labels"] == 1
    assert config["dtype"] == config["text_config"]["dtype"] == dtype
    assert "auto_map" not in config
    # vLLM asks the configuration of transformers for the number of labels.
    assert AutoConfig.from_pretrained(output).num_labels == 1
    card = (output / "README.md").read_text()
    assert "It was not run there" in card and '"use_activation": false' in card
    assert '"add_generation_prompt": true' in card


@pytest.mark.parametrize("backbone", BACKBONES)
def test_labels_are_read_by_overrides(runs, tmp_path, capsys, backbone):
    run = runs[backbone, "plus_minus"]
    output = exported(run, tmp_path / "out", "--for", "vllm")
    found = json.loads((output / "hf_overrides.json").read_text())
    assert found == {
        "architectures": [checkpoint.VLLM_CLASSES[backbone]],
        "classifier_from_token": ["-", "+"],
        "method": "from_2_way_softmax",
    }
    # adapters.py, ``load_weights_using_from_2_way_softmax``: the second token's row of the
    # vocabulary minus the first one's, which is z.
    model, tokenizer = open_run(run), AutoTokenizer.from_pretrained(run / "base_model")
    false, true = tokenizer.convert_tokens_to_ids(found["classifier_from_token"])
    vocabulary = model.base_model.get_output_embeddings().weight
    row = vocabulary[[true]].float() - vocabulary[[false]].float()
    torch.testing.assert_close(row, checkpoint.score_row(model)[0].float())
    assert {path.name for path in output.iterdir()} == {
        *("hf_overrides.json", "reward.json", "README.md")
    }
    assert f"--hf-overrides '{json.dumps(found)}'" in capsys.readouterr().out
    card = (output / "README.md").read_text()
    assert "`POST /pooling`" in card and '"use_activation": false' in card
    assert "It was not run there" in card


@pytest.mark.parametrize("score_head", ["linear", "plus_minus"])
def test_a_model_that_vllm_would_not_load_is_refused(tmp_path, capsys, score_head):
    run = make_run("internvl", score_head, tmp_path)
    arguments = ["--weights_path", str(run), "--output", str(tmp_path / "out"), "--for", "vllm"]
    assert export.main(arguments) == 2
    said = capsys.readouterr().err
    assert "internvl cannot be exported for vLLM (0.33.0), only qwen2_vl, qwen2_5_vl can" in said
    assert not (tmp_path / "out").exists()
