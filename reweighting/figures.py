"""Figures of a training run.

python -m reweighting.figures --weights_path weights/demo --output_dir weights/demo/figures

draws, from what the run wrote: the final domain weights as horizontal bars (as figure 6 of the
paper), the weights over time, and the losses over time; of instance weights their distribution,
their spread within the domains, and a contact sheet of the records trusted most and least.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt

from . import terminal
from .checkpoints.finding import ARGUMENTS_FILE, DOMAIN_JSON, INSTANCE_PARQUET, METRICS_FILE, locate
from .checkpoints.weight_tables import read_named_weights
from .files import FileError, complete_lines, is_number, read_json, replacing
from .records.flags import MEGAPIXELS
from .records.images import allow_megapixels, load_pixels
from .records.reader import RecordReader, load_train
from .records.samples import TrainSample
from .terminal import Parser

# Domains and records are quoted as they are: a "$" in them opens no formula.
plt.rcParams["text.parse_math"] = False

BLUE, GREY = "#2a6f97", "#8d99ae"
# Lines of domains: told apart by readers who see no red or no green too, and each with a contrast
# of at least 4.5 to 1 on white, so that names can be written in them.
PALETTE = (
    "#0b5394", "#b84a00", "#00735c", "#8e2a7f", "#333333",
    "#6a5acd", "#8a6d00", "#c2185b", "#4f772d", "#007a9e",
)  # fmt: skip
STYLES = ("-", "--", "-.", ":")  # of the lines, once the palette begins again
SHOWN, LINES = 5, 16  # records a row of the contact sheet, lines of text under each
SMOOTHING = 0.1  # share of its neighbour's weight that a value has less in a smoothed loss
LABEL_POINTS = 10  # height of a line of names


def read_metrics(directory: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``; a damaged one is warned of and left out.

    Raises:
        FileError: the directory holds no metrics.
    """
    path = directory / METRICS_FILE
    lines = complete_lines(path)
    metrics = [line for line in lines if _is_metrics(line)]
    if len(metrics) < len(lines):
        terminal.warning(
            f"{path}: {len(lines) - len(metrics):,} of {len(lines):,} lines are left out: they "
            "hold no iteration with a loss, or a number of them is not finite"
        )
    if not metrics:
        raise FileError(f"{path}: no such file, or no metrics in it; is this a run's directory?")
    return metrics


def _is_metrics(line: Any) -> bool:
    """Whether the figures can use a line: what they show of it are finite numbers."""
    if not isinstance(line, dict):
        return False
    weights = line.get("weights")
    meta_loss = line.get("meta_loss")
    return (
        all(is_number(line.get(name)) for name in ("iteration", "loss"))
        and (meta_loss is None or is_number(meta_loss))
        and (weights is None or isinstance(weights, dict))
        and all(map(is_number, (weights or {}).values()))
    )


def draw_weights(weights: dict[str, float], path: Path) -> None:
    """Final domain weights as horizontal bars, the heaviest on top, around the start at 1."""
    ordered = sorted(weights.items(), key=lambda item: item[1])
    names, values = zip(*ordered, strict=True)
    figure, axes = plt.subplots(figsize=(6.4, 0.34 * len(names) + 1.2))
    bars = axes.barh(names, values, color=[BLUE if value >= 1 else GREY for value in values])
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    # On white, so that the line at 1 ends where a value is written.
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9, bbox=paper)
    axes.set_xlabel("learned domain weight (1 at the start)")
    axes.set_xlim(0, max(values) * 1.12)
    _save(figure, axes, path)


