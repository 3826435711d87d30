"""Kill a training run at random moments, resume it each time, compare with an undisturbed run.

    python -m benchmarks.kill_and_resume --kills 50

The run saves after every step, so a large share of the kills (SIGKILL: nothing can be caught or
tidied up) lands in the middle of writing a checkpoint. After every kill the checkpoint must open
and belong to one step throughout; the final weights and metrics must equal, bit for bit, those of
the run that was left alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

import main as program
from reweighting import checkpoints

REPOSITORY = Path(__file__).resolve().parents[1]
CLOCK = ("samples_per_second", "peak_memory_gib", "waiting")


def flags(run: Path, steps: int, workers: int) -> list[str]:
    """Arguments of a run on the demo data that saves after every step."""
    return [
        *("--train_json_file", str(REPOSITORY / "data" / "train.json")),
        *("--meta_json_file", str(REPOSITORY / "data" / "meta.json")),
        *("--image_root", str(REPOSITORY / "data"), "--weights_path", str(run)),
        *("--reward_model", str(REPOSITORY / "weights" / "tiny-qwen2-vl")),
        *("--device", "cpu", "--precision", "fp32", "--num_workers", str(workers)),
        *("--batch_size", "2", "--meta_batch_size", "2", "--unroll_steps", "2", "--lr", "1e-4"),
        *("--iteration_num", str(steps), "--save_every_iterations", "1", "--logging_steps", "3"),
        *("--resume",),
    ]


def train(arguments: list[str]) -> None:
    """Body of the child process."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    sys.exit(program.main(arguments))


def start(run: Path, steps: int, workers: int) -> multiprocessing.Process:
    # Forked, so that each of the many runs does not import torch anew.
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(flags(run, steps, workers),)
    )
    process.start()
    return process


def learned(run: Path) -> dict[str, torch.Tensor]:
    """All weights of the current checkpoint."""
    return {
        **load_file(run / "base_model" / "model.safetensors"),
        **torch.load(run / "LN_weights.pt", weights_only=True),
        **torch.load(run / "domain_weights.pt", weights_only=True)["module"],
    }


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def intact(run: Path) -> int | None:
    """The step of the current checkpoint, or None before the first; raises if it is torn."""
    if not checkpoints.exists(run):
        return None
    iteration = checkpoints.load_state(run)["iteration"]
    assert (run / "checkpoint").readlink().name == f"step-{iteration:08d}"
    assert all(value.isfinite().all() for value in learned(run).values())
    return iteration


def main() -> int:
    """Command line; exit code 1 if a checkpoint was torn or the runs differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how often (default: 50)")
    parser.add_argument("--steps", type=int, default=300, help="lower steps (default: 300)")
    parser.add_argument("--workers", type=int, default=1, help="data workers (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        kills = torn = during_save = 0
        step = None
        while kills < arguments.kills:
            process = start(killed, arguments.steps, arguments.workers)
            process.join(rng.uniform(1.0, 8.0))
            if process.exitcode is not None:
                print(f"the run ended after {kills} kills: give more --steps")
                return 1
            process.kill()
            process.join()
            kills += 1
            during_save += bool(list(killed.glob("checkpoints/*.unfinished")))
            try:
                step = intact(killed)
            except Exception as error:
                torn += 1
                print(f"kill {kills}: torn checkpoint: {error!r}")
            print(f"kill {kills}: checkpoint at step {step}", flush=True)
        for run in (killed, whole):
            process = start(run, arguments.steps, arguments.workers)
            process.join()
            assert process.exitcode == 0
        ours, theirs = learned(killed), learned(whole)
        same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
        same_metrics = metrics(killed) == metrics(whole)
    print(
        f"{kills} kills, {during_save} of them while a checkpoint was being written: {torn} torn "
        f"checkpoints; final weights {'equal' if same else 'DIFFER'}, metrics "
        f"{'equal' if same_metrics else 'DIFFER'} bit for bit after {arguments.steps} steps"
    )
    return 0 if same and same_metrics and not torn else 1


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
