"""Training records of the demo worlds: sampled chains, their labels, and what spoils these.

The streams of random numbers are here too, since every split of every world draws from its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.world.scenes import png
from data.world.simulated_reasoner import (
    STEPS,
    Chain,
    Profile,
    rollout,
    sample_chain,
    set_trap,
)
from data.world.tasks import Question


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
        return round(1 - self.share, 4)


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


def stream(seed: int | str, *key: object) -> random.Random:
    """A separate random stream for every use, so that no split depends on another."""
    return random.Random("/".join(map(str, (seed, *key))))


def unsound(rng: random.Random, domain: Domain, clean: int, sure: bool) -> int:
    """The score that replaces a sound one; swapped images leave it unchanged."""
    if domain.corruption == "inverted":
        return domain.rollouts - clean
    if domain.corruption == "noise":
        return rng.randint(0, domain.rollouts)
    if domain.corruption == "shortcut":
        return sum(rng.random() < (0.9 if sure else 0.1) for _ in range(domain.rollouts))
    return clean


def labelled_chain(
    rng: random.Random, question: Question, profile: Profile, rollouts: int
) -> tuple[Chain, tuple[int, ...]]:
    """One sampled chain, and for each of its five prefixes how many of its rollouts end right."""
    trap = set_trap(rng, question, profile)
    chain = sample_chain(rng, question, profile, trap)
    scores = (
        sum(rollout(rng, question, state, profile, trap) for _ in range(rollouts))
        for state in chain.states
    )
    return chain, tuple(scores)


def as_sampled(items: Sequence[TrainItem]) -> list[TrainItem]:
    """The same questions with the labels and images they had before they were spoiled."""
    return [
        replace(item, scores=item.clean, corrupted=False, image_of=number)
        for number, item in enumerate(items)
    ]


def train_records(items: Sequence[TrainItem], folder: str = "images") -> list[dict]:
    """Five step prefixes for each question; `folder` holds the images of all splits."""
    return [
        {
            "id": number,
            "sid": sid,
            "input": item.question.text,
            "add": item.chain.prefix(sid),
            "ground_truth": item.question.answer,
            "image_path": f"{folder}/train/{item.image_of:05d}.png",
            "dataset": item.domain.name,
            "score": item.scores[sid - 1],
            "times": item.domain.rollouts,
            "accuracy": item.scores[sid - 1] / item.domain.rollouts,
        }
        for number, item in enumerate(items)
        for sid in range(1, STEPS + 1)
    ]


def json_lines(records: list[dict]) -> bytes:
    """A JSON array with one record a line."""
    return ("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n").encode()


def train_files(items: Sequence[TrainItem], folder: str = "") -> dict[str, bytes]:
    """train.json and its images, by their paths, all of them below `folder`."""
    images = f"{folder}images"
    files = {f"{folder}train.json": json_lines(train_records(items, images))}
    for number, item in enumerate(items):
        files[f"{images}/train/{number:05d}.png"] = png(item.question.pixels)
    return files
