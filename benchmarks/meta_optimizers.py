"""What moves the weights: AdamW, and three rules that listen for longer, in the world of sources.

    python -m benchmarks.meta_optimizers --rotations 1 2 3

trains with ranking loss and all lower batches, once for every rule and rotation, and prints how the
weights go along with quality and with mean labels at every hundredth step, and the accuracy on
validation. The data are made in ``--work``; finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import main as program
from reweighting.reproduce import sources
from reweighting.reproduce.sources import World
from reweighting.reproduce.sources_tables import correlations
from reweighting.reproduce.study import CommandFailed, Study, run_quietly
from reweighting.system import terminal
from reweighting.system.files import complete_lines, read_json
from reweighting.training import build

RATE = 0.05


class Averaged(torch.optim.Optimizer):
    """Steps along the mean of all gradients so far, or along each gradient, in a common scale.

    Args:
        shrunk: multiply a weight's distance from its start by s² / (1 + s²), s being the mean of
            its gradients over the standard error of that mean. Noise then moves nothing for long.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, shrunk: bool) -> None:
        super().__init__(list(parameters), {"lr": lr})
        self.shrunk = shrunk

    @torch.no_grad()
    def step(self) -> None:
        """Every weight goes to its start - lr · Σ g / (root mean square of all gradients)."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state |= {"start": parameter.clone(), "count": 0}
                    state |= {
                        "sum": torch.zeros_like(parameter),
                        "squares": torch.zeros_like(parameter),
                    }
                state["count"] += 1
                state["sum"] += gradient
                state["squares"] += gradient.square()
                count = state["count"]
                scale = (state["squares"].mean() / count).sqrt().clamp(min=1e-30)
                distance = -group["lr"] * state["sum"] / scale
                if self.shrunk:
                    mean = state["sum"] / count
                    variance = (state["squares"] / count - mean.square()).clamp(min=1e-30)
                    signal = count * mean.square() / variance
                    distance = distance * signal / (1 + signal)
                parameter.copy_(state["start"] + distance)


RULES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda w: torch.optim.AdamW(w.parameters(), lr=RATE, weight_decay=0),
    "AdamW, β1 0.99": lambda w: torch.optim.AdamW(
        w.parameters(), lr=RATE, betas=(0.99, 0.999), weight_decay=0
    ),
    "sum of gradients, common scale": lambda w: Averaged(w.parameters(), RATE, shrunk=False),
    "the same, shrunk by signal to noise": lambda w: Averaged(w.parameters(), RATE, shrunk=True),
}


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, default=Path("weights/meta_optimizers"), help="folder for everything")
    add("--rotations", type=int, nargs="+", default=[1, 2, 3])
    add("--iterations", type=int, default=600)
    add("--base", default=sources.BASE)
    arguments = parser.parse_args()
    print("| rule | rotation | ρ with quality, with mean label, by step | validation by step |")
    print("|---|---|---|---|")
    for number, (rule, make) in enumerate(RULES.items()):

        def run(command: list[str], make=make) -> int:
            if command[0] != "main.py":
                return run_quietly(command)
            with mock.patch.object(
                build, "make_meta_optimizer", lambda weighting, *_: make(weighting)
            ):
                return program.main(list(command[1:]))

        setup = sources.setup(arguments.work, arguments.base, arguments.iterations)
        variants = {f"rule {number}": sources.ROWS[sources.RANKING]}
        study = Study(setup, arguments.work, variants, arguments.rotations, run=run)
        try:
            for rotation in arguments.rotations:
                sources.make_world(study, World(), rotation)
                study.train_run(f"rule {number}", rotation)
                print(line(study, rule, f"rule {number}", rotation), flush=True)
        except CommandFailed as error:
            terminal.error(error)
            return 1
    return 0


def line(study: Study, rule: str, variant: str, rotation: int) -> str:
    """A row of the table."""
    card = read_json(study.work / f"world_{rotation}" / "sources" / "domains.json")
    folder = study.folder(variant, rotation)
    found = [row for row in complete_lines(folder / "metrics.jsonl") if row["iteration"] % 100 == 0]
    follow = " ".join("{:.2f}/{:.2f}".format(*correlations(row["weights"], card)) for row in found)
    curve = " ".join(
        f"{100 * row['accuracy']:.1f}" for row in complete_lines(folder / "evaluations.jsonl")
    )
    return f"| {rule} | {rotation} | {follow} | {curve} |"


if __name__ == "__main__":
    sys.exit(main())
