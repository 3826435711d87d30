"""Figures of a training run.

    python -m reweighting.figures --weights_path weights/demo --output_dir weights/demo/figures

draws, from what the run wrote: the final domain weights as horizontal bars (as in figure 6 of the
paper), the weights over time, and the losses over time. For instance weights it draws their
distribution, their spread within the domains, and a contact sheet of the records with the largest
and the smallest weights.
"""

from __future__ import annotations

from pathlib import Path

from ..system import terminal
from ..system.checkpoints.finding import DOMAIN_JSON, INSTANCE_PARQUET, locate
from ..system.files import FileError
from ..system.terminal import Parser
from .reading import read_metrics, read_train_samples


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
    if samples := read_train_samples(directory):
        drawn.append(output / "contact_sheet.png")
        draw_contact_sheet(table, samples, drawn[1])
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
