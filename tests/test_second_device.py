"""Training and scoring where the model is not on the processor, without a GPU."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main as program
from reweighting.records.dataset import load_data
from reweighting.records.steps import chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.prefix_tree import pack
from reweighting.system.device import autocast
from reweighting.training.arguments import parse_arguments
from reweighting.training.build import make_encoder
from reweighting.training.reports import _flat
from tests.conftest import TINY, command
from tests.support.backbones import BACKBONES, make_backbone


@pytest.fixture(scope="module")
def elsewhere():
    """Calls a function in a process that has a second device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda function, *arguments: process.submit(function, *arguments).result()


def refused() -> list[str]:
    """Which of some operations on both devices the second device refuses."""
    from tests.support import second_device

    there, here = torch.ones(3, device=second_device.NAME), torch.ones(3)
    number = torch.zeros(1, dtype=torch.long)
    operations = {
        "sum": lambda: there + here,
        "in place": lambda: here.mul_(there),
        "scalar": lambda: there + torch.tensor(1.0),
        "copy": lambda: here.copy_(there),
        "index from here": lambda: there[number],
        "index from there": lambda: here[number.to(second_device.NAME)],
    }
    found = []
    for name, operation in operations.items():
        try:
            operation()
        except RuntimeError as error:
            assert "tensors on two devices" in str(error) or name == "index from there"
            found.append(name)
    return found


def test_the_second_device_refuses_what_a_gpu_would(elsewhere):
    assert elsewhere(refused) == ["sum", "in place", "index from there"]


def metrics_and_waits(argv: list[str], device: str) -> tuple[list[dict], float]:
    """The lines of ``metrics.jsonl``, and how often a bilevel cycle waits, over its parameters."""
    from tests.support import second_device

    arguments = parse_arguments(argv)
    data = load_data(arguments, progress=False)
    arguments.device, arguments.weights_path = device, f"{arguments.weights_path}-{device}"
    encoder = make_encoder(arguments, data.system)
    engine = program.make_engine(arguments, data, encoder)
    engine.save = lambda: None  # files need the addresses of tensors, which are none there
    second_device.waits = 0
    assert engine.run() == 0
    cycles = arguments.iteration_num // arguments.unroll_steps
    lines = (Path(arguments.weights_path) / "metrics.jsonl").read_text().splitlines()
    parameters = len(list(engine.lower.module.parameters()))
    return list(map(json.loads, lines)), second_device.waits / cycles / parameters


def compared(line: dict) -> dict[str, float]:
    """What of a line of metrics is the same on every device, but for rounding."""
    names = {"loss", "weighted_loss", "meta_loss", "weights", "domain_loss", "parameters_moved"}
    return {name: value for name, value in _flat(line).items() if name.split("/")[0] in names}


@pytest.mark.parametrize(
    "flags",
    [
        "--baseline",
        "--batch_by cot --precision bf16",
        "--precision bf16 --gradient_accumulation 2 --max_grad_norm 0.01 --meta_max_grad_norm 1e-6",
        "--hypergradient_batches all --loss mse --meta_loss bce",
        "--precision bf16 --hypergradient darts --attn_implementation eager",
        "--precision bf16 --gradient_checkpointing --score_head plus_minus --meta_target prefix",
        "--precision fp16 --lora_rank 4 --reweighting instance_table",
        "--precision bf16 --reweighting instance_net",
    ],
)
def test_training_there_is_training_here(elsewhere, dataset, tmp_path, flags):
    # A learning rate at which rounding does not grow from step to step.
    argv = command(
        dataset, tmp_path / "run", "--lr", "1e-6", "--iteration_num", "4", *flags.split()
    )
    here, no_waits = elsewhere(metrics_and_waits, argv, "cpu")
    there, waits = elsewhere(metrics_and_waits, argv, "second")
    for ours, theirs in zip(there, here, strict=True):
        tolerance = 1e-2 if "--precision" in flags else 1e-3
        assert compared(ours) == pytest.approx(compared(theirs), rel=tolerance)
    assert no_waits == 0
    assert 0 < waits < 1.5, "something is read back for every parameter"


def scores(path, pictures: list[Image.Image], device: str, precision: str) -> list[float]:
    """Of every step prefix of two chains about every picture."""
    from tests.support import second_device  # noqa: F401, brings the device

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of separate forwards
        model = RewardModel.from_pretrained(path)
    chains = ["Step 1: row 2.\nStep 2: it is red.\nStep 3: so red.", "Step 1: row 2.\nStep 2: no."]
    prompts = [prompt for text in chains for prompt in chain_prompts("Which colour?", text)]
    packed = pack([model.encoder.encode(picture, prompts) for picture in pictures])
    with torch.no_grad(), autocast(device, precision):
        return torch.sigmoid(model.to(device)(packed.to(device))).tolist()


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", ["qwen2_vl", *BACKBONES])
def test_scores_there_are_scores_here(elsewhere, tmp_path, name, precision, tolerance):
    path = TINY if name == "qwen2_vl" else make_backbone(name, tmp_path / name)
    pixels, shapes = np.random.default_rng(0), ((84, 84, 3), (112, 56, 3), (28, 28, 3))
    pictures = [Image.fromarray(pixels.integers(0, 255, s, dtype=np.uint8)) for s in shapes]
    here = elsewhere(scores, path, pictures, "cpu", precision)
    there = elsewhere(scores, path, pictures, "second", precision)
    np.testing.assert_allclose(there, here, atol=tolerance)


def benchmark(device: str) -> dict[str, list[dict[str, float]]]:
    """Seconds of the straightforward loop and of ours."""
    from benchmarks import bilevel
    from tests.support import second_device  # noqa: F401, brings the device

    arguments = argparse.Namespace(shape="tiny", device=device, precision="fp32", repetitions=1)
    return bilevel.measure(arguments)


@pytest.mark.slow
def test_the_benchmark_runs_there(elsewhere):
    found = elsewhere(benchmark, "second")
    assert {name: len(cycles) for name, cycles in found.items()} == dict(plain=1, ours=1, trees=1)
