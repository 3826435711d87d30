"""Judge a reward model step by step on a benchmark with a label for every step.

    python -m reweighting.evaluate --weights_path weights/dreamprm --benchmark visualprocessbench \
        --data test.jsonl --image_root images --output_dir judged

All prefixes of a record go through one prefix tree, as in :mod:`reweighting.selection`. Results are
written batch by batch: after a kill, the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..selection.command import add_scoring_flags, check_scoring_flags, exit_code
from ..selection.identity import SAMPLES_FILE, claim, identity
from ..system import terminal
from ..system.checkpoints.fingerprint import fingerprint
from ..system.files import DirectoryLock, FileError, write_json
from ..system.terminal import Parser, printable, quiet
from .layouts import LAYOUTS, StepReader, StepRecord, load_steps

RESULTS_FILE = "results.json"
FIGURE_FILE = "evaluation.png"
THRESHOLD_FOLDER = "threshold_from"  # in it a folder for the file that the threshold comes from


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
    add_scoring_flags(add)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    quiet()
    check_scoring_flags(parser, arguments, "--data", arguments.data)
    return exit_code(lambda: _run(arguments), arguments.output_dir)


def _run(arguments: argparse.Namespace) -> None:
    """Read all files, score them, and write what the scores are worth."""
    tests = {path: _load(arguments, path) for path in arguments.data}
    validation = None
    if arguments.threshold_from is not None:
        _refuse_test_files(arguments)
        validation = _load(arguments, arguments.threshold_from, or_candidates=True)
    from ..reward_model import RewardModel

    model_fingerprint = fingerprint(arguments.weights_path)
    with DirectoryLock(arguments.output_dir):
        folders = {path: arguments.output_dir / path.stem for path in tests}
        files = {folder: (path, tests[path]) for path, folder in folders.items()}
        if validation is not None:
            path = arguments.threshold_from
            files[arguments.output_dir / THRESHOLD_FOLDER / path.stem] = (path, validation)
        for folder, (path, records) in files.items():
            samples = [record.sample for record in records]
            claim(folder, identity(arguments, path, samples, model_fingerprint))
        model = RewardModel.from_pretrained(
            arguments.weights_path, device=arguments.device, step_pattern=arguments.step_pattern
        ).eval()
        _judge(arguments, model, files)


def _load(
    arguments: argparse.Namespace, path: Path, or_candidates: bool = False
) -> list[StepRecord]:
    """The labelled records of a file."""
    reader = StepReader.of(arguments, path)
    records = load_steps(reader, arguments.benchmark, or_candidates)
    if note := reader.left_out():
        terminal.warning(note)
    steps = sum(len(labels) for record in records for labels in record.labels)
    print(f"{printable(path)}: {len(records):,} records with {steps:,} steps")
    return records


def _refuse_test_files(arguments: argparse.Namespace) -> None:
    """A threshold that is chosen on the records it is tested on would flatter the model."""
    chosen = arguments.threshold_from
    for path in arguments.data:
        if chosen.is_file() and chosen.read_bytes() == path.read_bytes():
            raise FileError(f"--threshold_from {chosen} holds the records of --data {path}")


def _judge(
    arguments: argparse.Namespace, model, files: dict[Path, tuple[Path, list[StepRecord]]]
) -> None:
    """Score the records of all files, by the folder of their lines; write and print results."""
    from ..selection.results import score_questions
    from .figure import draw
    from .results import (
        DEFAULT_THRESHOLD,
        RULES,
        choose_threshold,
        evaluate,
        format_table,
        scores_of,
    )

    rules = RULES[arguments.benchmark]
    records, scores, threshold = [], [], DEFAULT_THRESHOLD
    for folder, (path, own) in files.items():
        lines = score_questions(
            model,
            [record.sample for record in own],
            folder / SAMPLES_FILE,
            (),  # steps are judged one by one, no chain is chosen
            arguments.max_tokens_per_batch,
            arguments.precision,
            title=folder.name,
        )
        found = scores_of([line["step_log_odds"] for line in lines])
        if path != arguments.threshold_from:
            records += own
            scores += found
            continue
        try:
            threshold = choose_threshold(own, found)
        except ValueError as error:
            raise FileError(f"--threshold_from {path}: {error}") from error
    results = {
        "benchmark": arguments.benchmark,
        "threshold": threshold,
        "threshold_from": arguments.threshold_from and str(arguments.threshold_from),
        **evaluate(records, scores, threshold, rules),
    }
    source, published = rules.published
    if published:
        results["published"] = {"source": source, "per_cent": published}
    write_json(arguments.output_dir / RESULTS_FILE, results)
    draw(results, rules.main, arguments.output_dir / FIGURE_FILE)
    print(format_table(results, rules.main))
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
