"""Small runs to export, and other people's programs that open what was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reweighting.export import __main__ as export
from reweighting.export.recipe import QUESTION, STEPS
from reweighting.reward_model import RewardModel
from tests.conftest import TINY
from tests.support.backbones import make_backbone

# Before everything else in a program of others: it cannot import this package.
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "reweighting":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""


def open_run(run: Path, **options) -> RewardModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fresh head, and of separate forwards
        return RewardModel.from_pretrained(run, device="cpu", **options).eval()


def make_run(backbone: str, score_head: str, folder: Path, lora: bool = False) -> Path:
    """What training saves of a model: a random one, with adapters that change it if ``lora``."""
    source = TINY if backbone == "qwen2_vl" else make_backbone(backbone, folder / "base")
    torch.manual_seed(1)
    model = open_run(source, score_head=score_head)
    if lora:
        model.add_adapters(2)
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    (folder / "run").mkdir(parents=True)
    model.save_pretrained(folder / "run")
    return folder / "run"


def exported(run: Path, output: Path, *flags: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = ["--weights_path", str(run), "--output", str(output), *flags]
        assert export.main(arguments) == 0
    return output


def picture(path: Path) -> Path:
    """An image whose sides are whole visual tokens, so that nobody resizes it."""
    pixels = np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def our_log_odds(run: Path, image: Path) -> list[float]:
    """Of the steps of the example in ``reward.json``."""
    return open_run(run).log_odds(image, QUESTION, [STEPS])[0]


def run_elsewhere(code: str, folder: Path, *arguments: str) -> str:
    """The output of a program that has no part of this package, started in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED + code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def their_log_odds(folders: list[Path], image: Path, work: Path) -> list[dict]:
    """What plain transformers says of the example in each folder's ``reward.json``.

    For each folder: ``single``, a prompt at a time, ``left`` and ``right``, all prompts in one
    batch that is padded on this side, and what else the test wants to see of the model.
    """
    code = """
import json
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoProcessor
try:
    import reweighting
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("this package is there")
image, *folders = sys.argv[1:]
image, found = Image.open(image), []
for folder in folders:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    processor = AutoProcessor.from_pretrained(folder)
    example = json.load(open(f"{folder}/reward.json"))["example"]
    texts = [prompt["text"] for prompt in example["prompts"]]
    for prompt in example["prompts"]:
        made = processor.apply_chat_template(
            prompt["messages"], tokenize=False, add_generation_prompt=True
        )
        assert made == prompt["text"]

    @torch.no_grad()
    def scores(texts):
        inputs = processor(
            text=texts, images=[image] * len(texts), padding=True, add_special_tokens=False,
            return_tensors="pt",
        )
        logits = model.eval()(**inputs).logits
        assert logits.shape == (len(texts), 1) and logits.dtype == torch.float32
        return logits[:, 0].tolist()

    result = {"single": [z for text in texts for z in scores([text])]}
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        result[side] = scores(texts)
    result["loading"] = sorted(name for names in report.values() for name in map(str, names))
    result["dtype"], result["labels"] = str(model.dtype), model.config.id2label
    result["attention"] = model.model.language_model.config._attn_implementation
    found.append(result)
print(json.dumps(found))
"""
    return json.loads(run_elsewhere(code, work, str(image), *map(str, folders)))
