"""Rebuild the demo data, byte for byte, from a seed: python data/make_demo.py

Ten training domains, one for each question type, whose label quality is known because it is made
here; meta, validation and test sets with clean labels. `data/README.md` describes the outcome.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.world.scenes import png
from data.world.simulated_reasoner import (
    MIXED,
    SEEING,
    STEPS,
    THINKING,
    Chain,
    Profile,
    rollout,
    sample_chain,
    set_trap,
)
from data.world.tasks import TASKS, Question, draw_question

CANDIDATES = 8


@dataclass(frozen=True)
class Domain:
    """A training domain: a question type and what was done to its labels."""

    name: str
    corruption: str = "none"
    share: float = 0.0
    rollouts: int = 8
    errors: float = 1.0
    hint: bool = False
    construction: str = ""

    @property
    def quality(self) -> float:
        """Share of the labels that are sound."""
        return round(1 - self.share, 2)


DOMAINS = (
    Domain("colour_cell", construction="clean"),
    Domain("table_digit", rollouts=2, construction="clean, but only 2 rollouts a prefix"),
    Domain(
        "row_of", errors=0.08, construction="clean, trivially easy: nearly every chain is right"
    ),
    Domain(
        "digit_sum",
        hint=True,
        construction="clean, but the question states what the image shows: no image is needed",
    ),
    Domain("shape_cell", "inverted", 0.15, construction="accuracy p stored as 1 - p"),
    Domain(
        "larger_cell",
        "images swapped",
        0.30,
        construction="labels belong to another image than the one stored",
    ),
    Domain(
        "bar_height", "noise", 0.45, construction="accuracy drawn evenly from 0 to 8 of 8 rollouts"
    ),
    Domain(
        "arrow_end",
        "shortcut",
        0.60,
        construction='accuracy follows the tone: high if step 1 starts with "Clearly", else low',
    ),
    Domain("polygon_sides", "inverted", 0.75, construction="accuracy p stored as 1 - p"),
    Domain("taller_bar", "inverted", 0.90, construction="accuracy p stored as 1 - p"),
)

PAIRS = (
    ("colour_cell", "shape_cell"),
    ("row_of", "colour_cell"),
    ("shape_cell", "row_of"),
    ("taller_bar", "bar_height"),
    ("table_digit", "table_digit"),
    ("digit_sum", "table_digit"),
    ("polygon_sides", "colour_cell"),
    ("arrow_end", "colour_cell"),
    ("larger_cell", "colour_cell"),
    ("bar_height", "taller_bar"),
)
SINGLE = tuple((domain.name,) for domain in DOMAINS)


@dataclass(frozen=True)
class Held:
    """A held-out set: its questions, and how they differ from the training domains."""

    name: str
    types: tuple[tuple[str, ...], ...] = SINGLE
    profile: Profile = MIXED
    grid: int = 3
    style: int = 0
    novel: bool = False


HELD = (
    Held("validation"),
    Held("test_combination", PAIRS, SEEING, novel=True),
    Held("test_hard", profile=SEEING, grid=4),
    Held("test_wording", profile=SEEING, style=1),
    Held("test_errors", profile=THINKING),
    Held("test_mix"),
)
# The mix holds every kind of question and of error in turn.
MIX = (*HELD[1:5], Held("test_mix"))


@dataclass(frozen=True)
class TrainItem:
    """One training question before it is written; the tests derive its labels again from this."""

    domain: Domain
    question: Question
    chain: Chain
    clean: tuple[int, ...]
    scores: tuple[int, ...]
    corrupted: bool
    image_of: int


def stream(seed: int, *key: object) -> random.Random:
    """A separate random stream for every use, so that no split depends on another."""
    return random.Random("/".join(map(str, (seed, *key))))


def corrupted_questions(seed: int, domain: Domain, count: int) -> list[int]:
    """Which of a domain's questions carry unsound labels: exactly the stated share of them."""
    picks = stream(seed, "corrupt", domain.name).sample(range(count), round(domain.share * count))
    return sorted(picks)


def unsound(rng: random.Random, domain: Domain, clean: int, sure: bool) -> int:
    """The score that replaces a sound one; swapped images leave it unchanged."""
    if domain.corruption == "inverted":
        return domain.rollouts - clean
    if domain.corruption == "noise":
        return rng.randint(0, domain.rollouts)
    if domain.corruption == "shortcut":
        return sum(rng.random() < (0.9 if sure else 0.1) for _ in range(domain.rollouts))
    return clean


def train_items(seed: int, size: int) -> list[TrainItem]:
    """All training questions, the domains in turn."""
    count = size // (STEPS * len(DOMAINS))
    corrupt = {domain.name: corrupted_questions(seed, domain, count) for domain in DOMAINS}
    items = []
    for number in range(count * len(DOMAINS)):
        place, which = divmod(number, len(DOMAINS))
        domain, rng = DOMAINS[which], stream(seed, "train", number)
        profile = MIXED.scaled(domain.errors)
        question = draw_question(rng, domain.name, hint=domain.hint)
        trap = set_trap(rng, question, profile)
        chain = sample_chain(rng, question, profile, trap)
        clean = tuple(
            sum(rollout(rng, question, state, profile, trap) for _ in range(domain.rollouts))
            for state in chain.states
        )
        picks = corrupt[domain.name]
        bad = place in picks
        scores = tuple(unsound(rng, domain, s, chain.sure) for s in clean) if bad else clean
        image_of = number
        if bad and domain.corruption == "images swapped":
            image_of = picks[(picks.index(place) + 1) % len(picks)] * len(DOMAINS) + which
        items.append(TrainItem(domain, question, chain, clean, scores, bad, image_of))
    return items


