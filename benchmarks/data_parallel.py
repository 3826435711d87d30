"""Several processes against one: the same numbers, how much is sent, and how fast it is.

    python -m benchmarks.data_parallel --cycles 20 --processes 2 4
    python -m benchmarks.data_parallel --speed 5

On the CPU, with gloo, one thread a process, the demo's data and its tiny model. The first command
takes bilevel cycles of several kinds of runs in one process with the whole batch and in several
that share it, and prints how far what they compute is apart. The second lets two processes and one
take cycles in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import main as program
from reweighting.records.dataset import load_data
from reweighting.reproduce.configs import DEMO
from reweighting.system.processes import Processes
from reweighting.training.arguments import parse_arguments
from reweighting.training.build import make_encoder
from tests.support.many_processes import distances, recorded, torchrun

WHOLE = 4  # records, and meta chains, of all processes together
RUNS = {
    "domain table, accumulation, clipping, cold start": "--max_grad_norm 0.5 "
    "--gradient_accumulation 2 --cold_start_iterations 2",
    "instance table, whole chains": "--reweighting instance_table --batch_by cot --meta_loss bce",
    "instance net, all batches, prefixes": "--reweighting instance_net "
    "--hypergradient_batches all --meta_target prefix",
    "ranking": "--meta_loss rank",
    "yes/no head, squared error": "--score_head plus_minus --loss mse",
    "finite differences": "--hypergradient darts",
}
SPEED = ("--batch_by", "cot", "--unroll_steps", "5", "--iteration_num", "100000")
CHAINS = 4  # a process


def arguments_of(processes: int, size: int, *flags: str) -> list[str]:
    """The command line of a run with batches of ``size`` on each of so many processes."""
    return [
        *("--train_json_file", str(DEMO.train), "--meta_json_file", str(DEMO.meta)),
        *("--image_root", str(DEMO.image_root), "--weights_path", tempfile.gettempdir() + "/none"),
        *("--reward_model", "weights/tiny-qwen2-vl", "--device", "cpu", "--precision", "fp32"),
        *("--num_workers", "0", "--unroll_steps", "2", "--lr", "1e-5", "--meta_lr", "0.01"),
        *("--batch_size", str(size), "--meta_batch_size", str(size), *flags),
        *(["--strategy", "distributed"] if processes > 1 else []),
    ]


def equality(cycles: int, counts: list[int], double: bool) -> None:
    """Print the distances ‖several - one‖ / ‖one‖ of all that is computed."""
    steps = ("--iteration_num", str(2 * cycles))
    print(f"{'run':<50}{'processes':>10}", end="")
    print("".join(f"{name:>16}" for name in ("losses", "meta losses", "hypergradients", "weights",
                                             "parameters")))  # fmt: skip
    alone = {
        name: recorded(arguments_of(1, WHOLE, *flags.split(), *steps), Processes(), double)
        for name, flags in RUNS.items()
    }
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            plan = {
                name.replace("/", "-"): (
                    arguments_of(count, WHOLE // count, *flags.split(), *steps),
                    double,
                )
                for name, flags in RUNS.items()
            }
            file = Path(folder) / "plan.json"
            file.write_text(json.dumps({"cycles": plan}))
            started = torchrun(count, "-m", "tests.support.many_processes", str(file), folder)
            said, _ = started.communicate()
            if started.returncode:
                sys.exit(said)
            for name in RUNS:
                shared = torch.load(f"{folder}/{name.replace('/', '-')}-0.pt")
                found = "".join(f"{d:>16.1e}" for d in distances(shared, alone[name]).values())
                print(f"{name:<50}{count:>10}{found}")
                (few, sent), (more, both) = sorted(set(shared["communicated"]))[:2]
                print(f"    sums of a lower step: {few}, {sent:,} bytes; with an upper step: "
                      f"{more}, {both:,} bytes", flush=True)  # fmt: skip


def speed(rounds: int) -> None:
    """Seconds of a cycle: this process alone, and with the others, in turns."""
    processes = Processes.of_launcher("cpu")
    size = CHAINS * processes.count
    shared = opened(arguments_of(processes.count, CHAINS, *SPEED), processes)
    alone = opened(arguments_of(1, size, *SPEED), Processes()) if processes.first else None
    times: dict[str, list[float]] = {"one": [], "all": []}
    before = 0.0
    for number in range(rounds + 1):
        one = processes.together(lambda: cycle(alone) if processes.first else 0.0)
        both, sent = cycle(shared), processes.seconds()
        if number:  # the first of each warms up
            times["one"].append(one)
            times["all"].append(both)
            if processes.first:
                print(f"one {one:.2f} s, {processes.count} processes {both:.2f} s "
                      f"({sent - before:.2f} s communicating and waiting), load "
                      f"{os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
        before = processes.seconds()
    if processes.first:
        ratios = [one / both for one, both in zip(times["one"], times["all"], strict=True)]
        median = statistics.median(ratios)
        print(f"{size} chains a step: {processes.count} processes are {median:.2f} times as fast "
              f"as one, from {min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip
    processes.leave()


def opened(argv: list[str], processes: Processes):
    """The engine of a run."""
    arguments = parse_arguments(argv)
    data = load_data(arguments, progress=False)
    engine = program.make_engine(
        arguments, data, make_encoder(arguments, data.system), processes=processes
    )
    engine.train()
    return engine


def cycle(engine) -> float:
    """Seconds of a bilevel cycle: the lower steps up to an upper step."""
    started = time.monotonic()
    for _ in range(engine.arguments.unroll_steps):
        engine.train_step()
        engine.progress.iteration += 1
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=20, help="bilevel cycles of every run")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--speed", type=int, default=0, help="rounds of the comparison of speed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        speed(a.speed)
    elif a.speed:
        started = torchrun(2, "-m", "benchmarks.data_parallel", "--speed", str(a.speed))
        print("".join(line for line in started.stdout if " s" in line and "INFO" not in line))
    else:
        equality(a.cycles, a.processes, a.double)


if __name__ == "__main__":
    main()
