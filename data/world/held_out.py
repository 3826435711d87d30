"""The sets beside the training records: meta pairs, and candidates with clean labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.world.scenes import png
from data.world.simulated_reasoner import (
    MIXED,
    SEEING,
    THINKING,
    Chain,
    Profile,
    sample_chain,
    set_trap,
)
from data.world.tasks import Question, draw_question
from data.world.training import json_lines, stream

CANDIDATES = 8
# In the order in which the sets ask them.
TYPES = (
    "colour_cell",
    "table_digit",
    "row_of",
    "digit_sum",
    "shape_cell",
    "larger_cell",
    "bar_height",
    "arrow_end",
    "polygon_sides",
    "taller_bar",
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
SINGLE = tuple((name,) for name in TYPES)


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


def meta_set(
    seed: int | str, count: int, types: Sequence[str] = TYPES, folder: str = "images"
) -> tuple[list[dict], dict[str, bytes]]:
    """For each of `count` questions a sound chain and one with a wrong answer, in random order.

    The question types take turns. Returns the records and the images by their paths.
    """
    records, images = [], {}
    for number in range(count):
        rng = stream(seed, "meta", number)
        while True:
            question = draw_question(rng, types[number % len(types)])
            trap = set_trap(rng, question, MIXED)
            chains = [sample_chain(rng, question, MIXED, trap) for _ in range(2 * CANDIDATES)]
            sound = [chain for chain in chains if all(chain.step_correct)]
            wrong = [chain for chain in chains if not chain.right]
            if sound and wrong:
                break
        path = f"{folder}/meta/{number:05d}.png"
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


def held_questions(
    seed: int | str, name: str, count: int, candidates: int = CANDIDATES
) -> Iterator[tuple[Question, list[Chain]]]:
    """A held-out set's questions with their sampled chains.

    More candidates leave the question and its first candidates as they are.
    """
    held = next(held for held in HELD if held.name == name)
    for number in range(count):
        rng = stream(seed, name, number)
        # In the mix, all ten types occur within each kind of difficulty.
        kind = MIX[number // len(SINGLE) % len(MIX)] if name == "test_mix" else held
        types = kind.types[number % len(kind.types)]
        question = draw_question(rng, *types, grid=kind.grid, style=kind.style, novel=kind.novel)
        trap = set_trap(rng, question, kind.profile)
        yield question, [sample_chain(rng, question, kind.profile, trap) for _ in range(candidates)]


def held_set(
    seed: int | str,
    name: str,
    count: int,
    candidates: int = CANDIDATES,
    folder: str = "images",
) -> tuple[list[dict], dict[str, bytes]]:
    """The records of a held-out set, and its images by their paths."""
    records, images = [], {}
    for number, (question, chains) in enumerate(held_questions(seed, name, count, candidates)):
        path = f"{folder}/{name}/{number:05d}.png"
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


def held_files(
    seed: int | str,
    names: Sequence[str],
    size: int,
    candidates: int = CANDIDATES,
    folder: str = "",
) -> dict[str, bytes]:
    """Held-out sets and their images, by their paths below `folder`.

    Twenty questions of each type; fewer where `size`, the number of train records, is below 10,000.
    """
    count = max(1, round(20 * min(1.0, size / 10_000))) * len(TYPES)
    files = {}
    for name in names:
        records, images = held_set(seed, name, count, candidates, f"{folder}images")
        files |= {f"{folder}{name}.json": json_lines(records), **images}
    return files


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