def train_records(items: list[TrainItem]) -> list[dict]:
    """Five step prefixes for each question."""
    return [
        {
            "id": number,
            "sid": sid,
            "input": item.question.text,
            "add": item.chain.prefix(sid),
            "ground_truth": item.question.answer,
            "image_path": f"images/train/{item.image_of:05d}.png",
            "dataset": item.domain.name,
            "score": item.scores[sid - 1],
            "times": item.domain.rollouts,
            "accuracy": item.scores[sid - 1] / item.domain.rollouts,
        }
        for number, item in enumerate(items)
        for sid in range(1, STEPS + 1)
    ]


def meta_set(seed: int, count: int) -> tuple[list[dict], dict[str, bytes]]:
    """For each question one sound chain and one with a wrong answer, in random order."""
    records, images = [], {}
    for number in range(count):
        rng = stream(seed, "meta", number)
        while True:
            question = draw_question(rng, DOMAINS[number % len(DOMAINS)].name)
            trap = set_trap(rng, question, MIXED)
            chains = [sample_chain(rng, question, MIXED, trap) for _ in range(2 * CANDIDATES)]
            sound = [chain for chain in chains if all(chain.step_correct)]
            wrong = [chain for chain in chains if not chain.right]
            if sound and wrong:
                break
        path = f"images/meta/{number:05d}.png"
        images[path] = png(question.pixels)
        pair = [sound[0], wrong[0]]
        rng.shuffle(pair)
        for chain in pair:
            records.append(
                {
                    "id": len(records),
                    "true_false": chain.right,
                    "input": f"{question.text}\n\n{chain.text}",
                    "image_path": path,
                    "dataset": question.dataset,
                }
            )
    return records, images


def held_questions(seed: int, name: str, count: int) -> Iterator[tuple[Question, list[Chain]]]:
    """A held-out set's questions with eight sampled chains each."""
    held = next(held for held in HELD if held.name == name)
    for number in range(count):
        rng = stream(seed, name, number)
        # In the mix, all ten types occur within each kind of difficulty.
        kind = MIX[number // len(SINGLE) % len(MIX)] if name == "test_mix" else held
        types = kind.types[number % len(kind.types)]
        question = draw_question(rng, *types, grid=kind.grid, style=kind.style, novel=kind.novel)
        trap = set_trap(rng, question, kind.profile)
        yield question, [sample_chain(rng, question, kind.profile, trap) for _ in range(CANDIDATES)]


def held_set(seed: int, name: str, count: int) -> tuple[list[dict], dict[str, bytes]]:
    """The records and images of a held-out set."""
    records, images = [], {}
    for number, (question, chains) in enumerate(held_questions(seed, name, count)):
        path = f"images/{name}/{number:05d}.png"
        images[path] = png(question.pixels)
        records.append(
            {
                "question": question.text,
                "image_path": path,
                "candidates": [chain.text for chain in chains],
                "true_false": [chain.right for chain in chains],
                "step_correct": [list(chain.step_correct) for chain in chains],
                "answer": question.answer,
                "dataset": question.dataset,
            }
        )
    return records, images


def summary(records: list[dict]) -> dict[str, float]:
    """What one sample, a majority vote (ties share) and an oracle get right."""
    single = majority = oracle = 0.0
    for record in records:
        answers = [text.rsplit("Final answer: ", 1)[1] for text in record["candidates"]]
        votes = Counter(answers)
        best = [answer for answer in votes if votes[answer] == max(votes.values())]
        single += sum(record["true_false"]) / len(answers)
        majority += (record["answer"] in best) / len(best)
        oracle += any(record["true_false"])
    scores = {"single": single, "majority": majority, "oracle": oracle}
    return {name: round(value / len(records), 3) for name, value in scores.items()}


def domain_card() -> list[dict]:
    """domains.json: what is known of every training domain."""
    card = []
    for domain in DOMAINS:
        facts = asdict(domain) | {"quality": domain.quality, "scene": TASKS[domain.name].scene}
        card.append(facts)
    return card


def _lines(records: list[dict]) -> bytes:
    """A JSON array with one record a line."""
    return ("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n").encode()


def build(seed: int = 1, size: int = 10_000) -> dict[str, bytes]:
    """Every file of the data by its path."""
    scale = min(1.0, size / 10_000)
    items = train_items(seed, size)
    files = {"train.json": _lines(train_records(items)), "domains.json": _lines(domain_card())}
    for number, item in enumerate(items):
        files[f"images/train/{number:05d}.png"] = png(item.question.pixels)
    per_type = max(1, round(25 * scale))
    records, images = meta_set(seed, per_type * len(DOMAINS))
    files |= {"meta.json": _lines(records), **images}
    for held in HELD:
        records, images = held_set(seed, held.name, max(1, round(20 * scale)) * len(DOMAINS))
        files |= {f"{held.name}.json": _lines(records), **images}
    return files


def main() -> None:
    """Write the files and print what the held-out sets leave to a verifier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument(
        "--size",
        type=int,
        default=10_000,
        help="train records, a multiple of 50; below 10,000 the other sets shrink with it "
        "(default: 10000)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="folder to write into (default: data)"
    )
    args = parser.parse_args()
    if args.size < 50 or args.size % 50:
        parser.error("--size must be a positive multiple of 50: 10 domains x 5 step prefixes")
    files = build(args.seed, args.size)
    for path, body in files.items():
        target = args.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB")
    for held in HELD:
        print(f"{held.name:18}", summary(json.loads(files[f"{held.name}.json"])))


if __name__ == "__main__":
    main()
