"""Gains over vanilla in several worlds of sources: by misled questions, by the meta set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..selection.best_of_n import interval
from ..system.files import FileError, read_json
from . import sources
from .sources import BEST, ROWS, VANILLA, World
from .sources_tables import SourcesResults
from .study import SETTINGS_FILE
from .tables import percent, plt, save_figure


def read_kept(folder: Path) -> tuple[World, SourcesResults]:
    """The world of a directory of kept outcomes, and its results, of seeds 1, 2, … without a gap.

    Raises:
        FileError: it holds no settings, or no outcome of vanilla.
    """
    settings = read_json(folder / SETTINGS_FILE)
    world = World(**{name: settings[name] for name in asdict(World())})
    outcomes: dict[str, list[dict]] = {}
    for row in ROWS:
        while (file := folder / sources.file_name(row, len(outcomes.get(row, [])) + 1)).exists():
            outcomes.setdefault(row, []).extend(read_json(file))
    if VANILLA not in outcomes:
        raise FileError(f"{folder}: holds no {sources.file_name(VANILLA, 1)}")
    names = [name for name in outcomes[VANILLA][0]["right"][BEST] if name != sources.VALIDATION]
    return world, SourcesResults(outcomes, [], names)


def table(worlds: Sequence[tuple[World, SourcesResults]]) -> list[str]:
    """A line for every world, a column for every row: points above vanilla, best checkpoints."""
    rows = [row for row in ROWS if row != VANILLA and any(row in r.outcomes for _, r in worlds)]
    heads = ["misled", "meta types", "meta chains", "pairs", "vanilla", *rows]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for world, results in worlds:
        cells = [f"{100 * world.misled:.0f} %" + ", alike" * world.same_quality]
        cells += [str(world.meta_types), str(world.meta_chains)]
        vanilla = results.average(VANILLA, BEST)
        cells += [str(len(vanilla)), f"{vanilla.mean():.1f}"]
        cells += [
            percent(results.gain(row, BEST), "+") if row in results.outcomes else "" for row in rows
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(worlds: Sequence[tuple[World, SourcesResults]], out: Path) -> None:
    """Gains by the share of misled labels, and by the meta set, where several are there."""
    whole = World()
    by_misled = [w for w in worlds if w[0] == World(misled=w[0].misled)]
    by_meta = [w for w in worlds if w[0].misled == whole.misled and not w[0].same_quality]
    for name, label, chosen, at in (
        ("gain_by_misled", "misled questions, %", by_misled, lambda w: f"{100 * w.misled:.0f}"),
        (
            "gain_by_meta",
            "meta set: question types × chains",
            by_meta,
            lambda w: f"{w.meta_types} × {w.meta_chains}",
        ),
    ):
        if len(chosen) < 2:
            continue
        chosen = sorted(chosen, key=lambda w: (w[0].misled, w[0].meta_types, w[0].meta_chains))
        figure, axes = plt.subplots(figsize=(6.4, 4.2))
        for number, row in enumerate(name for name in ROWS if name != VANILLA):
            found = [
                (place + 0.03 * number, *interval(results.gain(row, BEST)))
                for place, (_, results) in enumerate(chosen)
                if row in results.outcomes
            ]
            if found:
                x, mean, _, low, high = zip(*found, strict=True)
                below = [m - value for m, value in zip(mean, low, strict=True)]
                above = [value - m for m, value in zip(mean, high, strict=True)]
                axes.errorbar(x, mean, (below, above), marker="o", markersize=4, label=row)
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(chosen)), [at(world) for world, _ in chosen])
        axes.set_xlabel(label)
        axes.set_ylabel("points above vanilla, 95 % interval")
        axes.legend(frameon=False, fontsize=8)
        save_figure(figure, [axes], out / f"{name}.png")
