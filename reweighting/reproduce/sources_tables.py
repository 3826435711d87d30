"""The tables of the study in the world of overlapping sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..system.files import read_json
from ..training.signal.estimates import spearman
from .sources import (
    ANSWERS,
    BEST,
    CLEAN,
    LAST,
    PUBLISHED,
    RANKING,
    TRUE_QUALITY,
    TWO_STAGES,
    VANILLA,
    way_to_choose,
)
from .tables import percent, plt, save_figure

CURVES = (VANILLA, PUBLISHED, RANKING, TWO_STAGES, TRUE_QUALITY, CLEAN)


@dataclass
class SourcesResults:
    """Outcomes of finished runs, as :class:`~reweighting.reproduce.sources.Kept` holds them.

    Args:
        outcomes: ``[seed]`` by row; all rows have the seeds ``1 … pairs`` or fewer of them.
        worlds: the folder of every seed's world.
        sets: the names of the test sets.
        size: N.
    """

    outcomes: Mapping[str, list[dict]]
    worlds: Sequence[Path]
    sets: Sequence[str]
    size: int = 8

    def right(self, row: str, which: str, name: str, size: int | None = None) -> np.ndarray:
        """The share of right choices among N, ``[seeds, questions]``, in per cent."""
        variant, method = (VANILLA, row) if row in ANSWERS else (row, way_to_choose(row))
        kept = [run["right"][which][name][method] for run in self.outcomes[variant]]
        return 100 * np.array([found[str(size or self.size)] for found in kept])

    def average(self, row: str, which: str, size: int | None = None) -> np.ndarray:
        """Over all test sets, ``[seeds, questions]``."""
        every = [self.right(row, which, name, size) for name in self.sets]
        return np.concatenate(every, axis=1)

    def accuracy(self, which: str) -> list[str]:
        """Rows down, sets across; the average with its interval over pairs and questions."""
        lines = [
            "| row | pairs | validation | " + " | ".join(self.sets) + " | average | - vanilla |"
        ]
        lines.append("|---" * (len(self.sets) + 5) + "|")
        for row in (*ANSWERS, *self.outcomes):
            cells = [f"{self.right(row, which, n).mean():.1f}" for n in ("validation", *self.sets)]
            values = self.average(row, which)
            cells.append(percent(values))
            gain = "" if row in (*ANSWERS, VANILLA) else percent(self.gain(row, which), "+")
            lines.append(f"| {row} | {len(values)} | " + " | ".join([*cells, gain]) + " |")
        return lines

    def gain(self, row: str, which: str, over: str = VANILLA) -> np.ndarray:
        """Points above another row, over the pairs that both have, ``[seeds, questions]``."""
        ours, theirs = self.average(row, which), self.average(over, which)
        pairs = min(len(ours), len(theirs))
        return ours[:pairs] - theirs[:pairs]

    def learned(self) -> dict[str, list[dict]]:
        """The outcomes of the rows that learn domain weights."""
        return {
            row: runs
            for row, runs in self.outcomes.items()
            if row != TRUE_QUALITY and all(run["weights"] is not None for run in runs)
        }

    def cards(self, pairs: int) -> list[list[dict]]:
        """What is true of the sources, for every pair."""
        return [read_json(world / "sources" / "domains.json") for world in self.worlds[:pairs]]

    def weights(self) -> list[str]:
        """What learned weights go along with: Spearman correlations, mean and least over pairs."""
        lines = ["| row | with quality: mean | least | with mean label: mean | least | largest |"]
        lines.append("|---" * 6 + "|")
        for row, runs in self.learned().items():
            pairs = zip(runs, self.cards(len(runs)), strict=True)
            quality, label = np.array([correlations(r["weights"], card) for r, card in pairs]).T
            cells = [quality.mean(), quality.min(), label.mean(), label.min(), label.max()]
            lines.append(f"| {row} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
        return lines

    def curves(self, which: str) -> list[str]:
        """The set with large pools by N."""
        name = self.sets[-1]
        sizes = list(self.outcomes[VANILLA][0]["right"][which][name]["oracle"])
        lines = ["| row | " + " | ".join(f"N = {size}" for size in sizes) + " |"]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for row in (*ANSWERS, *self.outcomes):
            cells = [f"{self.right(row, which, name, int(n)).mean():.1f}" for n in sizes]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        return lines

    def text(self, command: str) -> str:
        """RESULTS.md."""
        parts = [
            "# Results in the world of overlapping sources",
            f"`{command}`. Pair k is seed k in rotation k. Best of {self.size} by the mean of "
            "log-odds, per cent; brackets are 95 % bootstrap intervals over pairs and questions.",
            "## The checkpoint that was best on the validation set",
            "\n".join(self.accuracy(BEST)),
            "## The last checkpoint",
            "\n".join(self.accuracy(LAST)),
            "## While training",
            "![Accuracy on the validation set by step](curves.png)",
            *self._about_weights(),
            f"## By the number of candidates ({self.sets[-1]}, best checkpoint)",
            "\n".join(self.curves(BEST)),
        ]
        return "\n\n".join(parts) + "\n"

    def _about_weights(self) -> list[str]:
        """The section on learned weights, if any row has learned some."""
        if not self.learned():
            return []
        figure = "![Weights, quality and mean label](weights.png)"
        return ["## What the weights go along with", "\n".join(self.weights()), figure]

    def draw(self, out: Path) -> None:
        """The figures that RESULTS.md shows."""
        figure, axes = plt.subplots(figsize=(6.4, 4.2))
        for row in (name for name in CURVES if name in self.outcomes):
            by_pair = [run["curve"] for run in self.outcomes[row]]
            steps = list(by_pair[0])
            found = 100 * np.array([[curve[step] for step in steps] for curve in by_pair])
            x, mean = [int(step) for step in steps], found.mean(0)
            error = found.std(0, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0 * mean
            [line] = axes.plot(x, mean, marker="o", markersize=3, label=row)
            axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.15)
        axes.set_xlabel("lower steps")
        axes.set_ylabel(f"best of {self.size} on validation, %; band: standard error")
        axes.legend(frameon=False, fontsize=8, ncols=2)
        save_figure(figure, [axes], out / "curves.png")

        learned = self.learned()
        if not learned:
            return
        figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True)
        for row, runs in learned.items():
            cards = [source for card in self.cards(len(runs)) for source in card]
            weights = [
                run["weights"][source["name"]]
                for run, card in zip(runs, self.cards(len(runs)), strict=True)
                for source in card
            ]
            for axes, key in zip(panels, ("quality", "mean_label"), strict=True):
                axes.scatter([c[key] for c in cards], weights, s=12, alpha=0.6, label=row)
                axes.set_xlabel(key.replace("_", " ") + " of the source")
        panels[0].set_ylabel("learned weight")
        panels[0].legend(frameon=False, fontsize=9)
        save_figure(figure, panels, out / "weights.png")


def correlations(weights: Mapping[str, float], card: Sequence[dict]) -> tuple[float, float]:
    """Of the weights with quality and with the stored mean label."""
    ours = torch.tensor([weights[source["name"]] for source in card])
    quality, label = (
        torch.tensor([source[key] for source in card]) for key in ("quality", "mean_label")
    )
    return spearman(ours, quality), spearman(ours, label)
