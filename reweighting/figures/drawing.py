"""The figures as PNG files, from numbers and records already read."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt

from ..records.images import load_pixels
from ..records.tables import TrainRecords
from ..system.files import replacing

# Names of domains and texts of records are shown as they are: "$" does not begin a formula.
plt.rcParams["text.parse_math"] = False

BLUE, GREY = "#2a6f97", "#8d99ae"
# Colours of domains: distinguishable for colour-blind readers, and with a contrast of at least
# 4.5 to 1 on white, so that names can be written in them.
PALETTE = (
    "#0b5394", "#b84a00", "#00735c", "#8e2a7f", "#333333",
    "#6a5acd", "#8a6d00", "#c2185b", "#4f772d", "#007a9e",
)  # fmt: skip
STYLES = ("-", "--", "-.", ":")  # the next one each time the palette is used up
SHOWN, LINES = 5, 16  # records per row of the contact sheet, lines of text under each
SMOOTHING = 0.1  # how much less weight each further neighbour has in a smoothed loss
LABEL_POINTS = 10  # height of a domain's name in points


def draw_weights(weights: dict[str, float], path: Path) -> None:
    """Final domain weights as horizontal bars, the largest on top, and a line at the start, 1."""
    ordered = sorted(weights.items(), key=lambda item: item[1])
    names, values = zip(*ordered, strict=True)
    figure, axes = plt.subplots(figsize=(6.4, 0.34 * len(names) + 1.2))
    bars = axes.barh(names, values, color=[BLUE if value >= 1 else GREY for value in values])
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    # A white background, so that the line at 1 does not cross a number.
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9, bbox=paper)
    axes.set_xlabel("learned domain weight (1 at the start)")
    axes.set_xlim(0, max(values) * 1.12)
    save(figure, axes, path)


def draw_weight_history(metrics: list[dict], path: Path) -> None:
    """Every domain's weight over the lower steps, with the domain's name at the end of its line."""
    metrics = [line for line in metrics if line.get("weights")]
    final = metrics[-1]["weights"]
    names = sorted(final, key=final.get)
    height = max(4.2, 0.17 * len(names) + 1.2)
    figure, axes = plt.subplots(figsize=(7.2, height))
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    looks = {}
    for number, name in enumerate(final):  # a domain's colour does not depend on its weight
        style = STYLES[number // len(PALETTE) % len(STYLES)]
        looks[name] = PALETTE[number % len(PALETTE)], style
        known = [line for line in metrics if name in line["weights"]]
        steps = [line["iteration"] for line in known]
        values = [line["weights"][name] for line in known]
        axes.plot(steps, values, color=looks[name][0], linestyle=style, linewidth=1.5)
    axes.margins(x=0.01)
    axes.set_xlabel("lower steps")
    axes.set_ylabel("domain weight")
    ends = [(1.0, final[name]) for name in names]
    name_points(axes, names, ends, [looks[name][0] for name in names], "axes fraction")
    save(figure, axes, path)


def draw_weights_against(domains: list[dict], path: Path) -> None:
    """Every domain's weight against its mean label (left) and its number of records (right).

    Args:
        domains: each with ``name``, ``weight``, ``mean_label`` and ``records``; those of which one
            is None are left out.
    """
    known = [row for row in domains if None not in (row["weight"], row["mean_label"])]
    known.sort(key=lambda row: row["weight"])
    height = max(3.2, 0.2 * len(known) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, height), sharey=True)
    weights = [row["weight"] for row in known]
    for axes, name in ((left, "mean_label"), (right, "records")):
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.scatter([row[name] for row in known], weights, 18, color=BLUE)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xlabel("mean train label of the domain")
    left.set_ylabel("learned weight")
    right.set_xlabel("train records of the domain")
    points = [(row["records"], row["weight"]) for row in known]
    name_points(right, [row["name"] for row in known], points)
    save(figure, left, path)


def name_points(
    axes: plt.Axes,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    colours: Sequence[str] = (),
    x_in: str = "data",
) -> None:
    """Write names to the right of the axes, each level with its point if there is room.

    Thin lines lead from the points to the names.

    Args:
        points: x and y, by rising y.
        colours: of the names; those of the palette in turn if not given.
        x_in: coordinates of x, as matplotlib names them.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    height = axes.bbox.height * 72 / axes.figure.dpi  # in points
    places = spread([y for _, y in points], (high - low) * LABEL_POINTS / height)
    for number, (name, point, place) in enumerate(zip(names, points, places, strict=True)):
        colour = colours[number] if colours else PALETTE[number % len(PALETTE)]
        axes.annotate(
            name,
            point,
            xytext=(1.04, place),
            xycoords=(x_in, "data"),
            textcoords=("axes fraction", "data"),
            color=colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5},
            annotation_clip=False,
        )


def spread(values: list[float], gap: float) -> list[float]:
    """The places nearest to the ascending ``values`` that are at least ``gap`` apart.

    Values that are too close form a block, evenly spaced around their mean.
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
    """Left: the distribution of the instance weights. Right: their spread within every domain.

    Args:
        table: columns of ``instance_weights.parquet``.
    """
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
    save(figure, right, path)


def draw_contact_sheet(table: dict[str, list], samples: TrainRecords, path: Path) -> None:
    """The records with the largest and the smallest weights: first image, question and steps.

    Args:
        table: columns of ``instance_weights.parquet``.
        samples: the train records of the run.
    """
    rows = [row for row, weight in enumerate(table["weight"]) if weight is not None]
    rows.sort(key=lambda row: -table["weight"][row])
    count = min(SHOWN, len(rows) // 2)
    figure, panels = plt.subplots(2, count, figsize=(2.9 * count, 8.2), squeeze=False)
    for title, chosen, row_of_panels in zip(
        ("trusted most", "trusted least"), (rows[:count], rows[::-1][:count]), panels, strict=True
    ):
        for row, axes in zip(chosen, row_of_panels, strict=True):
            sample = samples.numbered(table["record"][row])
            if sample.images:
                axes.imshow(load_pixels(sample.images[0]))
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


def draw_losses(metrics: list[dict], path: Path) -> None:
    """Train and meta loss over the lower steps, each with a smoothed curve."""
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
    save(figure, panels[0][0], path)


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over the neighbours of every value on both sides, with weights that fall geometrically.

    They are centred, so the curve does not lag behind, and no value at an end counts more than the
    others.
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


def save(figure, axes, path: Path) -> None:
    """Write ``figure`` to ``path``, without the upper and the right line around ``axes``."""
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _write(figure, path)


def _write(figure, path: Path) -> None:
    with replacing(path, "wb") as file:
        # Without the version of matplotlib in the file, the same run draws the same bytes.
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
