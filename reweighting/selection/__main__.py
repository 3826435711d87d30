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

from ..records.chains import describe_candidates
from ..records.flags import add_record_flags
from ..records.problems import DataError
from ..records.reader import RecordReader, load_candidates
from ..records.samples import CandidatesSample
from ..system import terminal
from ..system.checkpoints.finding import BASE_DIRECTORY, locate
from ..system.checkpoints.fingerprint import fingerprint
from ..system.files import DirectoryLock, FileError, unwritable, write_json
from ..system.terminal import Parser, printable, quiet
from .identity import SAMPLES_FILE, claim, identity

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
    add("--weights_path", required=True, type=Path, help="directory of a training run")
    add("--candidates", required=True, nargs="+", type=Path, help="files of candidates records")
    add("--output_dir", required=True, type=Path, help="where samples and results go")
    add("--aggregation", nargs="+", choices=AGGREGATION_NAMES, default=["mean_log_odds", "last"],
        help="from step scores to a chain's score; several use the same scores")  # fmt: skip
    add_record_flags(add)
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16", help="of the computation")
    add("--max_tokens_per_batch", type=int, default=8192, help="tokens of one forward pass")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    quiet()
    _check(parser, arguments)
    try:
        sets = _load_sets(arguments)
        model_fingerprint = fingerprint(arguments.weights_path)
        with DirectoryLock(arguments.output_dir):
            for path in arguments.candidates:
                wanted = identity(arguments, path, sets[path.stem], model_fingerprint)
                claim(arguments.output_dir / path.stem, wanted)
            _score_sets(arguments, sets)
            return 0
    except (DataError, FileError) as error:
        terminal.error(error)
    except OSError as error:  # such as a full disk
        where = f"{error.filename}: " if error.filename else f"{arguments.output_dir}: "
        terminal.error(f"{where}{error.strerror or error}; the same command goes on from here")
    return 2


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program if a flag is unusable."""
    weights_path = arguments.weights_path
    if not (locate(weights_path) / BASE_DIRECTORY).is_dir():
        parser.error(f"--weights_path {weights_path} holds no reward model ({BASE_DIRECTORY}/)")
    # Takes seconds: --help and a wrong path are answered without it.
    from ..system.device import unusable

    if reason := unusable(arguments.device):
        parser.error(f"--device {arguments.device}: {reason}")
    if len({path.stem for path in arguments.candidates}) < len(arguments.candidates):
        parser.error("--candidates: two files have the same name and would share their results")
    if problem := unwritable(str(arguments.output_dir)):
        parser.error(f"--output_dir {arguments.output_dir} cannot be written: {problem}")


def _load_sets(arguments: argparse.Namespace) -> dict[str, list[CandidatesSample]]:
    """The questions of every file, by the file's name without ending.

    Without ``--step_pattern`` the one that the model was trained with is used.
    """
    from ..system.checkpoints.opening import saved_head

    if arguments.step_pattern is None:
        arguments.step_pattern = saved_head(arguments.weights_path).get("step_pattern")
    sets = {}
    for path in arguments.candidates:
        reader = RecordReader.of(arguments, path)
        sets[path.stem] = load_candidates(reader, progress=True)
        for note in filter(None, [reader.left_out(), reader.text_only(sets[path.stem])]):
            terminal.warning(note)
        summary = describe_candidates(sets[path.stem], arguments.step_pattern)
        print(f"{printable(path)}: {summary}")
    return sets


def _score_sets(arguments: argparse.Namespace, sets: dict[str, list[CandidatesSample]]) -> None:
    """Score and choose in all sets; write and print the accuracies."""
    from ..reward_model import RewardModel
    from .results import accuracies, format_table, score_questions, table_notes

    model = RewardModel.from_pretrained(
        arguments.weights_path, device=arguments.device, step_pattern=arguments.step_pattern
    ).eval()
    by_set, lines_by_set = {}, {}
    for name, samples in sets.items():
        lines = lines_by_set[name] = score_questions(
            model,
            samples,
            arguments.output_dir / name / SAMPLES_FILE,
            arguments.aggregation,
            arguments.max_tokens_per_batch,
            arguments.precision,
            title=name,
        )
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
