"""What a run has written, read for figures and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..records.flags import MEGAPIXELS
from ..records.images import allow_megapixels
from ..records.reader import RecordReader, load_train
from ..records.tables import TrainRecords
from ..system import terminal
from ..system.checkpoints.finding import ARGUMENTS_FILE, METRICS_FILE
from ..system.files import FileError, complete_lines, is_number, read_json


def read_metrics(directory: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``. Damaged ones are left out with a warning.

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
    """Whether everything that the figures show of a line is a finite number."""
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


def read_train_samples(checkpoint: Path) -> TrainRecords:
    """The records of the file that a run was trained on; none if it is no longer there.

    Args:
        checkpoint: the folder that holds the run's arguments.

    Raises:
        FileError: the arguments or the records cannot be read.
    """
    known = checkpoint / ARGUMENTS_FILE
    arguments = read_json(known) if known.is_file() else {}
    file = arguments.get("train_json_file")
    if not file or not Path(file).is_file():
        return TrainRecords.none()
    allow_megapixels(arguments.get("max_image_megapixels", MEGAPIXELS))
    reader = RecordReader(
        file,
        arguments.get("image_root", "."),
        arguments.get("allow_external_images", False),
        arguments.get("allow_image_urls", False),
        step_pattern=arguments.get("step_pattern"),
    )
    return load_train(reader)
