"""The parts of ``make gpu``: each measures something on the device and returns its figures."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import logging
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import torch
import transformers
from betty.logging.logger_base import get_logger as betty_logger
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoProcessor

import main as program
from benchmarks.bilevel import (
    EIGHT,
    REPOSITORY,
    STEP_TOKENS,
    TINY,
    UNROLL,
    Straightforward,
    chain_texts,
    make_chains,
    make_model,
    now,
    shaped,
)
from benchmarks.gpu.trace import traced, waits
from benchmarks.selection import by_trees, separately
from reweighting.records.dataset import load_data
from reweighting.records.samples import CandidatesSample
from reweighting.system.files import write_text
from reweighting.system.terminal import quiet
from reweighting.training import build
from reweighting.training.arguments import parse_arguments
from reweighting.training.dry_run import largest_batches
from reweighting.training.engine import ReweightingEngine
from reweighting.training.memory import estimate_memory

CHAINS = 32  # of the data set that the runs train on
WARM_UP = 2  # cycles that are not measured

# Runs of main.py: the shape of the model and the flags beside those of RUN.
RUNS = {
    "2b-8-chains": ("2b", EIGHT),
    "2b-8-chains-compile": ("2b", [*EIGHT, "--compile"]),
    "2b": ("2b", []),
    "2b-compile": ("2b", ["--compile"]),
    "2b-adamw-8bit": ("2b", ["--optimizer", "adamw_8bit"]),
    "2b-lora": ("2b", ["--lora_rank", "16"]),
    "7b-adamw-8bit": ("7b", ["--optimizer", "adamw_8bit"]),
}


def card(arguments: argparse.Namespace) -> dict:
    """What the card does at best: matrix products in bf16, copies, launches of small kernels."""
    device, size = arguments.device, 256 if arguments.rehearse else 8192
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    block = torch.empty(size, size, 16, device=device)  # 4 GiB
    other, small = torch.empty_like(block), torch.zeros(16, device=device)
    return {
        "matmul_tflops": 2 * size**3 / _best(lambda: left @ right, device) / 1e12,
        "copy_tb_per_s": 2 * block.nbytes / _best(lambda: other.copy_(block), device) / 1e12,
        "launch_us": 1e6 * _best(lambda: [small.add_(1) for _ in range(1000)], device) / 1000,
    }


def _best(function: Callable[[], object], device: str) -> float:
    """Seconds of ``function``: the median of ten calls."""
    times = []
    for _ in range(12):
        started = now(device)
        function()
        times.append(now(device) - started)
    return max(statistics.median(times[2:]), 1e-9)


def correctness(arguments: argparse.Namespace) -> dict:
    """The tests that need CUDA: scores, hypergradients, trees, both heads, resuming."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "tests.xml"
        options = ["-m", "gpu and not slow", "-n", "8", "--junitxml", str(written)]
        command = [sys.executable, "-m", "pytest", *options, "tests/test_gpu.py"]
        subprocess.run(command, cwd=REPOSITORY, check=False)
        [suite] = ElementTree.parse(written).getroot().iter("testsuite")
    counts = {kind: int(suite.get(kind, 0)) for kind in ("tests", "failures", "errors", "skipped")}
    failed = [
        case.get("name")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed}


def write_data(folder: Path, count: int) -> None:
    """Train and meta files of chains as long as the published ones, over images of 336 px."""
    (folder / "images").mkdir()
    train, meta = [], []
    tokenizer = AutoProcessor.from_pretrained(TINY).tokenizer
    rng = random.Random(1)
    for number, (image, question, steps) in enumerate(chain_texts(count, tokenizer)):
        name = f"images/{number}.png"
        image.save(folder / name)
        record = {"id": number, "image_path": name, "dataset": "ab"[number % 2]}
        train += [
            {**record, "sid": k, "input": question, "add": "\n".join(steps[:k]),
             "accuracy": rng.randint(0, 8) / 8}
            for k in range(1, len(steps) + 1)
        ]  # fmt: skip
        text = "\n".join([question, "", *steps])
        meta.append({**record, "input": text, "true_false": bool(number % 2)})
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "meta.json").write_text(json.dumps(meta))


