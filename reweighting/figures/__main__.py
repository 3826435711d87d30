"""Figures of a training run.

    python -m reweighting.figures --weights_path weights/demo --output_dir weights/demo/figures

draws, from what the run wrote: the final domain weights as horizontal bars (as in figure 6 of the
paper), the weights over time, and the losses over time. For instance weights it draws their
distribution, their spread within the domains, and a contact sheet of the records with the largest
and the smallest weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..records.flags import MEGAPIXELS
from ..records.images import allow_megapixels
from ..records.reader import RecordReader, load_train
from ..system import terminal
from ..system.checkpoints.finding import (
    ARGUMENTS_FILE,
    DOMAIN_JSON,
    INSTANCE_PARQUET,
    METRICS_FILE,
    locate,
)
from ..system.files import FileError, complete_lines, is_number, read_json
from ..system.terminal import Parser


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


def draw_all(directory: Path, output: Path) -> list[Path]:
    """Draw every figure that the run has data for, and return their paths.

    Raises:
        FileError: the run's files are damaged or missing, or ``output`` cannot be written.
    """
    metrics = read_metrics(directory)
    from ..system.checkpoints.weight_tables import (
        read_named_weights,  # imports torch, which takes seconds
    )
    from .drawing import draw_losses, draw_weight_history, draw_weights

    drawn = [output / "losses.png"]
    draw_losses(metrics, drawn[0])
    directory = locate(directory)  # a copy may have lost the links at the top
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


def draw_instances(directory: Path, output: Path) -> list[Path]:
    """Both figures of a run's instance weights; the contact sheet needs the training data."""
    from pyarrow import parquet

    from .drawing import draw_contact_sheet, draw_instance_weights

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
        drawn.append(output / "contact_sheet.png")
        draw_contact_sheet(table, load_train(reader, progress=False), drawn[1])
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
    terminal.exit_with(main)
