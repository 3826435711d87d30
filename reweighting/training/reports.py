"""What a run says while it trains: the progress line, metrics.jsonl, TensorBoard or W&B."""

from __future__ import annotations

import argparse
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import torch

from ..system.checkpoints.finding import METRICS_FILE
from ..system.files import json_line
from ..system.processes import Processes

BAR_FORMAT = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
LENGTH_BEFORE = len("100% / [12:34:56<12:34:56, ]")  # of it, both numbers of steps left out
UNCUT = 160  # columns of a progress line that goes to a file
# Numbers that have their place elsewhere in a line of metrics, or serve the progress line only.
UNWRITTEN = {"parameters_moved", "waited", "communicated", "weight_range"}


def peak_memory_gib(device: torch.device) -> float:
    """Most memory used so far in GiB: allocated on a CUDA device, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Reporter:
    """Collects losses between two lines of ``metrics.jsonl`` and writes them.

    Args:
        arguments: of the run.
        domains: names of the domains, in the order of their indices.
        processes: of the run, the first of which reports for all.
    """

    def __init__(
        self, arguments: argparse.Namespace, domains: list[str], processes: Processes
    ) -> None:
        self.arguments, self.processes = arguments, processes
        self.domains = domains
        self.device = torch.device(arguments.device)
        self.path = Path(arguments.weights_path) / METRICS_FILE
        self._loss_sums = torch.zeros(len(domains), dtype=torch.float64)
        self._loss_counts = torch.zeros(len(domains), dtype=torch.int64)
        self._noted: list[tuple[torch.Tensor, torch.Tensor]] = []  # domains and losses, to be added
        self._meta_losses: list[float] = []
        self._at_chance = False  # the meta loss, when last compared
        self._samples = 0  # seen since the run, or its present part, began
        self._file: TextIO | None = None
        self._send: Callable[[dict[str, float], int], Any] | None = None

    def __enter__(self) -> Reporter:
        if not self.processes.first:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if self.arguments.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self.path.parent / "tensorboard"))
            self._send = lambda values, step: [
                writer.add_scalar(name, value, step) for name, value in values.items()
            ]
            self._close = writer.close
        elif self.arguments.report_to == "wandb":
            import wandb

            run = wandb.init(project="dreamprm", config=vars(self.arguments))
            self._send = lambda values, step: run.log(values, step=step)
            self._close = run.finish
        return self

    def __exit__(self, *exception) -> None:
        if self._file is not None:
            self._file.close()
        if self._send is not None:
            self._close()

    def note_losses(self, domains: torch.Tensor, losses: torch.Tensor, records: int) -> None:
        """Remember the unweighted losses ``[B]`` of records of ``domains`` ``[B]``.

        Args:
            records: how many there are on all processes.
        """
        # Reading them now would make the processor wait for a GPU in the middle of a step.
        self._noted.append((domains, losses))
        self._samples += records

    def collect(self) -> None:
        """Add up what all processes have seen since the last time."""
        sums, counts = torch.zeros_like(self._loss_sums), torch.zeros_like(self._loss_sums)
        for domains, losses in self._noted:
            domains = domains.cpu()
            into = sums if self.processes.count > 1 else self._loss_sums
            into.index_add_(0, domains, losses.double().cpu())
            counts += torch.bincount(domains, minlength=len(self.domains))
        self.processes.sum_([sums, counts])
        self._loss_sums += sums
        self._loss_counts += counts.long()
        self._noted.clear()

    def note_meta_loss(self, loss: float) -> None:
        """Remember the loss of an upper step."""
        self._meta_losses.append(loss)

    def progress_line(self, numbers: dict, total: int, seconds: float) -> str:
        """The part of the progress line after the times: what is known already and what fits.

        The most important comes first; what would go beyond the terminal's width is left out.

        Args:
            numbers: as for :meth:`write`, of which it needs the losses, the weights and the norm.
            total: lower steps of the run.
            seconds: since the run, or its present part, began.
        """
        parts = [f"loss {numbers['weighted_loss']:.4f}"]
        if math.isfinite(numbers.get("meta_loss", math.nan)):
            chance = " chance" if self._at_chance else ""
            parts.append(f"meta {numbers['meta_loss']:.4f}{chance}")
            low, high = numbers["weight_range"]
            parts.append(f"w {low:.2f}..{high:.2f}")
        if "best_of_n_accuracy" in numbers:
            parts.append(f"best of N {100 * numbers['best_of_n_accuracy']:.1f} %")
        if "step_auroc" in numbers:
            parts.append(f"step AUROC {numbers['step_auroc']:.3f}")
        if math.isfinite(numbers.get("hypergradient_norm", math.nan)):
            parts.append(f"|hypergrad| {numbers['hypergradient_norm']:.1e}")
        parts += [
            f"peak {peak_memory_gib(self.device):.1f} GiB",
            f"{self._samples / max(seconds, 1e-9):.1f} samples/s",
        ]
        columns = shutil.get_terminal_size((UNCUT, 24)).columns
        room = columns - 1 - LENGTH_BEFORE - 2 * len(str(total))
        line = parts[0]
        for part in parts[1:]:
            if len(line) + len(part) + 2 <= room:
                line += f", {part}"
        return line

    def write(self, numbers: dict, seconds: float) -> None:
        """Write one line and forget the losses collected so far; nothing if there are none.

        All processes call it, and the first one writes.

        Args:
            numbers: what the line says besides the losses collected here, JSON values and floats;
                those of the upper level are there only if the run has one.
            seconds: since the run, or its present part, began.
        """
        self.collect()
        count = int(self._loss_counts.sum())
        if count == 0:
            return
        seen = self._loss_counts > 0
        means = self._loss_sums / self._loss_counts.clamp(min=1)
        line = {name: numbers[name] for name in ("iteration", "epoch")}
        line["loss"] = float(self._loss_sums.sum() / count)
        line |= {name: value for name, value in numbers.items() if name not in UNWRITTEN}
        if "meta_loss" in numbers:
            self._at_chance = bool(numbers["meta_loss_at_chance"])
            # The mean since the last line; the last value if there was no upper step in between.
            line["meta_loss"] = fmean(self._meta_losses or [numbers["meta_loss"]])
        line["domain_loss"] = {
            domain: float(mean)
            for domain, mean, present in zip(self.domains, means, seen, strict=True)
            if present
        }
        line["parameters_moved"] = numbers["parameters_moved"]
        line["samples_per_second"] = self._samples / max(seconds, 1e-9)
        line["waiting"] = numbers["waited"] / max(seconds, 1e-9)
        if self.processes.count > 1:
            line["communicating"] = numbers["communicated"] / max(seconds, 1e-9)
        line["peak_memory_gib"] = peak_memory_gib(self.device)
        line = _finite(line)
        if self._file is not None:
            self._file.write(json_line(line))
            self._file.flush()
        if self._send is not None:
            self._send(_flat(line), numbers["iteration"])
        self._loss_sums.zero_()
        self._loss_counts.zero_()
        self._meta_losses.clear()

    def state_dict(self) -> dict:
        """Losses collected since the last line, so that a resumed run reports the same means."""
        self.collect()
        return {
            "loss_sums": self._loss_sums,
            "loss_counts": self._loss_counts,
            "meta_losses": self._meta_losses,
            "at_chance": self._at_chance,
        }

    def load_state_dict(self, state: dict) -> None:
        self._loss_sums.copy_(state["loss_sums"])
        self._loss_counts.copy_(state["loss_counts"])
        self._meta_losses = list(state["meta_losses"])
        self._at_chance = state.get("at_chance", False)


def _finite(value):
    """JSON has neither NaN nor infinity: None for what is unknown or not finite."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(line: dict, prefix: str = "") -> dict[str, float]:
    """Nested metrics as ``group/name``."""
    flat = {}
    for name, value in line.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat
