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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from .answers import unreadable, unreadable_note
from .best_of_n import AGGREGATIONS, LogOdds, Pool, aggregate, evaluate, interval, select
from .prefix_tree import pack
from .prompts import EncodedPrompts, chain_prompts
from .reward_model import BASE_DIRECTORY, HEAD_FILE, RewardModel, autocast, saved_head
from .samples import CandidatesSample, DataError, RecordReader, load_candidates

SAMPLES_FILE = "samples.jsonl"
RESULTS_FILE = "results.json"


def score_candidates(
    model: RewardModel,
    samples: Sequence[CandidatesSample],
    max_tokens_per_batch: int = 8192,
    precision: str = "fp32",
) -> Iterator[list[LogOdds]]:
    """Log-odds of every step prefix of every candidate, a batch of questions at a time.

    Args:
        max_tokens_per_batch: questions are packed together up to this many tokens; a question
            whose tree is larger is cut into one tree a candidate.
    """
    batch: list[tuple[EncodedPrompts, list[int]]] = []
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


def _encode(model: RewardModel, sample: CandidatesSample) -> tuple[EncodedPrompts, list[int], int]:
    """All prompts of a question, the number of steps of every candidate, tokens of the tree."""
    chains = [chain_prompts(sample.question, response) for response in sample.candidates]
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
    model: RewardModel, batch: list[tuple[EncodedPrompts, list[int]]], precision: str
) -> list[LogOdds]:
    # A key of its own for every question: which others are in the batch changes no tree.
    groups = [
        replace(encoded, image_key=f"{index} {encoded.image_key}")
        for index, (encoded, _) in enumerate(batch)
    ]
    device = model.device
    with autocast(device, precision):
        flat = iter(model(pack(groups).to(device)).tolist())
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
    lines = _complete_batches(path)
    aside = path.with_suffix(".unfinished")
    aside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    aside.replace(path)
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
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new))
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
        "aggregates": {name: [aggregate(z, name) for z in log_odds] for name in aggregations},
        "chosen": chosen,
    }
    if sample.choices is not None:
        line["choices"] = sample.choices
    if sample.true_false is not None:
        line["true_false"] = sample.true_false
        line["right"] = {name: sample.true_false[index] for name, index in chosen.items()}
    return line


def _complete_batches(path: Path) -> list[dict]:
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
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


def unreadable_lines(lines_of_set: dict[str, list[dict]]) -> list[str]:
    """A line for each set in which some candidates have no final answer that can be read."""
    found = []
    for name, lines in lines_of_set.items():
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
    parser = argparse.ArgumentParser(
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
    add("--image_root", default=".", help="directory relative image paths start from")
    add("--allow_external_images", action="store_true", help="accept URLs, images outside the root")
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16", help="of the computation")
    add("--max_tokens_per_batch", type=int, default=8192, help="tokens of one forward pass")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    weights_path = arguments.weights_path
    if not (weights_path / BASE_DIRECTORY).is_dir():
        parser.error(f"--weights_path {weights_path} holds no reward model ({BASE_DIRECTORY}/)")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: no CUDA device is there; try --device cpu")
    if len({path.stem for path in arguments.candidates}) < len(arguments.candidates):
        parser.error("--candidates: two files have the same name and would share their results")
    try:
        sets = {
            path.stem: load_candidates(
                RecordReader(str(path), arguments.image_root, arguments.allow_external_images),
                progress=True,
            )
            for path in arguments.candidates
        }
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in arguments.candidates:
        folder = arguments.output_dir / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(arguments, path)
        known = folder / "run.json"
        if known.exists() and json.loads(known.read_text()) != identity:
            print(
                f"error: {folder} holds results of another model, file or setting; choose another "
                "--output_dir",
                file=sys.stderr,
            )
            return 2
        known.write_text(json.dumps(identity, indent=2) + "\n")

    model = RewardModel.from_pretrained(weights_path, device=arguments.device).eval()
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
    text = json.dumps(by_set, indent=2, ensure_ascii=False)
    (arguments.output_dir / RESULTS_FILE).write_text(text + "\n")
    if by_set:
        print(table(by_set))
    for line in unreadable_lines(lines_of_set):
        print(line)
    return 0


def _identity(arguments: argparse.Namespace, path: Path) -> dict:
    """What must be the same for results to be continued."""
    weights_path = arguments.weights_path
    # Training moves the linear head; a model without one is known by all its weights.
    files = [weights_path / HEAD_FILE]
    if saved_head(weights_path).get("score_head") == "plus_minus":
        files = sorted((weights_path / BASE_DIRECTORY).glob("*.safetensors"))
    model = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(2**24):
                model.update(chunk)
    return {
        "candidates": hashlib.sha256(path.read_bytes()).hexdigest(),
        "model": model.hexdigest(),
        "aggregation": arguments.aggregation,
        "max_tokens_per_batch": arguments.max_tokens_per_batch,
        "precision": arguments.precision,
    }


if __name__ == "__main__":
    sys.exit(main())
