"""The commands of rollouts as the tests call them, with questions of their own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reweighting.rollouts import __main__ as rollouts

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the openai package is not installed"
)


def write_questions(folder: Path, count: int, *special: str) -> Path:
    """Questions of all difficulties for the model server, and ``special`` ones at the end."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0)
    texts = [f"[{(0, 30, 60, 90, 100)[n % 5]}] Which colour has thing {n}?" for n in range(count)]
    lines = []
    for number, text in enumerate([*texts, *special]):
        image = f"images/{number % 5}.png"
        picture = pixels.integers(0, 255, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / image)
        record = {"id": f"q{number}", "question": text, "image_path": image}
        record |= {"answer": "red", "dataset": ("chart", "map")[number % 2]}
        lines.append(json.dumps(record) + "\n")
    path = folder / "questions.jsonl"
    path.write_text("".join(lines))
    return path


def flags(folder: Path, url: str, *more: str) -> list[str]:
    return [
        *("--image_root", str(folder), "--model", "rule", "--base_url", url),
        *("--concurrency", "16", "--timeout", "1", *more),
    ]


def chains(folder: Path, url: str, output: Path, *more: str) -> int:
    questions = folder / "questions.jsonl"
    meta = ("--meta_output", str(output.with_name("meta.json")))
    command = ["chains", "--questions", str(questions), "--output", str(output), *meta]
    return rollouts.main([*command, *flags(folder, url, "--samples", "4", *more)])


def label_command(folder: Path, url: str, candidates: Path, output: Path, *more: str) -> list[str]:
    command = ["label", "--candidates", str(candidates), "--output", str(output)]
    return [*command, *flags(folder, url, *more)]
