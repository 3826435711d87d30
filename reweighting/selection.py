"""Best-of-N: score every step prefix of every candidate chain and pick one chain a question.

    python -m reweighting.selection --weights_path weights/dreamprm \
        --candidates data/test_mix.json --image_root data --output_dir selected

All candidates of a question share image and question, so they go through one prefix tree (see
:mod:`reweighting.prefix_tree`). Results are written as they come: the same command goes on where a
killed one stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from . import terminal
from .answers import unreadable, unreadable_note
from .arguments import Parser, add_record_flags, unwritable
from .best_of_n import AGGREGATIONS, LogOdds, Pool, aggregate, evaluate, interval, select
from .checkpoints import BASE_DIRECTORY, file_fingerprint, fingerprint, locate
from .files import (
    DirectoryLock,
    FileError,
    complete_lines,
    is_number,
    json_line,
    read_json,
    replacing,
    write_json,
)
from .prefix_tree import pack
from .prompts import EncodedPrompts, response_prompts
from .reward_model import RewardModel, autocast, saved_head
from .samples import CandidatesSample, DataError, RecordReader, describe_candidates, load_candidates
from .terminal import printable, quiet

SAMPLES_FILE = "samples.jsonl"
RESULTS_FILE = "results.json"
IDENTITY_FILE = "run.json"  # what a set's results belong to


def score_candidates(
    model: RewardModel,
    samples: Sequence[CandidatesSample],
    max_tokens_per_batch: int = 8192,
    precision: str = "fp32",
) -> Iterator[list[LogOdds]]:
    """Log-odds of every step prefix of every candidate, a batch of questions at a time.

    An empty candidate has no prefix, and so no log-odds.

    Args:
        max_tokens_per_batch: questions are packed together up to this many tokens; a question
            whose tree is larger is cut into one tree a candidate.
    """
    batch: list[tuple[EncodedPrompts | None, list[int]]] = []
    tokens = 0
    for sample in samples:
        encoded, steps, size = _encode(model, sample)
        if batch and tokens + size > max_tokens_per_batch:
            yield _forward(model, batch, precision)
            batch, tokens = [], 0
        if size > max_tokens_per_batch and len(steps) > 1:
            alone = [replace(sample, candidates=[c], true_false=None) for c in sample.candidates]
            pieces = score_candidates(model, alone, max_tokens_per_batch, precision)
            yield [[scores for piece in pieces for [scores] in piece]]
            continue
        batch.append((encoded, steps))
        tokens += size
    if batch:
        yield _forward(model, batch, precision)


def _encode(
    model: RewardModel, sample: CandidatesSample
) -> tuple[EncodedPrompts | None, list[int], int]:
    """All prompts of a question, the number of steps of every candidate, tokens of the tree."""
    pattern = model.encoder.step_pattern
    chains = [response_prompts(sample.question, r, pattern) for r in sample.candidates]
    if not any(chains):
        return None, [0] * len(chains), 0
    encoded = model.encoder.encode(sample.image, [prompt for chain in chains for prompt in chain])
    ordered = sorted(encoded.token_ids)  # neighbours in order share the most
    size = len(ordered[0])
    for left, right in itertools.pairwise(ordered):
        pairs = enumerate(zip(left, right, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
        size += len(right) - shared
    return encoded, [len(chain) for chain in chains], size


@torch.no_grad()
def _forward(
    model: RewardModel, batch: list[tuple[EncodedPrompts | None, list[int]]], precision: str
) -> list[LogOdds]:
    # A key of its own for every question: which others are in the batch changes no tree.
    groups = [
        replace(encoded, image_key=f"{index} {encoded.image_key}")
        for index, (encoded, _) in enumerate(batch)
        if encoded is not None
    ]
    device = model.device
    with autocast(device, precision):
        flat = iter(model(pack(groups).to(device)).tolist() if groups else [])
    return [[list(itertools.islice(flat, count)) for count in steps] for _, steps in batch]


def run(
    model: RewardModel,
    samples: list[CandidatesSample],
    path: Path,
    aggregations: Sequence[str],
    max_tokens_per_batch: int,
    precision: str,
    title: str = "",
) -> list[dict]:
    """Score ``samples`` and write one JSON line a question to ``path``, going on where it ends.

    Lines are kept by whole batches: what a question is packed with can change its last digits, and
    a resumed run is to write the same file as an undisturbed one.
    """
    lines = _complete_batches(path, samples)
    with replacing(path) as file:
        file.writelines(map(json_line, lines))
    batch_number = lines[-1]["batch"][0] + 1 if lines else 0
    rest = samples[len(lines) :]
    batches = score_candidates(model, rest, max_tokens_per_batch, precision)
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(samples), initial=len(lines), desc=title, unit="question") as bar,
    ):
        for batch in batches:
            new = []
            for log_odds in batch:
                sample = samples[len(lines) + len(new)]
                line = _line(sample, log_odds, aggregations)
                new.append({"batch": [batch_number, len(batch)], **line})
            file.write("".join(map(json_line, new)))
            file.flush()
            lines += new
            batch_number += 1
            bar.update(len(new))
    return lines


def _line(sample: CandidatesSample, log_odds: LogOdds, aggregations: Sequence[str]) -> dict:
    chosen = {name: select(log_odds, name) for name in aggregations}
    line = {
        "record": sample.record,
        "question": sample.question,
        "dataset": sample.dataset,
        "answer": sample.answer,
        "candidates": sample.candidates,
        "step_log_odds": log_odds,
        "step_scores": [torch.sigmoid(torch.tensor(z)).tolist() for z in log_odds],
        # Not JSON: the -inf of a candidate without steps
        "aggregates": {
            name: [aggregate(z, name) if z else None for z in log_odds] for name in aggregations
        },
        "chosen": chosen,
    }
    if sample.benchmark is not None:
        line["benchmark"] = sample.benchmark
    if sample.choices is not None:
        line["choices"] = sample.choices
    if sample.true_false is not None:
        line["true_false"] = sample.true_false
        line["right"] = {name: sample.true_false[index] for name, index in chosen.items()}
    return line


def _is_line_of(line: object, sample: CandidatesSample) -> bool:
    """Whether ``line`` has what later lines and the table are made from, for this question."""
    if not isinstance(line, dict):
        return False
    batch, log_odds, chosen = (line.get(name) for name in ("batch", "step_log_odds", "chosen"))
    return (
        all(line.get(n) == getattr(sample, n) for n in ("record", "question", "candidates"))
        and line.get("true_false") == sample.true_false
        and line.get("choices") == sample.choices
        and isinstance(batch, list)
        and len(batch) == 2
        and all(type(number) is int and number >= 0 for number in batch)
        and isinstance(log_odds, list)
        and len(log_odds) == len(sample.candidates)
        and all(isinstance(z, list) and all(is_number(value) for value in z) for z in log_odds)
        and isinstance(chosen, dict)
        and bool(chosen.keys() <= AGGREGATIONS.keys())
    )


def _complete_batches(path: Path, samples: Sequence[CandidatesSample]) -> list[dict]:
    """The lines of whole batches that are there already.

    Raises:
        FileError: a line is not what was written for its question.
    """
    lines = complete_lines(path)
    for number, line in enumerate(lines, start=1):
        if number > len(samples) or not _is_line_of(line, samples[number - 1]):
            raise FileError(f"{path}: line {number} is damaged; delete the file to start anew")
    if lines:
        number, size = lines[-1]["batch"]
        last = [line for line in lines if line["batch"][0] == number]
        if len(last) < size:
            lines = lines[: -len(last)]
    return lines


def results(lines: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """What choosing is worth where right and wrong are known: {method: {N: numbers}}.

    ``one sample`` is the expected accuracy of one candidate, ``oracle`` that of a perfect judge,
    ``last`` that of the model used as an outcome reward model. Numbers are the accuracy over all
    subsets of N candidates, its standard error over questions and its 95 % bootstrap interval.
    """
    pools = [
        Pool.of(
            line["candidates"],
            line["true_false"],
            line["step_log_odds"],
            list(line["chosen"]),
            line.get("choices"),
        )
        for line in lines
        if "true_false" in line
    ]
    if not pools:
        return {}
    names = ("accuracy", "standard_error", "low", "high")
    return {
        method: {
            str(size): {**dict(zip(names, interval(values), strict=True)), "questions": len(values)}
            for size, values in by_size.items()
        }
        for method, by_size in evaluate(pools).items()
    }


def remarks(lines_of_set: dict[str, list[dict]]) -> list[str]:
    """What a table does not show: questions left out, candidates without a readable answer."""
    found = []
    for name, lines in lines_of_set.items():
        known = sum("true_false" in line for line in lines)
        if 0 < known < len(lines):
            found.append(
                f"{name}: the table covers {known:,} of {len(lines):,} questions: of the others, "
                "no right and wrong is known"
            )
        missing = sum(unreadable(line["candidates"], line.get("choices")) for line in lines)
        total = sum(len(line["candidates"]) for line in lines)
        if note := unreadable_note(missing, total):
            found.append(
                f"{name}: {note}: these have no vote, and are wrong where the answer counts"
            )
    return found


def table(by_set: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Accuracies in per cent with standard errors: a block a set, a row a method, N across."""
    rows = []
    for name, methods in by_set.items():
        numbers = list(next(iter(methods.values())))
        rows.append(f"{name:<24}" + "".join(f"{'N = ' + n:>14}" for n in numbers))
        for method, values in methods.items():
            cells = [
                f"{100 * values[n]['accuracy']:.1f} ± {100 * values[n]['standard_error']:.1f}"
                for n in numbers
            ]
            rows.append(f"  {method:<22}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(rows)


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
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: no CUDA device is there; try --device cpu")
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
