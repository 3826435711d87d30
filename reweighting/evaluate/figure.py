"""The picture of an evaluation: how well scores are calibrated, and the main measure by source."""

from __future__ import annotations

from pathlib import Path

from ..figures.drawing import BLUE, GREY, plt, save
from ..system.terminal import printable
from .layouts import ALL
from .results import MAX_NAME


def draw(results: dict, main: str, path: Path) -> None:
    """Left: the reliability diagram, all steps. Right: the measure ``main`` by source, the model's
    with its interval, beside random scores.

    Args:
        results: as :func:`~.results.evaluate` makes them.
    """
    model, random = results["rows"]["model"], results["rows"]["random"]
    places = [place for place in [*results["sizes"]] if place != ALL] + [ALL]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, max(3.4, 0.34 * len(places) + 1.2)))
    left.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    bins = results["reliability"]
    most = max((row["steps"] for row in bins), default=1)
    scores, shares = ([row[name] for row in bins] for name in ("mean_score", "right"))
    left.plot(scores, shares, color=BLUE, linewidth=1.2)
    # The area of a point says how many steps it stands for.
    left.scatter(scores, shares, [8 + 120 * row["steps"] / most for row in bins], color=BLUE)
    left.set_xlabel("score V of a step (mean of its bin)")
    left.set_ylabel("share of right steps")
    left.set_xlim(-0.02, 1.02)
    left.set_ylim(-0.02, 1.02)
    left.spines[["top", "right"]].set_visible(False)
    for shift, name, by_place, colour in (
        (0.2, "model", model, BLUE),
        (-0.2, "random", random, GREY),
    ):
        known = [(n, by_place[p][main]) for n, p in enumerate(reversed(places))]
        known = [(n, found) for n, found in known if found["value"] is not None]
        values = [found["value"] for _, found in known]
        ends = [[abs(f["value"] - f[end]) for _, f in known] for end in ("low", "high")]
        heights = [n + shift for n, _ in known]
        right.barh(heights, values, 0.38, xerr=ends, color=colour, label=name, ecolor="black")
    right.set_yticks(range(len(places)), [printable(p, MAX_NAME) for p in reversed(places)])
    right.set_xlim(0, 1)
    right.set_xlabel(main.replace("_", " ").replace("f1", "F1"))
    right.legend(frameon=False, loc="lower right", fontsize=8)
    save(figure, right, path)
