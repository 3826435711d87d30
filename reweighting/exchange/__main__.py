"""Training records from published sets; candidates from, and choices to, other evaluation tools.

On the way back the chosen response is the prediction, so that the tool's own scorer can be applied
to it. What a benchmark says about a question (its own index, options, category, document) is kept
in the field ``benchmark`` of candidates records and of a selection's ``samples.jsonl``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..system import terminal
from ..system.files import FileError, write_records
from ..system.terminal import Parser
from .choices import read_choices
from .lm_eval import from_lm_eval, to_lm_eval
from .notes import count
from .published.command import LAYOUTS, Conversion, add_commands
from .vlmevalkit import from_vlmevalkit, to_vlmevalkit

EXAMPLES = """examples:
  python -m reweighting.exchange from-vlmevalkit --benchmark MathVista.tsv \\
      --predictions run1.xlsx run2.xlsx --image_dir images --output candidates.json
  python -m reweighting.exchange from-lm-eval --samples samples_task.jsonl \\
      --image_field image --output candidates.json
  python -m reweighting.exchange to-vlmevalkit --samples selected/x/samples.jsonl --output x.tsv
  python -m reweighting.exchange to-lm-eval --samples selected/x/samples.jsonl --output x.jsonl
  python -m reweighting.exchange from-visualprm-raw --source annotations --image_dir images \\
      --per_domain 1000 --held_out 500 --output visualprm.jsonl
"""


def build_parser() -> argparse.ArgumentParser:
    """All directions and their flags."""
    layout: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "epilog": EXAMPLES,
    }
    parser = Parser(
        prog="python -m reweighting.exchange",
        description="Training records from published sets; candidates from, and choices to, "
        "VLMEvalKit and lm-eval.",
        **layout,
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    add = directions.add_parser("from-vlmevalkit", **layout).add_argument
    add("--benchmark", type=Path, required=True, help="the benchmark's TSV")
    add("--predictions", type=Path, nargs="+", required=True, help="xlsx or TSV, one per run")
    add("--image_dir", type=Path, required=True, help="where images in base64 are written")
    add("--skip_missing", action="store_true", help="leave out questions that a run lacks")
    add("--output", type=Path, required=True, help="candidates file to write")
    add = directions.add_parser("from-lm-eval", **layout).add_argument
    add("--samples", type=Path, required=True, help="logged samples")
    add("--question_field", default="question", help="of the document (default: question)")
    add("--image_field", default="image_path", help="of the document (default: image_path)")
    add("--output", type=Path, required=True, help="candidates file to write")
    for name in ("to-vlmevalkit", "to-lm-eval"):
        add = directions.add_parser(name, **layout).add_argument
        add("--samples", type=Path, required=True, help="samples.jsonl of a selection")
        add("--aggregation", default="mean_log_odds", help="whose choice (default: mean_log_odds)")
        add("--output", type=Path, required=True, help="file to write")
    add_commands(directions, layout)
    return parser


def write_candidates(arguments: argparse.Namespace) -> str:
    """Convert results of another tool to candidates records; returns what was written."""
    if arguments.direction == "from-vlmevalkit":
        source = arguments.benchmark
        records, notes = from_vlmevalkit(
            source, arguments.predictions, arguments.image_dir, arguments.skip_missing
        )
    else:
        source = arguments.samples
        records, notes = from_lm_eval(source, arguments.question_field, arguments.image_field)
    for note in notes:
        terminal.warning(note)
    if not records:
        raise FileError(f"{source}: no question is left, nothing is written")
    write_records(arguments.output, records)
    counts = {len(record["candidates"]) for record in records}
    number = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    return f"{count(len(records), 'question')} with {number} candidates each"


def write_predictions(arguments: argparse.Namespace) -> str:
    """Convert choices of a selection to predictions; returns what was written."""
    lines = read_choices(arguments.samples, arguments.aggregation)
    write = to_vlmevalkit if arguments.direction == "to-vlmevalkit" else to_lm_eval
    write(lines, arguments.output)
    return f"{count(len(lines), 'prediction')}, chosen by {arguments.aggregation},"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.direction in LAYOUTS:
            print(Conversion(arguments).run())
            return 0
        convert = write_candidates if arguments.direction.startswith("from") else write_predictions
        written = convert(arguments)
    except FileError as error:
        terminal.error(error)
        return 2
    print(f"{written} written to {terminal.printable(arguments.output)}")
    return 0


if __name__ == "__main__":
    terminal.exit_with(main)
