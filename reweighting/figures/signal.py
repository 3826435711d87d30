"""The figure of ``python -m reweighting.training.signal``."""

from __future__ import annotations

from pathlib import Path

from .drawing import BLUE, name_points, plt, save


def draw_signal(moment: dict, path: Path) -> None:
    """A panel for each loss: every domain's pull with its standard error against its mean label.

    Args:
        moment: an item of ``moments`` in ``signal.json``.
    """
    domains, losses = moment["domains"], list(moment["losses"])
    height = max(3.6, 0.2 * len(domains) + 1.4)
    figure, panels = plt.subplots(1, len(losses), figsize=(5.2 * len(losses), height),
                                  squeeze=False)  # fmt: skip
    for axes, loss in zip(panels[0], losses, strict=True):
        ordered = sorted(domains, key=lambda domain: domain[loss]["pull"])
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        pulls = [domain[loss]["pull"] for domain in ordered]
        errors = [domain[loss]["pull_error"] for domain in ordered]
        labels = [domain["mean_label"] for domain in ordered]
        axes.errorbar(labels, pulls, errors, fmt="o", color=BLUE, markersize=4, capsize=2)
        name_points(axes, [d["domain"] for d in ordered], list(zip(labels, pulls, strict=True)))
        explained = moment["losses"][loss]["r2_of_mean_label"]
        share = "" if explained is None else f", R² of the mean label {explained:.2f}"
        axes.set_title(f"{loss} loss{share}", fontsize=10)
        axes.set_xlabel("mean train label of the domain")
        axes.set_ylabel("pull on the domain's weight")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, panels[0][0], path)
