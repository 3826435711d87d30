"""Judge a reward model step by step on a benchmark with a label for every step.

    python -m reweighting.evaluate --weights_path weights/dreamprm --benchmark visualprocessbench \
        --data test.jsonl --image_root images --output_dir judged

All prefixes of a record go through one prefix tree, as in :mod:`reweighting.selection`. Results are
written batch by batch: after a kill, the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..selection.command import (
    add_scoring_flags,
    check_scoring_flags,
    choose_scorer,
    exit_code,
)
from ..selection.identity import claim, identity
from ..system import terminal
from ..system.files import DirectoryLock, FileError, write_json
from ..system.terminal import Parser, printable, quiet
from .layouts import LAYOUTS, StepReader, StepRecord, has_both, load_steps

if TYPE_CHECKING:
    from ..selection.scorers import Scorer

RESULTS_FILE = "results.json"
FIGURE_FILE = "evaluation.png"
THRESHOLD_FOLDER = "threshold_from"  # in it a folder for the file that the threshold comes from
Files = dict[Path, tuple[Path, list[StepRecord]]]  # folder of the results -> file and its records


def build_parser() -> argparse.ArgumentParser:
    """All flags of evaluation."""
    parser = Parser(
        prog="python -m reweighting.evaluate",
        description="Judge a reward model step by step on labelled chains of thought.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--benchmark", required=True, choices=LAYOUTS,
        help="layout and measures; candidates means our own records with step_correct")  # fmt: skip
    add("--data", required=True, nargs="+", type=Path, help="files of the benchmark")
    add("--threshold_from", type=Path, metavar="FILE",
        help="validation file, in the same layout or our own, on which the threshold between right "
        "and wrong steps is chosen; without one it is 0.5")  # fmt: skip
    add("--threshold_image_root", metavar="DIR",
        help="directory of the images of --threshold_from, instead of --image_root")  # fmt: skip
    add_scoring_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    quiet()
    if arguments.threshold_image_root is not None and arguments.threshold_from is None:
        parser.error("--threshold_image_root is for --threshold_from")
    check_scoring_flags(parser, arguments, "--data", arguments.data)
    return exit_code(lambda: _run(arguments), arguments.output_dir)


def _run(arguments: argparse.Namespace) -> None:
    """Read all files, score them, and write what the scores are worth."""
    scorer = choose_scorer(arguments)
    output = arguments.output_dir
    tests = {output / path.stem: (path, _load(arguments, path)) for path in arguments.data}
    validation = {}
    if (path := arguments.threshold_from) is not None:
        records = _load(arguments, path, arguments.threshold_image_root, or_candidates=True)
        _check_validation(path, records, [r for _, own in tests.values() for r in own])
        validation[output / THRESHOLD_FOLDER / path.stem] = (path, records)
    with DirectoryLock(output):
        for folder, (path, records) in {**tests, **validation}.items():
            samples = [record.sample for record in records]
            claim(folder, identity(arguments, path, samples, scorer.fingerprint))
        _judge(arguments, scorer, tests, validation)


def _load(
    arguments: argparse.Namespace,
    path: Path,
    image_root: str | None = None,
    or_candidates: bool = False,
) -> list[StepRecord]:
    """The labelled records of a file."""
    reader = StepReader.of(arguments, path, image_root)
    records = load_steps(reader, arguments.benchmark, or_candidates)
    for note in filter(None, [reader.left_out(), reader.text_only(records)]):
        terminal.warning(note)
    steps = sum(len(labels) for record in records for labels in record.labels)
    print(f"{printable(path)}: {len(records):,} records with {steps:,} steps")
    return records


def _check_validation(
    path: Path, records: Sequence[StepRecord], tests: Sequence[StepRecord]
) -> None:
    """Refuse a validation file before anything is scored.

    A threshold that is chosen on records that it is tested on would flatter the model.
    """

    def contents(records: Sequence[StepRecord]) -> set[str]:
        # Wherever the images are, and however the steps of a chain are given.
        return {
            json.dumps([record.question, " ".join(text.split())])
            for record in records
            for chain in record.chains
            for text in [chain if isinstance(chain, str) else "\n".join(chain)]
        }

    shared = len(contents(records) & contents(tests))
    if shared:
        raise FileError(f"--threshold_from {path} shares {shared:,} chains with --data")
    if not has_both(records):
        raise FileError(f"--threshold_from {path} needs both right and wrong steps")


def _judge(arguments: argparse.Namespace, scorer: Scorer, tests: Files, validation: Files) -> None:
    """Score all records, choose the threshold if there is a file for it, write and print."""
    from . import results as measured
    from .figure import draw

    def scored(files: Files) -> tuple[list[StepRecord], list[measured.Scores]]:
        kept, log_odds = [], []
        for folder, (_, records) in files.items():
            # Steps are judged one by one, no chain is chosen.
            lines = scorer.score([record.sample for record in records], folder, ())
            by_record = {line["record"]: line["step_log_odds"] for line in lines}
            kept += [record for record in records if record.record in by_record]
            log_odds += by_record.values()
        return kept, measured.scores_of(log_odds)

    rules = measured.RULES[arguments.benchmark]
    threshold = measured.DEFAULT_THRESHOLD
    if validation:
        threshold = measured.choose_threshold(*scored(validation))
    results = {
        "benchmark": arguments.benchmark,
        "threshold": threshold,
        "threshold_from": arguments.threshold_from and str(arguments.threshold_from),
        **measured.evaluate(*scored(tests), threshold, rules),
    }
    source, published = rules.published
    if published:
        results["published"] = {"source": source, "per_cent": published}
    write_json(arguments.output_dir / RESULTS_FILE, results)
    draw(results, rules.main, arguments.output_dir / FIGURE_FILE)
    print(measured.format_table(results, rules.main))
    origin = "chosen on " + printable(arguments.threshold_from)
    if arguments.threshold_from is None:
        origin = "not chosen on data; see --threshold_from"
    print(f"a step is called right at a score of {threshold:.3f} ({origin})")
    if published:
        values = ", ".join(f"{name} {value:.1f}" for name, value in published.items())
        print(f"published: {values} ({source})")
    print(f"results: {arguments.output_dir / RESULTS_FILE}")


if __name__ == "__main__":
    terminal.exit_with(main)
