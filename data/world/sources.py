"""The world of sources: ten training sources that overlap, since each holds all question types.

Whoever turns a spoiled source down can learn the same types from the others, which the world of
domains does not allow. A rotation draws everything anew; within it, quality goes along neither with
mean label nor with difficulty, size, style or number of rollouts. First all questions are drawn
with clean labels, then the qualities are dealt over the sources until that holds, then labels are
spoiled. So the clean world depends on rotation and size alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.world.held_out import TYPES, held_files, meta_set
from data.world.scenes import Scene
from data.world.simulated_reasoner import MIXED, STEPS
from data.world.tasks import Question, askable, draw_question
from data.world.training import (
    Domain,
    TrainItem,
    as_sampled,
    json_lines,
    labelled_chain,
    stream,
    train_files,
    train_records,
    unsound,
)

FOLDER = "sources"
SETS = ("validation", "test_mix")
NAMES = tuple(f"source_{letter}" for letter in "abcdefghij")
# Factors on the error rates: mean labels from about 0.3 to 0.85.
ERRORS = (0.30, 0.42, 0.54, 0.68, 0.84, 1.00, 1.18, 1.38, 1.60, 1.88)
# Per mille of all questions.
SIZES = (50, 60, 75, 85, 95, 105, 115, 125, 140, 150)
# The share of misled questions rises from 0 to WORST within RAMP sources, ordered by quality: most
# sources are sound or nearly all bad, as sets are that were checked or were not.
WORST = 0.95
RAMP = 3
# Of the spoiled sources. Mostly inversion, which misleads most: a shortcut is right half of the
# time, and a swapped image misleads only where the label is high.
CORRUPTIONS = ("inverted", "inverted", "shortcut", "inverted", "images swapped")
# The share of questions in the second style. No source has one style alone: the style of a chain
# would then tell its source, and with it the mean label.
STYLES = (0.2, 0.8)
# What may not go along with quality, and how far at most: Spearman's rank correlation.
APART = ("mean_label", "mean_label_clean", "errors", "questions", "style", "rollouts")
MAX_CORRELATION = 0.2
# Two sound sources must differ by this much in their mean labels.
SOUND_GAP = 0.35
TRIES = 100_000


@dataclass(frozen=True)
class Settings:
    """What is to be made. Raises ValueError, naming the setting first, if that cannot be."""

    rotation: int = 0
    misled: float = 0.4
    same_quality: bool = False
    meta_types: int = 10
    meta_chains: int = 500
    candidates: int = 32
    size: int = 10_000

    def __post_init__(self) -> None:
        if self.rotation < 0:
            raise ValueError(f"rotation must be at least 0, is {self.rotation}")
        if not 0.2 <= self.misled <= 0.6:
            raise ValueError(f"misled must be from 0.2 to 0.6, is {self.misled}")
        if not 3 <= self.meta_types <= len(TYPES):
            raise ValueError(f"meta_types must be from 3 to {len(TYPES)}, is {self.meta_types}")
        if not 20 <= self.meta_chains <= 500 or self.meta_chains % 2:
            raise ValueError(
                f"meta_chains must be an even number from 20 to 500, is {self.meta_chains}"
            )
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, is {self.candidates}")
        if self.size < 1000 or self.size % 50:
            raise ValueError(
                f"size must be a multiple of 50 and at least 1000 with sources, is {self.size}"
            )

    @property
    def key(self) -> str:
        """Names the rotation's random streams."""
        return f"{FOLDER}/{self.rotation}"


@dataclass(frozen=True)
class Source(Domain):
    """A training source: a domain that holds all question types, `questions` in all.

    Args:
        style: share of its questions in the second style.
    """

    style: float = 0.0
    questions: int = 0


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, ties sharing their ranks; nan where one side is constant."""
    ranks = []
    for values in (np.asarray(first, dtype=float), np.asarray(second, dtype=float)):
        below = (values[:, None] > values).sum(1)
        ranks.append(2 * below + (values[:, None] == values).sum(1))
    left, right = (rank - rank.mean() for rank in ranks)
    scale = math.sqrt((left @ left) * (right @ right))
    return float(left @ right) / scale if scale else math.nan


def whole_parts(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` that sum to `total`: rounding errors carry over."""
    done, parts = 0, []
    for number in range(len(shares)):
        upto = round(total * sum(shares[: number + 1]) / sum(shares))
        parts.append(upto - done)
        done = upto
    return parts


