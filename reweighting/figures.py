"""Figures of a training run.

python -m reweighting.figures --weights_path weights/demo --output_dir figs

draws, from the run's ``domain_weights.json`` and ``metrics.jsonl``: the final domain weights as
horizontal bars (as figure 6 of the paper), the weights over time, and the losses over time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt

from .checkpoints import DOMAIN_JSON, METRICS_FILE

BLUE, GREY = "#2a6f97", "#8d99ae"
SMOOTHING = 0.1  # share of the newest value in the running mean of the losses


def read_metrics(directory: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``.

    Raises:
        FileNotFoundError: the directory holds no metrics.
    """
    lines = (directory / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def draw_weights(weights: dict[str, float], path: Path) -> None:
    """Final domain weights as horizontal bars, the heaviest on top, around the start at 1."""
    ordered = sorted(weights.items(), key=lambda item: item[1])
    names, values = zip(*ordered, strict=True)
    figure, axes = plt.subplots(figsize=(6.4, 0.34 * len(names) + 1.2))
    bars = axes.barh(names, values, color=[BLUE if value >= 1 else GREY for value in values])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("learned domain weight (1 at the start)")
    axes.set_xlim(0, max(values) * 1.12)
    _save(figure, axes, path)


def draw_weight_history(metrics: list[dict], path: Path) -> None:
    """Every domain's weight over the lower steps, each line named at its end."""
    steps = [line["iteration"] for line in metrics]
    names = list(metrics[-1]["weights"])
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    final = sorted(names, key=lambda name: metrics[-1]["weights"][name])
    low = metrics[-1]["weights"][final[0]]
    span = metrics[-1]["weights"][final[-1]] - low
    colours = plt.get_cmap("viridis")
    for rank, name in enumerate(final):
        colour = colours(rank / max(1, len(final) - 1))
        axes.plot(steps, [line["weights"][name] for line in metrics], color=colour, linewidth=1.5)
        # The names are spread evenly, so that equal weights do not print over each other.
        height = low + span * rank / max(1, len(final) - 1)
        axes.annotate(
            name,
            (1.01, height),
            xycoords=("axes fraction", "data"),
            color=colour,
            fontsize=8,
            va="center",
        )
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("lower steps")
    axes.set_ylabel("domain weight")
    _save(figure, axes, path)


def draw_losses(metrics: list[dict], path: Path) -> None:
    """Lower and meta loss over the lower steps, with a running mean over the noise."""
    curves = {"train loss": "loss", "meta loss": "meta_loss"}
    present = {
        title: [(line["iteration"], line[key]) for line in metrics if line.get(key) is not None]
        for title, key in curves.items()
    }
    present = {title: points for title, points in present.items() if points}
    figure, panels = plt.subplots(1, len(present), figsize=(3.6 * len(present), 2.8), squeeze=False)
    for axes, (title, points) in zip(panels[0], present.items(), strict=True):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=GREY, linewidth=0.7, alpha=0.7)
        axes.plot(steps, _running_mean(values), color=BLUE, linewidth=1.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("lower steps")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, panels[0][0], path)


def _running_mean(values: tuple[float, ...]) -> list[float]:
    means = [values[0]]
    for value in values[1:]:
        means.append((1 - SMOOTHING) * means[-1] + SMOOTHING * value)
    return means


def _save(figure, axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    # Without a date in the file, the same run draws the same bytes.
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def draw_all(directory: Path, output: Path) -> list[Path]:
    """Draw every figure the run has data for, and return their paths."""
    output.mkdir(parents=True, exist_ok=True)
    metrics = read_metrics(directory)
    drawn = [output / "losses.png"]
    draw_losses(metrics, drawn[0])
    if (directory / DOMAIN_JSON).exists():
        weights = json.loads((directory / DOMAIN_JSON).read_text(encoding="utf-8"))
        draw_weights(weights, output / "domain_weights.png")
        draw_weight_history(metrics, output / "weights_over_time.png")
        drawn = [output / "domain_weights.png", output / "weights_over_time.png", *drawn]
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m reweighting.figures", description="Draw the figures of a training run."
    )
    parser.add_argument("--weights_path", required=True, type=Path, help="the run's directory")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("figs"), help="where to (default: figs)"
    )
    arguments = parser.parse_args(argv)
    try:
        for path in draw_all(arguments.weights_path, arguments.output_dir):
            print(path)
    except FileNotFoundError as error:
        print(f"error: {error.filename}: no such file; is this a run's directory?", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