@contextlib.contextmanager
def prepared(arguments: argparse.Namespace, run: str) -> Iterator[tuple]:
    """Data on disk, and the arguments, data and encoder of a run of main.py."""
    shape, flags = RUNS[run]
    shape = "tiny" if arguments.rehearse else shape
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, CHAINS)
        shaped(shape).save_pretrained(folder)
        AutoProcessor.from_pretrained(TINY).save_pretrained(folder)
        precision = ["--precision", "fp32" if arguments.rehearse and "8bit" not in run else "bf16"]
        asked = parse_arguments([
            *("--train_json_file", str(folder / "train.json"), "--image_root", str(folder)),
            *("--meta_json_file", str(folder / "meta.json"), "--reward_model", str(folder)),
            *("--weights_path", str(folder / "run"), "--device", arguments.device, *precision),
            *("--num_workers", "2", "--unroll_steps", str(UNROLL), *flags),
            *("--iteration_num", str(UNROLL * (arguments.cycles + WARM_UP + 2))),
        ])  # fmt: skip
        data = load_data(asked, progress=False)
        yield shape, asked, data, build.make_encoder(asked, data.system)


def estimates(arguments: argparse.Namespace) -> dict:
    """GiB that ``--dry_run`` expects of every run at its peak; needs no GPU."""
    found = {}
    for run in RUNS:
        if "compile" in run:  # takes no more
            continue
        with prepared(arguments, run) as (_, asked, data, encoder):
            largest = largest_batches(asked, data, encoder)
            found[run] = max(estimate_memory(asked, encoder, *both) for both in largest) / 2**30
    return found


def training(arguments: argparse.Namespace, run: str) -> dict:
    """A run of main.py with random weights made on the device, its checkpoint left out.

    Returns:
        times of a lower step, an upper step and a cycle in ms, medians, without a synchronisation
        of the benchmark's own; peak memory in GiB; share of its time that the run waited for its
        two data workers; of one more cycle each: FLOPs, waits and kernels.
    """
    with prepared(arguments, run) as (shape, asked, data, encoder):
        dtype = torch.bfloat16 if asked.optimizer == "adamw_8bit" else torch.float32
        with mock.patch.object(
            build.RewardModel, "from_pretrained",
            lambda *_, **__: make_model(shape, arguments.device, dtype, encoder),
        ):  # fmt: skip
            engine = program.make_engine(asked, data, encoder)
        engine.save = lambda: None  # 27 GB, and nothing that a GPU does
        times, seen = measured(engine, arguments.cycles)
    lower = statistics.median(t for k, t in enumerate(times, start=1) if k % UNROLL)
    last = statistics.median(times[UNROLL - 1 :: UNROLL])
    [batch] = engine.lower.window[-1]
    return {
        "lower_ms": lower,
        "upper_ms": last - lower,
        "cycle_ms": (UNROLL - 1) * lower + last,
        "records_a_lower_step": len(batch.records),
        "chains_an_upper_step": asked.meta_batch_size,
        "tokens_a_lower_step": len(batch.prompts.input_ids),
        "parameters": sum(p.numel() for p in engine.lower.module.parameters()),
        "trained": sum(p.numel() for p in engine.lower.trainable_parameters()),
        **seen,
    }


def measured(engine: ReweightingEngine, cycles: int) -> tuple[list[float], dict]:
    """Milliseconds of every lower step after the first cycles, and what else was seen of a run."""
    asked, device = engine.arguments, torch.device(engine.arguments.device)
    marks, take_step, seen = [], engine.train_step, {}

    def cycle() -> None:
        for _ in range(UNROLL):
            take_step()
            engine.global_step += 1

    def train_step() -> None:
        marks.append(_mark(device))
        take_step()
        if len(marks) < (cycles + WARM_UP) * UNROLL:
            return
        marks.append(_mark(device))
        seen["waited"] = sum(problem.waited for problem in engine.problems)
        seen["peak_gib"] = _peak_gib(device)
        engine.global_step += 1
        # Compiled code cannot be counted, and torchao compiles its optimizer.
        if not asked.compile and asked.optimizer != "adamw_8bit":
            seen.update(work(engine, cycle))
        if device.type == "cuda":
            seen["waits"] = waits(cycle)
            seen["trace"] = traced(cycle)
        engine.progress.total = engine.progress.iteration + 1  # the run ends here

    engine.train_step = train_step
    said = io.StringIO()  # its progress and its table of weights
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        engine.run()
    times = [_between(a, b) for a, b in itertools.pairwise(marks)]
    seen["waiting"] = seen.pop("waited") / (sum(times) / 1e3)
    return times[WARM_UP * UNROLL :], seen


