"""Best-of-N: score every step prefix of every candidate chain and pick one chain a question.

    python -m reweighting.selection --weights_path weights/dreamprm \
        --candidates data/test_mix.json --image_root data --output_dir selected

All candidates of a question share image and question, so they go through one prefix tree (see
:mod:`reweighting.reward_model.prefix_tree`). Results are written as they come: the same command
goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import terminal
from ..checkpoints.finding import BASE_DIRECTORY, locate
from ..checkpoints.fingerprint import file_fingerprint, fingerprint
from ..checkpoints.opening import saved_head
from ..files import (
    DirectoryLock,
    FileError,
    read_json,
    unwritable,
    write_json,
)
from ..records.chains import describe_candidates
from ..records.flags import add_record_flags
from ..records.problems import DataError
from ..records.reader import RecordReader, load_candidates
from ..records.samples import CandidatesSample
from ..reward_model.aggregation import AGGREGATIONS
from ..reward_model.model import RewardModel
from ..reward_model.precision import unusable
from ..terminal import Parser, printable, quiet
from .results import remarks, results, run, table

SAMPLES_FILE = "samples.jsonl"
RESULTS_FILE = "results.json"
IDENTITY_FILE = "run.json"  # what a set's results belong to


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
    add("--aggregation", nargs="+", choices=list(AGGREGATIONS), 
        default=["mean_log_odds", "last"],
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
    weights_path = arguments.weights_path
    if not (locate(weights_path) / BASE_DIRECTORY).is_dir():
        parser.error(f"--weights_path {weights_path} holds no reward model ({BASE_DIRECTORY}/)")
    if reason := unusable(arguments.device):
        parser.error(f"--device {arguments.device}: {reason}")
    if len({path.stem for path in arguments.candidates}) < len(arguments.candidates):
        parser.error("--candidates: two files have the same name and would share their results")
    if problem := unwritable(str(arguments.output_dir)):
        parser.error(f"--output_dir {arguments.output_dir} cannot be written: {problem}")
    try:
        if arguments.step_pattern is None:
            arguments.step_pattern = saved_head(weights_path).get("step_pattern")
        sets = {}
        for path in arguments.candidates:
            reader = RecordReader.of(arguments, path)
            sets[path.stem] = load_candidates(reader, progress=True)
            if note := reader.left_out():
                terminal.warning(note)
            summary = describe_candidates(sets[path.stem], arguments.step_pattern)
            print(f"{printable(path)}: {summary}")
        model_fingerprint = fingerprint(weights_path)
        with DirectoryLock(arguments.output_dir):
            return _select(arguments, sets, model_fingerprint)
    except (DataError, FileError) as error:
        terminal.error(error)
    except OSError as error:  # such as a disk that is full
        where = f"{error.filename}: " if error.filename else f"{arguments.output_dir}: "
        terminal.error(f"{where}{error.strerror or error}; the same command goes on from here")
    return 2


def _select(
    arguments: argparse.Namespace, sets: dict[str, list[CandidatesSample]], model_fingerprint: str
) -> int:
    """Score and choose in an output directory that is ours; returns the exit code."""
    for path in arguments.candidates:
        folder = arguments.output_dir / path.stem
        identity = _identity(arguments, path, sets[path.stem], model_fingerprint)
        known = folder / IDENTITY_FILE
        before = _read_identity(known)
        if before is not None and before != identity:
            differing = sorted(
                name
                for name in before.keys() | identity.keys()
                if before.get(name) != identity.get(name)
            )
            terminal.error(
                f"{folder} holds results of another model, file or setting "
                f"({printable(', '.join(differing))}); choose another --output_dir"
            )
            return 2
        if before is None and (folder / SAMPLES_FILE).exists():
            terminal.error(
                f"{folder / SAMPLES_FILE} is there, but not {IDENTITY_FILE}, which says what it "
                "belongs to; choose another --output_dir"
            )
            return 2
        write_json(known, identity)

    model = RewardModel.from_pretrained(
        arguments.weights_path, device=arguments.device, step_pattern=arguments.step_pattern
    ).eval()
    by_set, lines_of_set = {}, {}
    for name, samples in sets.items():
        lines = lines_of_set[name] = run(
            model,
            samples,
            arguments.output_dir / name / SAMPLES_FILE,
            arguments.aggregation,
            arguments.max_tokens_per_batch,
            arguments.precision,
            title=name,
        )
        if found := results(lines):
            by_set[name] = found
    write_json(arguments.output_dir / RESULTS_FILE, by_set)
    if by_set:
        print(table(by_set))
    for line in remarks(lines_of_set):
        print(line)
    for name in sets:
        unknown = "" if name in by_set else " (no right and wrong is known: there is no table)"
        print(f"choices: {arguments.output_dir / name / SAMPLES_FILE}{unknown}")
    return 0


def _read_identity(path: Path) -> dict | None:
    """What results belong to; None if there is no such file, or an empty one of an old version."""
    if not path.exists() or not path.stat().st_size:
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(f"{path}: describes no results; choose another --output_dir")
    return value


# Where things are says nothing about what they are: the files' contents do.
_PLACES = {"weights_path", "candidates", "output_dir", "image_root", "allow_external_images"}


def _identity(
    arguments: argparse.Namespace,
    path: Path,
    samples: Sequence[CandidatesSample],
    model_fingerprint: str,
) -> dict:
    """What must be the same for results to be continued: every weight, image and setting.

    Images are known by their size and by blocks spread over them, as compressed pictures that
    differ do so nearly everywhere; thousands take well below a second.
    """
    images = hashlib.sha256()
    known: dict[str, str] = {}
    for sample in samples:
        image = str(sample.image)
        if image not in known:
            # An image that is no file of ours is known by its address.
            known[image] = file_fingerprint(image) if os.path.isfile(image) else image
        images.update(f"{sample.record} {known[image]}\n".encode())
    settings = {
        name: value for name, value in sorted(vars(arguments).items()) if name not in _PLACES
    }
    settings["device"] = arguments.device.split(":")[0]  # which of several cards does not matter
    identity = {
        "candidates": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights": model_fingerprint,
        "images": images.hexdigest(),
        **settings,
    }
    return json.loads(json.dumps(identity, default=str))  # as it is read again


if __name__ == "__main__":
    sys.exit(main())