def sound_sources(settings: Settings) -> list[Source]:
    """The rotation's sources before anything is spoiled. Names say nothing about the rest."""
    rng = stream(settings.key, "sources")
    blocks = whole_parts(SIZES, settings.size // (STEPS * len(TYPES)))

    def dealt(values: Sequence) -> list:
        return rng.sample(list(values), len(NAMES))

    errors, blocks = dealt(ERRORS), dealt(blocks)
    rollouts, styles = dealt((4, 8) * 5), dealt(STYLES * 5)
    return [
        Source(name, errors=e, rollouts=r, style=s, questions=b * len(TYPES))
        for name, e, b, r, s in zip(NAMES, errors, blocks, rollouts, styles, strict=True)
    ]


def clean_items(settings: Settings) -> list[TrainItem]:
    """All training questions with clean labels, the sources mixed."""
    items = []
    for source in sound_sources(settings):
        profile = MIXED.scaled(source.errors)
        for place in range(source.questions):
            rng = stream(settings.key, "train", source.name, place)
            style = int(rng.random() < source.style)
            question = draw_question(rng, TYPES[place % len(TYPES)], style=style)
            chain, clean = labelled_chain(rng, question, profile, source.rollouts)
            items.append(TrainItem(source, question, chain, clean, clean, False, 0))
    stream(settings.key, "order").shuffle(items)
    return as_sampled(items)


def mean_label(items: Sequence[TrainItem], clean: bool = False) -> float:
    """The mean accuracy over all prefixes, as stored or as it was before."""
    scores = [sum(item.clean if clean else item.scores) / item.domain.rollouts for item in items]
    return sum(scores) / (STEPS * len(scores))


def misled_questions(sizes: Sequence[int], misled: float) -> list[int]:
    """How many questions of each source are spoiled, the best source first.

    The source at which spoiling begins is found by bisection such that `misled` of all questions
    are.
    """
    total = sum(sizes)

    def counts(start: float) -> list[float]:
        shares = (min(max((rank - start) / RAMP, 0), 1) for rank in range(len(sizes)))
        return [WORST * share * size for share, size in zip(shares, sizes, strict=True)]

    low, high = -float(RAMP), float(len(sizes))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle)) > misled * total else (low, middle)
    return whole_parts(counts(low), round(misled * total))


def answer_on(question: Question, scene: Scene) -> str | None:
    """The answer to a question of one part about another scene; None where it has none."""
    task, query = question.tasks[0], question.truth[0][0]
    if not askable(task, scene, query):
        return None
    return task.infer(scene, query, task.look(scene, query))


def other_image(rng: random.Random, items: Sequence[TrainItem], item: TrainItem) -> int:
    """An image of the same question type on which the right answer is another, or there is none."""
    question = item.question
    alike = [i for i, other in enumerate(items) if other.question.tasks == question.tasks]
    rng.shuffle(alike)
    return next(i for i in alike if answer_on(question, items[i].question.scene) != question.answer)


def spoiled_items(key: str, source: Source, items: Sequence[TrainItem]) -> list[TrainItem]:
    """All items, those of `source` with what was done to it; more of it spoils the same first."""
    result = list(items)
    places = [i for i, item in enumerate(items) if item.domain.name == source.name]
    order = stream(key, "spoil", source.name).sample(places, len(places))
    bad = set(order[: round(source.share * len(places))])
    for place in places:
        item, rng = items[place], stream(key, "spoil", source.name, place)
        changes: dict = {"domain": source}
        if place in bad:
            scores = tuple(unsound(rng, source, s, item.chain.sure) for s in item.clean)
            changes |= {"scores": scores, "corrupted": True}
            if source.corruption == "images swapped":
                changes["image_of"] = other_image(rng, items, item)
        result[place] = replace(item, **changes)
    return result


def dealt_sources(settings: Settings, sound: Sequence[Source], rng: random.Random) -> list[Source]:
    """The sources with qualities and kinds of corruption dealt over them at random."""
    if settings.same_quality:
        sizes = [source.questions for source in sound]
        counts = whole_parts(sizes, round(settings.misled * sum(sizes)))
        kinds, order = ["inverted"] * len(sound), list(sound)
    else:
        order = rng.sample(sound, len(sound))
        counts = misled_questions([source.questions for source in order], settings.misled)
        spoiled = sum(count > 0 for count in counts)
        own = [CORRUPTIONS[number % len(CORRUPTIONS)] for number in range(spoiled)]
        kinds = ["none"] * (len(order) - spoiled) + rng.sample(own, spoiled)
    dealt = [
        replace(source, corruption=kind if count else "none", share=count / source.questions)
        for source, count, kind in zip(order, counts, kinds, strict=True)
    ]
    return sorted(dealt, key=lambda source: source.name)


