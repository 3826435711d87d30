"""Peak memory of training: the estimate of --dry_run against what a run takes.

    python -m benchmarks.memory
    python -m benchmarks.memory --shape 2b --device cuda --precision bf16

trains a few steps on the demo data with random weights of the given shape, once for every set of
flags that changes memory, each in a process of its own. On the CPU the profiler records every
allocation of a tensor; on a CUDA device the allocator counts.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile

import torch

import main as program
from benchmarks.bilevel import EIGHT, SHAPES, allocated, demo_run, in_a_process, make_model
from reweighting.records.dataset import load_data
from reweighting.system.terminal import quiet
from reweighting.training.arguments import parse_arguments
from reweighting.training.build import make_encoder
from reweighting.training.dry_run import largest_batches
from reweighting.training.memory import estimate_memory

CONFIGURATIONS = {
    "batch 1": [],
    "baseline, batch 1": ["--baseline"],
    "8 chains / 8 chains": EIGHT,
    "8 / 8, accumulation 2": [*EIGHT, "--gradient_accumulation", "2"],
    "8 / 8, gradient checkpointing": [*EIGHT, "--gradient_checkpointing"],
    "8 / 8, LoRA": [*EIGHT, "--lora_rank", "16"],
    "8 / 8, plain attention": [*EIGHT, "--attn_implementation", "eager"],
    "batch 1, clipped": ["--max_grad_norm", "0.01"],
    "8 / 8, finite difference": [*EIGHT, "--hypergradient", "darts"],
    "8 / 8, adamw_8bit": [*EIGHT, "--optimizer", "adamw_8bit"],
}


def estimated_and_measured(argv: list[str], steps: int) -> tuple[float, float]:
    """The estimate for a run with flags ``argv``, and its peak over some steps, in bytes."""
    arguments = parse_arguments(argv)
    data = load_data(arguments, progress=False)
    encoder = make_encoder(arguments, data.system)
    largest = largest_batches(arguments, data, encoder)
    estimates = [estimate_memory(arguments, encoder, *batches) for batches in largest]
    estimate = max(estimates)
    train, meta = largest[estimates.index(estimate)]
    engine = program.make_engine(arguments, data, encoder)
    engine.train()
    engine.lower.batches = itertools.repeat(train)
    if meta is not None:
        engine.upper.batches = itertools.repeat(meta)

    def steps_taken() -> None:
        for step in range(1, steps + 1):
            engine.global_step = step
            engine.train_step()

    loaded = sum(p.nbytes for p in engine.lower.module.parameters())
    gc.collect()  # what an earlier run left behind would be freed while this one is measured
    return estimate, loaded + allocated(arguments.device, steps_taken)[0]


def run(argv: list[str], steps: int) -> tuple[float, float]:
    """In a process of its own."""
    torch.set_num_threads(1)
    quiet()
    return estimated_and_measured(argv, steps)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="mix")
    add("--device", default="cpu")
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    add("--only", default="", help="configurations whose name contains this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(arguments.shape, "cpu").save_pretrained(folder)
        print(f"shape {arguments.shape}, {arguments.device}, torch {torch.__version__}\n")
        print(
            "| flags | precision | estimated, MiB | measured, MiB | error |\n|---|---|---|---|---|"
        )
        for name, flags in CONFIGURATIONS.items():
            for precision in arguments.precision:
                if arguments.only not in name or ("8bit" in name and precision != "bf16"):
                    continue
                options = ["--num_workers", "0", "--unroll_steps", "2", *flags]
                argv = demo_run(folder, arguments.device, precision, *options)
                estimate, measured = in_a_process(run, argv, 4)
                error = 100 * (estimate / measured - 1)
                cells = [name, precision, f"{estimate / 2**20:,.0f}", f"{measured / 2**20:,.0f}"]
                print("| " + " | ".join(cells) + f" | {error:+.0f} % |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
