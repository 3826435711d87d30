"""Which train and meta records the derivative is measured on."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import dataclass
from itertools import islice

from ...bilevel.batches import QuestionStream, ShuffledStream, filled
from ...records.chains import questions_of
from ...records.dataset import Data, train_units
from ...records.samples import MetaSample, TrainSample

LOOKED_AT = 200  # meta batches from which the mean number of units in a batch is taken


@dataclass
class MetaQuestions:
    """The meta units of one loss: single chains, or whole questions whose chains are ranked.

    Args:
        loss: ``mse``, ``bce`` or ``rank``.
        groups: units by group; a unit holds its chains. The groups are random and disjoint.
        a_batch: mean number of units in a meta batch of the run.
        said: how they were drawn, for people.
    """

    loss: str
    groups: list[list[list[MetaSample]]]
    a_batch: float
    said: str


@dataclass
class DomainSample:
    """What was drawn of one domain.

    Args:
        share: of the domain among all train units.
        records: number of them in the file.
        label: mean of all labels of the domain.
    """

    name: str
    units: list[list[TrainSample]]
    share: float
    records: int
    label: float


def sample_domains(arguments: argparse.Namespace, data: Data) -> list[DomainSample]:
    """``--chains_per_domain`` units of every domain, drawn at random without replacement."""
    units, train = train_units(arguments, data.train), data.train
    by_domain: dict[str, list[int]] = {domain: [] for domain in data.domains}
    for number in range(len(units)):
        by_domain[train.domain(units.members(number)[0])].append(number)
    rng, found = random.Random(arguments.seed), []
    for name, numbers in by_domain.items():
        members = [index for number in numbers for index in units.members(number)]
        labels = [label for index in members for label in train.accuracies(index)]
        chosen = rng.sample(numbers, min(arguments.chains_per_domain, len(numbers)))
        found.append(
            DomainSample(
                name,
                [units[number] for number in chosen],
                len(numbers) / len(units),
                len(members),
                sum(labels) / len(labels),
            )
        )
    return found


def sample_meta(arguments: argparse.Namespace, data: Data, loss: str) -> MetaQuestions | None:
    """At most ``--meta_chains`` chains in ``--meta_groups`` groups; None if nothing can be ranked.

    The published losses deal single chains at random, as a run draws them; ``rank`` whole
    questions, or of a question with more chains than a batch holds as many as it holds.
    """
    size, seed = arguments.meta_batch_size, 2 * arguments.seed + 1
    meta = data.meta
    stream: QuestionStream | ShuffledStream
    if loss == "rank":
        questions = questions_of(meta)
        truth = meta.truth
        both = [q for q in questions if len(set(truth[q].tolist())) == 2]
        meta = meta.take(sorted(index for q in both for index in q))
        count, size = len(both), max(2, size)
        if count < 2 * arguments.meta_groups:
            return None
        stream = QuestionStream(meta, size, seed)
        visits = [unit for batch in islice(stream, count) for unit in batch][:count]
        a_batch = sum(len(batch) for batch in islice(stream, LOOKED_AT)) / LOOKED_AT
        said = f"{len(questions) - count:,} of {len(questions):,} questions have no pair"
    else:
        count, a_batch, said = len(meta), float(size), ""
        stream = ShuffledStream(count, count, seed)
        visits = [(index,) for index in next(iter(stream))]
    units = [[meta[index] for index in visit] for visit in visits]
    if arguments.meta_chains:
        units = next(iter(filled([*units, units[0] * arguments.meta_chains],
                                 arguments.meta_chains, len)))  # fmt: skip
    groups = [units[k :: arguments.meta_groups] for k in range(arguments.meta_groups)]
    chains = sum(map(len, units))
    what = f"{len(units):,} questions with {chains:,} chains" if loss == "rank" else (
        f"{chains:,} of {len(data.meta):,} chains")  # fmt: skip
    said = f"{what} in {len(groups)} groups" + (f"; {said}" if said else "")
    return MetaQuestions(loss, groups, a_batch, said)


def describe(
    arguments: argparse.Namespace, domains: list[DomainSample], meta: dict[str, MetaQuestions]
) -> list[str]:
    """How it was sampled, a line each."""
    unit = "chains" if arguments.batch_by == "cot" else "records"
    counts = Counter(len(domain.units) for domain in domains)
    drawn = ", ".join(f"{size:,} {unit} of {n:,} domains" for size, n in sorted(counts.items()))
    lines = [f"train sample: {drawn}, drawn at random (--seed {arguments.seed})"]
    for name, questions in meta.items():
        lines.append(f"meta sample, {name} loss ({questions.loss}): {questions.said}")
    return lines
