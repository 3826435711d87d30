"""What tests and benchmarks compare between one process and several.

    torchrun --standalone --nproc_per_node 2 -m tests.support.many_processes PLAN FOLDER

PLAN is a JSON file with ``cycles``, the arguments of runs of which every step is recorded in
FOLDER, by name, each with whether to compute in float64, and ``runs``, the arguments of whole runs
that are made one after another.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import main as program
from benchmarks.hypergradient import as_double
from reweighting.bilevel.batches import TrainBatch
from reweighting.records.dataset import load_data
from reweighting.system import terminal
from reweighting.system.processes import Processes, launched_rank
from reweighting.training.arguments import parse_arguments
from reweighting.training.build import lower_optimization, make_encoder

REPOSITORY = Path(__file__).resolve().parents[2]


def recorded(argv: list[str], processes: Processes, double: bool = False) -> dict:
    """The steps of a run: losses, hypergradients, what was communicated, and what was learned.

    Args:
        double: compute in float64.
    """
    arguments = parse_arguments(argv)
    data = load_data(arguments, progress=False)
    encoder = make_encoder(arguments, data.system)
    engine = program.make_engine(arguments, data, encoder, processes=processes)
    lower, upper, progress = engine.lower, engine.upper, engine.progress
    if double:
        lower.module.double()
        for module in lower.module.modules():
            if hasattr(module, "variance_epsilon"):
                module.forward = functools.partial(norm, module)
        if upper.module.needs is not None:  # a net takes features of the model
            upper.module.double()
        lower.batches, upper.batches = (map(in_double, level.batches) for level in (lower, upper))
    found: dict = {"hypergradients": []}
    callback = upper.grad_callback

    def note() -> None:
        callback()
        gradients = [p.grad for p in upper.trainable_parameters() if p.grad is not None]
        found["hypergradients"].append(flat(gradients))

    upper.grad_callback = note
    engine.train()
    losses, meta_losses, communicated = [], [], []
    while not progress.finished:
        calls, sent, taken = processes.calls, processes.sent, progress.upper_steps
        engine.train_step()
        progress.iteration += 1
        if progress.iteration == progress.cold_steps:
            lower.end_cold_start(*lower_optimization(arguments, lower.module, progress))
        communicated.append((processes.calls - calls, processes.sent - sent))
        losses.append(lower.last_loss)
        if progress.upper_steps > taken:
            meta_losses.append(upper.last_loss)
    lower.batches = upper.batches = None
    return {
        **{"losses": torch.tensor(losses), "meta_losses": torch.tensor(meta_losses)},
        "hypergradients": torch.stack(found["hypergradients"]),
        "weights": flat(upper.module.parameters()),
        "parameters": flat(lower.trainable_parameters()),
        "communicated": communicated,
        "lost": dict(upper.lost),
    }


def norm(layer: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """RMSNorm in the precision of what it is given."""
    mean_square = hidden_states.square().mean(-1, keepdim=True)
    return layer.weight * hidden_states * torch.rsqrt(mean_square + layer.variance_epsilon)


def in_double(batch):
    """A batch of either level with images and labels in float64."""
    label = "accuracy" if isinstance(batch, TrainBatch) else "true_false"
    labels = {label: getattr(batch, label).double()}
    return dataclasses.replace(batch, prompts=as_double(batch.prompts), **labels)


def flat(tensors) -> torch.Tensor:
    """All numbers of ``tensors``, dense or sparse, one after another."""
    dense = [t.to_dense() if t.is_sparse else t for t in tensors]
    return torch.cat([t.detach().reshape(-1) for t in dense])


def distances(ours: dict, theirs: dict) -> dict[str, float]:
    """‖ours - theirs‖ / ‖theirs‖ of everything that was recorded."""
    names = ("losses", "meta_losses", "hypergradients", "weights", "parameters")
    return {
        name: float((ours[name] - theirs[name]).double().norm() / theirs[name].double().norm())
        for name in names
    }


def torchrun(processes: int, *words: str, **options) -> subprocess.Popen:
    """Start ``words`` in several processes, each with one thread."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, f"--nproc_per_node={processes}", *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        text=True,
        **options,
    )


def main() -> None:
    """Do what PLAN asks for, in one of the processes."""
    if launched_rank() > 0:
        terminal.mute()
    plan, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for name, (argv, double) in plan.get("cycles", {}).items():
        processes = Processes.of_launcher("cpu")
        torch.save(recorded(argv, processes, double), folder / f"{name}-{processes.rank}.pt")
    for argv in plan.get("runs", []):
        processes = Processes.of_launcher("cpu")
        code = program.run(parse_arguments(argv), processes)
        assert code == 0, code
    processes.leave()


if __name__ == "__main__":
    main()
