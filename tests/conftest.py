"""A small data set with real PNG images, and the tiny checkpoint of the real architecture."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

# Before torch is imported, here and in the processes that tests start: `make test` runs a worker a
# core, and threads that wait for each other's core take twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "weights" / "tiny-qwen2-vl"
DOMAINS = ["chart", "table", "map"]


# Whose calls `--fail-on-deprecated` watches. transformers blames itself for some calls of ours.
WATCHED = "(reweighting|benchmarks|tests|transformers)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-deprecated",
        action="store_true",
        help="calls that their library is about to drop are errors (make test LATEST=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fail-on-deprecated"):
        for category in ("FutureWarning", "DeprecationWarning"):
            config.addinivalue_line("filterwarnings", f"error::{category}:{WATCHED}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def write_dataset(directory: Path, questions: int = 24, seed: int = 0) -> Path:
    """Questions with chains of 2 to 6 steps over images of several sizes; returns the folder."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    (directory / "images").mkdir(parents=True)
    train, meta = [], []
    for number in range(questions):
        height, width = rng.choice([(84, 84), (84, 112), (140, 56)])
        picture = pixels.integers(0, 255, (height, width, 3), dtype=np.uint8)
        image = f"images/{number}.png"
        Image.fromarray(picture).save(directory / image)
        question = f"Question: which colour has object {number}?"
        steps = [
            f"Step {k}: object {rng.randint(0, 9)} is {rng.choice(['red', 'blue', 'pale green'])}."
            for k in range(1, rng.randint(3, 7))
        ]
        for k in range(1, len(steps) + 1):
            train.append(
                {
                    "id": number,
                    "sid": k,
                    "input": question,
                    "add": "\n".join(steps[:k]),
                    "image_path": image,
                    "dataset": DOMAINS[number % len(DOMAINS)],
                    "accuracy": rng.randint(0, 8) / 8,
                }
            )
        meta.append(
            {
                "id": number,
                "true_false": number % 2 == 0,
                "input": question + "\n\n" + "\n".join(steps) + "\nFinal answer: red",
                "image_path": image,
            }
        )
    (directory / "train.json").write_text(json.dumps(train))
    (directory / "meta.json").write_text(json.dumps(meta))
    return directory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "data")


@pytest.fixture(scope="session")
def reward_model():
    from reweighting.reward_model import RewardModel

    torch.manual_seed(0)
    return RewardModel.from_pretrained(TINY, device="cpu", fresh_head=True)


def command(dataset: Path, weights_path: Path, *flags: str) -> list[str]:
    """Arguments of main.py for a quick run on ``dataset``; later flags win."""
    return [
        *("--train_json_file", str(dataset / "train.json")),
        *("--meta_json_file", str(dataset / "meta.json")),
        *("--image_root", str(dataset), "--weights_path", str(weights_path)),
        *("--reward_model", str(TINY), "--device", "cpu", "--precision", "fp32"),
        *("--num_workers", "0", "--lr", "1e-4", "--batch_size", "3", "--meta_batch_size", "2"),
        *("--unroll_steps", "2", "--logging_steps", "1", "--iteration_num", "6"),
        *flags,
    ]
