"""Best-of-N: score every step prefix of every candidate chain and pick one chain per question.

    python -m reweighting.selection --weights_path weights/dreamprm \
        --candidates data/test_mix.json --image_root data --output_dir selected

All candidates of a question share image and question, so they go through one prefix tree (see
:mod:`reweighting.reward_model.prefix_tree`). Results are written batch by batch: after a kill, the
same command continues where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..records.chains import describe_candidates
from ..records.reader import RecordReader, load_candidates
from ..records.samples import CandidatesSample
from ..system import terminal
from ..system.files import DirectoryLock, write_json
from ..system.terminal import Parser, printable, quiet
from .command import add_scoring_flags, check_scoring_flags, choose_scorer, exit_code
from .identity import SAMPLES_FILE, claim, identity

if TYPE_CHECKING:
    from .scorers import Scorer

RESULTS_FILE = "results.json"
# Those of reward_model.aggregation, which takes seconds to import: --help needs only their names.
AGGREGATION_NAMES = ("mean_log_odds", "sum_log_odds", "mean", "min", "max", "product", "last")


def build_parser() -> argparse.ArgumentParser:
    """All flags of selection."""
    parser = Parser(
        prog="python -m reweighting.selection",
        description="Score candidate chains with a trained reward model and pick the best.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--candidates", required=True, nargs="+", type=Path, help="files of candidates records")
    add("--aggregation", nargs="+", choices=AGGREGATION_NAMES, default=["mean_log_odds", "last"],
        help="from step scores to a chain's score; several use the same scores")  # fmt: skip
    add_scoring_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    quiet()
    check_scoring_flags(parser, arguments, "--candidates", arguments.candidates)
    return exit_code(lambda: _run(arguments), arguments.output_dir)


def _run(arguments: argparse.Namespace) -> None:
    """Read all files, then score and choose."""
    scorer = choose_scorer(arguments)
    sets = _load_sets(arguments)
    with DirectoryLock(arguments.output_dir):
        for path in arguments.candidates:
            wanted = identity(arguments, path, sets[path.stem], scorer.fingerprint)
            claim(arguments.output_dir / path.stem, wanted)
        _score_sets(arguments, scorer, sets)


def _load_sets(arguments: argparse.Namespace) -> dict[str, list[CandidatesSample]]:
    """The questions of every file, by the file's name without ending."""
    sets = {}
    for path in arguments.candidates:
        reader = RecordReader.of(arguments, path)
        sets[path.stem] = load_candidates(reader, progress=True)
        for note in filter(None, [reader.left_out(), reader.text_only(sets[path.stem])]):
            terminal.warning(note)
        summary = describe_candidates(sets[path.stem], arguments.step_pattern)
        print(f"{printable(path)}: {summary}")
    return sets


def _score_sets(
    arguments: argparse.Namespace, scorer: Scorer, sets: dict[str, list[CandidatesSample]]
) -> None:
    """Score and choose in all sets; write and print the accuracies."""
    from .results import accuracies, format_table, table_notes

    by_set, lines_by_set = {}, {}
    for name, samples in sets.items():
        folder = arguments.output_dir / name
        lines = lines_by_set[name] = scorer.score(samples, folder, arguments.aggregation)
        if found := accuracies(lines):
            by_set[name] = found
    write_json(arguments.output_dir / RESULTS_FILE, by_set)
    if by_set:
        print(format_table(by_set))
    for note in table_notes(lines_by_set):
        print(note)
    for name in sets:
        unknown = "" if name in by_set else " (no right and wrong is known: there is no table)"
        print(f"choices: {arguments.output_dir / name / SAMPLES_FILE}{unknown}")


if __name__ == "__main__":
    terminal.exit_with(main)