def work(engine, cycle: Callable[[], None]) -> dict[str, float]:
    """TFLOP of a lower step, the mean over a cycle, and of its upper step.

    In fp32: the counter does not go together with autocast in forward mode.
    """
    in_fp32 = [
        mock.patch.object(problem, "compute_precision", "fp32") for problem in engine.problems
    ]
    with contextlib.ExitStack() as stack, FlopCounterMode(display=False) as counter:
        for patch in in_fp32:
            stack.enter_context(patch)
        lower, one_step = 0, engine.lower.one_step_descent

        def counted(batch=None):
            nonlocal lower
            before = counter.get_total_flops()
            found = one_step(batch)
            lower += counter.get_total_flops() - before
            return found

        with mock.patch.object(engine.lower, "one_step_descent", counted):
            cycle()
        upper = counter.get_total_flops() - lower
    return {"lower_tflop": lower / UNROLL / 1e12, "upper_tflop": upper / 1e12}


def _mark(device: torch.device):
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first, second) -> float:
    """Milliseconds between two marks."""
    if isinstance(first, float):
        return 1e3 * (second - first)
    second.synchronize()
    return first.elapsed_time(second)


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def published(arguments: argparse.Namespace) -> dict:
    """The published way of working, one forward pass per prompt, over the same chains."""
    shape = "tiny" if arguments.rehearse else "2b"
    device, precision = arguments.device, "fp32" if arguments.rehearse else "bf16"
    model = make_model(shape, device)
    train, meta = make_chains(8, model.encoder)
    train, meta = ([data[k] for k in range(len(data))] for data in (train, meta))
    loop = Straightforward(model, precision)
    drawn = itertools.cycle([(k, step) for step in range(len(STEP_TOKENS)) for k in range(8)])
    lower, upper = [], []
    for number in range(arguments.cycles + WARM_UP):
        for _ in range(UNROLL):
            chain, step = next(drawn)
            started = now(device)
            loop.lower_step(train[chain], step)
            lower.append(now(device) - started)
        started = now(device)
        loop.upper_step(meta[number % 8], train[chain], step)
        upper.append(now(device) - started)
    lower_ms = 1e3 * statistics.median(lower[WARM_UP * UNROLL :])
    upper_ms = 1e3 * statistics.median(upper[WARM_UP:])
    return {
        "lower_ms": lower_ms,
        "upper_ms": upper_ms,
        "cycle_ms": UNROLL * lower_ms + upper_ms,
        "peak_gib": _peak_gib(torch.device(device)),
    }


def selection(arguments: argparse.Namespace) -> dict:
    """Candidates per second: one forward pass per prefix against prefix trees, in bf16."""
    from benchmarks.selection import Counted

    shape = "tiny" if arguments.rehearse else "2b"
    model = make_model(shape, arguments.device, torch.bfloat16, kind=Counted).eval()
    samples = []
    texts = list(chain_texts(8 * 4, model.encoder.processor.tokenizer))
    for number in range(4):
        image, question, _ = texts[8 * number]
        candidates = ["\n".join(steps) for _, _, steps in texts[8 * number : 8 * number + 8]]
        samples.append(CandidatesSample(number, question, candidates, (image,), None, None, None))
    found: dict[str, float] = {}
    scores = []
    for name, method in {"separate": separately, "trees": by_trees}.items():
        method(model, samples[:1])
        model.tokens, started = 0, now(arguments.device)
        scores.append(method(model, samples))
        found[f"{name}_per_s"] = 32 / (now(arguments.device) - started)
        found[f"{name}_tokens"] = model.tokens
    flat = [torch.tensor([z for q in s for chain in q for z in chain]).sigmoid() for s in scores]
    return {**found, "largest_difference": float((flat[0] - flat[1]).abs().max())}


# In the order of their worth.
PARTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "card": card,
    "correctness": correctness,
    "published": published,
    **{run: functools.partial(training, run=run) for run in RUNS},
    "selection": selection,
    "estimates": estimates,
}


def environment(device: str) -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "card": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device == "cuda":
        found["card"] = torch.cuda.get_device_name()
        found["memory"] = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
        found["cuda"] = torch.version.cuda or ""
        with contextlib.suppress(Exception):  # the package that knows it is optional
            import pynvml

            pynvml.nvmlInit()
            found["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return found


def cannot_use_cuda() -> None:
    """Exit with 1 if CUDA cannot be used in this process because it was forked too late."""
    sys.exit(int(torch.cuda._is_in_bad_fork()))


def run_part(name: str, arguments: argparse.Namespace) -> None:
    """Run one part and write its file; in a process of its own."""
    quiet()
    betty_logger().setLevel(logging.WARNING)
    started = time.monotonic()
    try:
        figures = PARTS[name](arguments)
    except Exception as error:
        traceback.print_exc()
        figures = {"error": f"{type(error).__name__}: {error}"[:500]}
    found = {
        **environment(arguments.device),
        "seconds": round(time.monotonic() - started, 1),
        "figures": figures,
    }
    write_text(arguments.out / f"{name}.json", json.dumps(found, indent=1) + "\n")
