"""The tables and figures of a finished study."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..selection.__main__ import AGGREGATION_NAMES
from ..selection.best_of_n import evaluate, interval
from .configs import COMPARABLE, PUBLISHED, PUBLISHED_SETS, SANITY
from .study import Study

MAIN_METHODS = ("one sample", "majority", "ORM", "random subset", "s1-PRM", "vanilla PRM",
                "DreamPRM", "Instance Table", "Instance Net", SANITY, "oracle")  # fmt: skip
WITHOUT_MODEL = ("one sample", "majority", "weighted vote", "oracle")


class Results:
    """The numbers of a finished study."""

    def __init__(self, study: Study, config: str) -> None:
        self.study, self.config = study, config
        self.sets = list(study.setup.sets)
        # right[variant][set][method][N] is [seeds, questions]
        self.right = {
            variant: {name: self._by_size(variant, name) for name in self.sets}
            for variant in study.variants
        }

    def _by_size(self, variant: str, name: str) -> dict[str, dict[int, np.ndarray]]:
        by_seed = [evaluate(self.study.pools(variant, s, name)) for s in self.study.seeds]
        return {
            method: {size: np.stack([found[method][size] for found in by_seed]) for size in sizes}
            for method, sizes in by_seed[0].items()
        }

    def values(self, method: str, name: str, size: int | None = None) -> np.ndarray:
        """Right or wrong, ``[seeds, questions]``, by a method of the main table or a variant.

        ``size`` is N, the whole pool unless given.
        """
        variant, way = method, "mean_log_odds"
        if method in WITHOUT_MODEL:
            variant, way = "DreamPRM", method
        elif method == "ORM":
            way = "last"  # an outcome reward model scores whole chains
        by_size = self.right[variant][name][way]
        found = by_size[size or max(by_size)]
        # Without a model all seeds are the same: one of them is enough.
        return found[:1] if way in ("one sample", "majority", "oracle") else found

    def pooled(self, method: str, size: int | None = None) -> np.ndarray:
        """Over all sets, ``[seeds, questions]``, in per cent."""
        return 100 * np.concatenate([self.values(method, n, size) for n in self.sets], axis=1)

    def methods(self) -> list[str]:
        """The rows of the main table that were run."""
        return [m for m in MAIN_METHODS if m in WITHOUT_MODEL or m in self.study.variants]

    def main_table(self) -> list[str]:
        """Methods down, sets across, with 95 % intervals."""
        lines = ["| method | " + " | ".join(self.sets) + " | average |"]
        lines.append("|---" * (len(self.sets) + 2) + "|")
        for method in self.methods():
            cells = [percent(100 * self.values(method, name)) for name in self.sets]
            lines.append(
                f"| {method} | " + " | ".join([*cells, percent(self.pooled(method))]) + " |"
            )
        return lines

    def gaps(self) -> list[str]:
        """What DreamPRM gains over the others, in points."""
        ours, lines = self.pooled("DreamPRM"), []
        others = [m for m in self.methods() if m not in ("DreamPRM", "oracle")]
        if "without aggregation loss" in self.study.variants:
            others.append("without aggregation loss")
        for method in others:
            lines.append(f"- DreamPRM - {method}: {percent(ours - self.pooled(method), '+')}")
        return lines

    def sizes(self) -> list[int]:
        """The N of the scaling figure."""
        return list(self.right["DreamPRM"][self.sets[0]]["oracle"])

    def scaling(self) -> list[str]:
        """Average over the sets by N."""
        sizes = self.sizes()
        lines = ["| method | " + " | ".join(f"N = {size}" for size in sizes) + " |"]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for method in ("majority", "weighted vote", "vanilla PRM", "DreamPRM", "oracle"):
            cells = [f"{self.pooled(method, size).mean():.1f}" for size in sizes]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        return lines

    def aggregations(self) -> list[str]:
        """DreamPRM's average by aggregation."""
        lines = ["| aggregation | average |", "|---|---|"]
        for name in AGGREGATION_NAMES:
            values = [self._largest("DreamPRM", n, name) for n in self.sets]
            lines.append(f"| {name} | {percent(100 * np.concatenate(values, axis=1))} |")
        return lines

    def _largest(self, variant: str, name: str, way: str) -> np.ndarray:
        by_size = self.right[variant][name][way]
        return by_size[max(by_size)]

    def weights(self) -> list[str]:
        """Learned weights, mean and standard deviation over seeds."""
        return weight_table(self.study.weights["DreamPRM"])

    def text(self, command: str) -> str:
        """RESULTS.md."""
        study = self.study
        published = ["| method | " + " | ".join(PUBLISHED_SETS) + " |", "|---" * 6 + "|"]
        published += [
            f"| {method} | " + " | ".join(map(str, values)) + " |"
            for method, values in PUBLISHED.items()
        ]
        parts = [
            "# Results of the study",
            origin(study, command),
            "Best of N by the mean of log-odds unless said otherwise; brackets are 95 % bootstrap "
            "intervals over seeds and questions. No checkpoint, subset or aggregation was chosen "
            "by test accuracy.",
            "## Main table",
            *("\n".join(self.main_table()), "\n".join(self.gaps())),
            "## The paper's, for comparison",
            *("\n".join(published), COMPARABLE[self.config]),
            "## More candidates",
            *("\n".join(self.scaling()), "![Accuracy by N](scaling.png)"),
            "## Aggregations (DreamPRM)",
            "\n".join(self.aggregations()),
            "## Learned weights",
            *("\n".join(self.weights()), "![Learned weights](weights_by_seed.png)"),
        ]
        return "\n\n".join(parts) + "\n"

    def draw(self, out: Path) -> None:
        """The figures that RESULTS.md shows."""
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        sizes = self.sizes()
        for method in ("oracle", "DreamPRM", "vanilla PRM", "weighted vote", "majority"):
            means = [self.pooled(method, size).mean() for size in sizes]
            axes.plot(sizes, means, marker="o", label=method)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("candidates N")
        axes.set_ylabel("right answers, %, average of the sets")
        axes.legend(frameon=False, fontsize=9)
        save_figure(figure, [axes], out / "scaling.png")

        runs = self.study.weights["DreamPRM"]
        domains = sorted(runs[0], key=lambda d: np.mean([w[d] for w in runs]))
        figure, axes = plt.subplots(figsize=(5.6, 0.32 * len(domains) + 1.2))
        axes.barh(domains, [np.mean([w[d] for w in runs]) for d in domains], color="#2a6f97")
        for weights in runs:
            axes.scatter([weights[d] for d in domains], domains, s=12, color="black", zorder=3)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel("learned weight: bar, mean; dots, seeds")
        save_figure(figure, [axes], out / "weights_by_seed.png")


def weight_table(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Weights by domain, mean and standard deviation over the runs of several seeds."""
    lines = ["| domain | weight |", "|---|---|"]
    for domain in sorted(runs[0], key=lambda d: -np.mean([w[d] for w in runs])):
        found = np.array([weights[domain] for weights in runs])
        spread = f" ± {found.std(ddof=1):.2f}" if len(found) > 1 else ""
        lines.append(f"| {domain} | {found.mean():.2f}{spread} |")
    return lines


def origin(study: Study, command: str) -> str:
    """What a study's numbers come from: command, date, versions, device, seeds, time."""
    hours = sum(study.seconds(v, s) for v in study.variants for s in study.seeds) / 3600
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}: Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, {study.setup.device}; "
        f"seeds {', '.join(map(str, study.seeds))}; {hours:.1f} hours of training."
    )


def percent(values: np.ndarray, sign: str = "") -> str:
    """Mean and 95 % interval of ``[seeds, questions]``; with ``sign`` "+", of a difference."""
    mean, _, low, high = interval(values)
    return f"{mean:{sign}.1f} ({low:{sign}.1f} … {high:{sign}.1f})"


def save_figure(figure: Figure, panels: Iterable[Axes], path: Path) -> None:
    """Write a figure without the frames of its panels, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
