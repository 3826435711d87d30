"""What the page shows of a training run: figures, domains, records trusted most and least."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..figures.drawing import (
    draw_instance_weights,
    draw_losses,
    draw_weight_history,
    draw_weights_against,
)
from ..figures.reading import read_metrics, read_train_samples
from ..records.images import image_problem
from ..records.tables import TrainRecords
from ..system.checkpoints.finding import AVERAGE_JSON, DOMAIN_JSON, INSTANCE_PARQUET, locate
from ..system.checkpoints.weight_tables import read_named_weights
from .page import Pictures, png_url, shown

RECORDS = 12  # of those trusted most, and of those trusted least
DIGITS = 4


def course_of(run: Path, pictures: Pictures) -> dict[str, Any]:
    """Figures, a row for each domain, and records where they have weights of their own.

    Args:
        run: the ``--weights_path``.
        pictures: get the images of the records.

    Raises:
        FileError: the run's files are damaged or missing.
    """
    metrics = read_metrics(run)
    folder = locate(run)
    samples = read_train_samples(folder)
    domains = _domains(folder, metrics[-1].get("weights") or {}, samples)
    figures = [_figure("Losses", draw_losses, metrics)]
    if metrics[-1].get("weights"):
        figures.append(_figure("Weights of the domains over time", draw_weight_history, metrics))
    if any(row["weight"] is not None for row in domains) and samples:
        title = "Weight against mean label and number of records"
        figures.append(_figure(title, draw_weights_against, domains))
    found: dict[str, Any] = {
        "name": shown(run.resolve().name),
        "last": {name: metrics[-1].get(name) for name in ("iteration", "loss", "meta_loss")},
        "domains": [{**row, "name": shown(row["name"])} for row in domains],
        "records": None,
        "figures": figures,
    }
    if (folder / INSTANCE_PARQUET).is_file():
        from pyarrow import parquet

        table = parquet.read_table(folder / INSTANCE_PARQUET).to_pydict()
        figures.append(_figure("Weights of the records", draw_instance_weights, table))
        found["records"] = _most_and_least(table, samples, pictures)
    return found


def _figure(title: str, draw: Callable[[Any, Path], None], values: Any) -> dict[str, str]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(values, path)
        return {"title": title, "url": png_url(path.read_bytes())}


def _domains(folder: Path, logged: dict[str, float], samples: TrainRecords) -> list[dict[str, Any]]:
    """Every domain's weight, mean label and number of records, the largest weight first.

    What is not known is None. Where records have weights of their own, a domain's weight is their
    mean, as ``logged`` at the last step.
    """
    last, average = (
        read_named_weights(folder / name) if (folder / name).is_file() else {}
        for name in (DOMAIN_JSON, AVERAGE_JSON)
    )
    last = last or logged
    counts, labels = samples.named("domain"), _mean_labels(samples)
    rows = [
        {
            "name": name,
            "weight": last.get(name),
            "average": average.get(name),
            "mean_label": labels.get(name),
            "records": counts.get(name),
        }
        for name in dict.fromkeys([*last, *counts])
    ]
    return sorted(rows, key=lambda row: -(row["weight"] or 0.0))


def _mean_labels(samples: TrainRecords) -> dict[str, float]:
    """The mean accuracy of the records of every domain."""
    numbers, labels = samples.column("domain"), samples.mean_labels()
    return {
        samples.table.names["domain"][number]: round(
            float(labels[numbers == number].mean()), DIGITS
        )
        for number in np.unique(numbers)
    }


def _most_and_least(
    table: dict[str, list], samples: TrainRecords, pictures: Pictures
) -> dict[str, list[dict[str, Any]]]:
    """The records with the largest and with the smallest weights.

    Args:
        table: columns of ``instance_weights.parquet``.
    """
    rows = [row for row, weight in enumerate(table["weight"]) if weight is not None]
    rows.sort(key=lambda row: -table["weight"][row])
    count = min(RECORDS, len(rows) // 2)

    def about(row: int) -> dict[str, Any]:
        try:
            sample = samples.numbered(table["record"][row])
        except KeyError:  # it is no longer there, or no longer usable
            sample = None
        images = [image for image in sample.images if not image_problem(image)] if sample else []
        return {
            "record": table["record"][row],
            "weight": round(table["weight"][row], DIGITS),
            "visits": table["visits"][row],
            "domain": shown(table["domain"][row]),
            "label": round(fmean(sample.accuracies), DIGITS) if sample else None,
            "text": shown(sample.text) if sample else "",
            "images": [pictures.add(image) for image in images],
        }

    return {
        "most": [about(row) for row in rows[:count]],
        "least": [about(row) for row in rows[::-1][:count]],
    }