def draw_weight_history(metrics: list[dict], path: Path) -> None:
    """Every domain's weight over the lower steps, each line named at its end."""
    metrics = [line for line in metrics if line.get("weights")]
    final = metrics[-1]["weights"]
    names = sorted(final, key=final.get)
    height = max(4.2, 0.17 * len(names) + 1.2)
    figure, axes = plt.subplots(figsize=(7.2, height))
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    looks = {}
    for number, name in enumerate(final):  # a domain keeps its colour, wherever it ends
        style = STYLES[number // len(PALETTE) % len(STYLES)]
        looks[name] = PALETTE[number % len(PALETTE)], style
        known = [line for line in metrics if name in line["weights"]]
        steps = [line["iteration"] for line in known]
        values = [line["weights"][name] for line in known]
        axes.plot(steps, values, color=looks[name][0], linestyle=style, linewidth=1.5)
    axes.margins(x=0.01)
    axes.set_xlabel("lower steps")
    axes.set_ylabel("domain weight")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = (high - low) * LABEL_POINTS / (72 * 0.75 * height)  # axes take 3/4 of the figure
    places = spread([final[name] for name in names], gap)
    for name, place in zip(names, places, strict=True):
        # A thin line leads from the end of the curve to a name that had to give way.
        axes.annotate(
            name,
            (1.0, final[name]),
            xytext=(1.04, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            color=looks[name][0],
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": looks[name][0], "linewidth": 0.6},
            annotation_clip=False,
        )
    _save(figure, axes, path)


def spread(values: list[float], gap: float) -> list[float]:
    """The places nearest to the ascending ``values`` that are at least ``gap`` apart.

    Neighbours too close for their names form a block, evenly spaced around the mean of its values.
    """
    blocks: list[list[float]] = []

    def first(block: list[float]) -> float:
        return fmean(block) - gap * (len(block) - 1) / 2

    for value in values:
        blocks.append([value])
        while len(blocks) > 1:
            before, last = blocks[-2:]
            if first(before) + gap * len(before) <= first(last) + 1e-12:
                break
            blocks[-2:] = [before + last]
    return [first(block) + gap * index for block in blocks for index in range(len(block))]


def draw_instance_weights(table: dict[str, list], path: Path) -> None:
    """Left: how instance weights are distributed. Right: their spread within every domain."""
    by_domain: dict[str, list[float]] = {}
    for domain, weight in zip(table["domain"], table["weight"], strict=True):
        if weight is not None:
            by_domain.setdefault(domain, []).append(weight)
    order = sorted(by_domain, key=lambda domain: fmean(by_domain[domain]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 0.3 * len(order) + 2.4))
    left.hist([weight for weights in by_domain.values() for weight in weights], 40, color=BLUE)
    left.set_xlabel("instance weight")
    left.set_ylabel("records")
    left.spines[["top", "right"]].set_visible(False)
    right.boxplot([by_domain[domain] for domain in order], orientation="horizontal", sym="")
    right.set_yticks(range(1, len(order) + 1), order)
    right.set_xlabel("instance weight: median, quartiles, range")
    _save(figure, right, path)


def draw_contact_sheet(table: dict[str, list], samples: dict[int, TrainSample], path: Path) -> None:
    """The records with the largest and the smallest weights: image, question and steps.

    Args:
        table: columns of ``instance_weights.parquet``.
        samples: by record number.
    """
    rows = [row for row, weight in enumerate(table["weight"]) if weight is not None]
    rows.sort(key=lambda row: -table["weight"][row])
    count = min(SHOWN, len(rows) // 2)
    figure, panels = plt.subplots(2, count, figsize=(2.9 * count, 8.2), squeeze=False)
    for title, chosen, row_of_panels in zip(
        ("trusted most", "trusted least"), (rows[:count], rows[::-1][:count]), panels, strict=True
    ):
        for row, axes in zip(chosen, row_of_panels, strict=True):
            sample = samples[table["record"][row]]
            axes.imshow(load_pixels(sample.image))
            axes.axis("off")
            axes.set_title(
                f"{title}: {table['weight'][row]:.2f}\nrecord {sample.record}, {sample.domain}\n"
                f"accuracy {fmean(sample.accuracies):.2f}, {table['visits'][row]} visits",
                fontsize=8,
            )
            text = "\n".join(
                part for line in sample.text.splitlines() for part in textwrap.wrap(line, 46)
            )
            axes.text(0, -0.06, "\n".join(text.splitlines()[:LINES]), fontsize=5.5, va="top",
                      transform=axes.transAxes)  # fmt: skip
    figure.subplots_adjust(hspace=1.1, top=0.9, bottom=0.2)
    _write(figure, path)


def draw_instances(directory: Path, output: Path) -> list[Path]:
    """Both figures of a run's instance weights; the sheet only where its data is still there."""
    from pyarrow import parquet

    table = parquet.read_table(directory / INSTANCE_PARQUET).to_pydict()
    drawn = [output / "instance_weights.png"]
    draw_instance_weights(table, drawn[0])
    arguments = read_json(directory / ARGUMENTS_FILE)
    if Path(arguments["train_json_file"]).is_file():
        allow_megapixels(arguments.get("max_image_megapixels", MEGAPIXELS))
        reader = RecordReader(
            arguments["train_json_file"],
            arguments["image_root"],
            arguments["allow_external_images"],
            arguments.get("allow_image_urls", False),
        )
        samples = {sample.record: sample for sample in load_train(reader, progress=False)}
        drawn.append(output / "contact_sheet.png")
        draw_contact_sheet(table, samples, drawn[1])
    return drawn


def draw_losses(metrics: list[dict], path: Path) -> None:
    """Lower and meta loss over the lower steps, with a smooth curve over the noise."""
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
        axes.plot(steps, smoothed(values), color=BLUE, linewidth=1.8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("lower steps")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, panels[0][0], path)


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over the neighbours of every value on both sides, whose weights fall geometrically.

    Centred, so that a curve lags behind nothing, and no value at an end counts more than others.
    """

    def one_way(values: Sequence[float]) -> tuple[list[float], list[float]]:
        total = weight = 0.0
        totals, weights = [], []
        for value in values:
            total = (1 - SMOOTHING) * total + value
            weight = (1 - SMOOTHING) * weight + 1
            totals.append(total)
            weights.append(weight)
        return totals, weights

    before, weights_before = one_way(values)
    after, weights_after = (found[::-1] for found in one_way(values[::-1]))
    return [
        (b + a - value) / (wb + wa - 1)  # the value itself is in both
        for value, b, a, wb, wa in zip(
            values, before, after, weights_before, weights_after, strict=True
        )
    ]


def _save(figure, axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _write(figure, path)


def _write(figure, path: Path) -> None:
    with replacing(path, "wb") as file:
        # Without a date in the file, the same run draws the same bytes.
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)


def draw_all(directory: Path, output: Path) -> list[Path]:
    """Draw every figure the run has data for, and return their paths.

    Raises:
        FileError: the run's files are damaged or missing, or ``output`` cannot be written.
    """
    metrics = read_metrics(directory)
    drawn = [output / "losses.png"]
    draw_losses(metrics, drawn[0])
    directory = locate(directory)  # a copy may have lost the names at the top
    if (directory / DOMAIN_JSON).exists():
        weights = read_named_weights(directory / DOMAIN_JSON)
        draw_weights(weights, output / "domain_weights.png")
        drawn.append(output / "domain_weights.png")
    if metrics[-1].get("weights"):
        draw_weight_history(metrics, output / "weights_over_time.png")
        drawn.append(output / "weights_over_time.png")
    if (directory / INSTANCE_PARQUET).exists():
        drawn += draw_instances(directory, output)
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(
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
    except FileError as error:
        terminal.error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