def apart(sources: Sequence[Source], values: Sequence[float]) -> bool:
    """Whether quality does not go along with these values of the sources."""
    return abs(correlation([s.quality for s in sources], values)) <= MAX_CORRELATION + 1e-9


def train_items(settings: Settings) -> list[TrainItem]:
    """All training questions, spoiled so that nothing but the labels tells the quality of a source.

    Raises ValueError if no such deal of the qualities is found.
    """
    clean, sound = clean_items(settings), sound_sources(settings)
    means = {source.name: mean_label(of_source(clean, source)) for source in sound}
    rng = stream(settings.key, "qualities")
    for _ in range(TRIES):
        sources = dealt_sources(settings, sound, rng)
        best = [means[source.name] for source in sources if not source.share]
        facts = zip(
            *((s.errors, means[s.name], s.questions, s.style, s.rollouts) for s in sources),
            strict=True,
        )
        if not settings.same_quality and not (
            max(best) - min(best) >= SOUND_GAP and all(apart(sources, fact) for fact in facts)
        ):
            continue
        items = clean
        for source in sources:
            items = spoiled_items(settings.key, source, items)
        stored = [mean_label(of_source(items, source)) for source in sources]
        if settings.same_quality or apart(sources, stored):
            return items
    raise ValueError(f"rotation {settings.rotation} has no such deal of qualities; take another")


def of_source(items: Sequence[TrainItem], source: Domain) -> list[TrainItem]:
    """The items of a source."""
    return [item for item in items if item.domain.name == source.name]


def clean_records(settings: Settings) -> list[dict]:
    """The train records with the labels and images they had before they were spoiled.

    They use the images that are written for the spoiled ones.
    """
    return train_records(clean_items(settings), f"{FOLDER}/images")


def meta_types(settings: Settings) -> list[str]:
    """The question types of the meta set; fewer types are the first of more."""
    order = stream(settings.key, "meta types").sample(TYPES, len(TYPES))
    return order[: settings.meta_types]


def source_card(items: Sequence[TrainItem]) -> list[dict]:
    """domains.json: what is known of every source, means over what is stored."""
    card = []
    for name in NAMES:
        own = [item for item in items if item.domain.name == name]
        source = own[0].domain
        card.append(
            {
                "name": name,
                "quality": source.quality,
                "corruption": source.corruption,
                "share": source.share,
                "errors": source.errors,
                "style": source.style,
                "rollouts": source.rollouts,
                "questions": source.questions,
                "mean_label": round(mean_label(own), 4),
                "mean_label_clean": round(mean_label(own, clean=True), 4),
            }
        )
    return card


def build(settings: Settings) -> dict[str, bytes]:
    """Every file of the world of sources by its path; image paths begin with the folder's name."""
    folder = f"{FOLDER}/"
    items = train_items(settings)
    files = train_files(items, folder)
    files[f"{folder}domains.json"] = json_lines(source_card(items))
    records, images = meta_set(
        settings.key, settings.meta_chains // 2, meta_types(settings), f"{folder}images"
    )
    files |= {f"{folder}meta.json": json_lines(records), **images}
    return files | held_files(settings.key, SETS, settings.size, settings.candidates, folder)


def describe(settings: Settings, card: Sequence[dict]) -> str:
    """The sources as a Markdown table, with what the rotation holds apart."""
    columns = ("name", "quality", "corruption", "errors", "mean_label_clean", "mean_label")
    columns += ("questions", "rollouts", "style")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in card:
        shown = {"name": f"`{row['name']}`"} | {
            key: f"{row[key]:.2f}"
            for key in ("quality", "errors", "mean_label", "mean_label_clean")
        }
        lines.append("| " + " | ".join(str((row | shown)[key]) for key in columns) + " |")
    quality = [row["quality"] for row in card]
    if not settings.same_quality:
        found = [
            f"{correlation(quality, [row[key] for row in card]):+.2f} ({key})" for key in APART
        ]
        lines.append(f"rank correlation of quality: {', '.join(found)}")
    lines.append(f"meta set: {settings.meta_chains} chains, {', '.join(meta_types(settings))}")
    return "\n".join(lines)
