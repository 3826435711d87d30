"""Data-selection baselines: train on a part of the records, all weighted 1.

They train on the same file and are compared with reweighting (DreamPRM, table 1).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from .chains import chains_of
from .samples import TrainSample
from .tables import TrainRecords

AnySamples = TypeVar("AnySamples", list[TrainSample], TrainRecords)
SMOOTHING = 0.05  # α of the balanced-information score


def choose(
    samples: AnySamples,
    rule: str,
    size: int,
    step_length: Sequence[float],
    seed: int,
) -> AnySamples:
    """The records that a rule keeps, in the order of the file.

    Args:
        rule: ``all``; ``random``: ``size`` records; ``s1``: see :func:`s1_filter`; ``bis``: the
            chains with the highest :func:`balanced_information`, the same share of every domain;
            ``outcome``: the longest prefix of each chain, and the last label of a conversation,
            which train an outcome reward model.
        size: records for ``random`` and, about, for ``bis``; records per step index for ``s1``.
        step_length: least and greatest number of characters per step, for ``s1``.
    """
    rng = random.Random(seed)
    if rule == "random":
        kept = set(rng.sample(range(len(samples)), min(size, len(samples))))
    elif rule == "s1":
        kept = s1_filter(samples, size, step_length, rng)
    elif rule == "bis":
        kept = most_informative(samples, size / len(samples)) if samples else set()
    elif rule == "outcome":
        lengths = facts_of(samples).characters()
        kept = {max(chain, key=lengths.__getitem__) for chain in chains_of(samples)}
        samples = last_prompts(samples)
    else:
        return samples
    return taken(samples, sorted(kept))


def most_informative(samples: Sequence[TrainSample], share: float) -> set[int]:
    """Indices of the records of the best chains of every domain, at least one chain each."""
    chains, facts = chains_of(samples), facts_of(samples)
    by_domain: dict[str, list[int]] = defaultdict(list)  # numbers of chains
    scores = []
    for number, chain in enumerate(chains):
        by_domain[facts.domain(chain[0])].append(number)
        scores.append(balanced_information([a for index in chain for a in facts.accuracies(index)]))
    kept: set[int] = set()
    for numbers in by_domain.values():
        best = sorted(numbers, key=scores.__getitem__, reverse=True)
        kept.update(*(chains[number] for number in best[: max(1, int(share * len(numbers)))]))
    return kept


def balanced_information(accuracies: Sequence[float]) -> float:
    """(p (1 - p) + α) R of a chain with these accuracies of its prefixes (arXiv 2602.04145).

    p is the share of positive prefixes, those with an accuracy above 0, and R their mean accuracy,
    or 1 where there is none. So chains rank high that have steps of both kinds, and sure ones.
    """
    positive = [accuracy for accuracy in accuracies if accuracy > 0]
    p = len(positive) / len(accuracies)
    mean = sum(positive) / len(positive) if positive else 1.0
    return (p * (1 - p) + SMOOTHING) * mean


def s1_filter(
    samples: Sequence[TrainSample], per_step: int, step_length: Sequence[float], rng: random.Random
) -> set[int]:
    """Indices of the records that the published s1-style filter keeps (s1-PRM of the paper).

    Among prefixes whose mean step length is within ``step_length``, those with an accuracy strictly
    between 0 and 1 come first: the question is neither trivial nor hopeless. Each step index is
    then filled up to ``per_step`` with prefixes of accuracy 0 or 1, in equal numbers while they
    last.
    """
    low, high = step_length
    facts = facts_of(samples)
    steps = facts.steps()
    fitting = (low <= facts.characters() / steps) & (facts.characters() / steps <= high)
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in np.flatnonzero(fitting).tolist():
        accuracies = facts.accuracies(index)
        accuracy = sum(accuracies) / len(accuracies)
        kind = "fractional" if 0 < accuracy < 1 else str(round(accuracy))
        groups[int(steps[index])][kind].append(index)
    kept: set[int] = set()
    for kinds in groups.values():
        for indices in kinds.values():
            rng.shuffle(indices)
        fractional = kinds["fractional"][:per_step]
        kept.update(fractional, balanced(kinds["1"], kinds["0"], per_step - len(fractional)))
    return kept


def balanced(right: list[int], wrong: list[int], count: int) -> list[int]:
    """``count`` items from both lists, in equal numbers while they last."""
    fewer, more = sorted((right, wrong), key=len)
    from_fewer = min(len(fewer), count // 2)
    return fewer[:from_fewer] + more[: count - from_fewer]


class _Facts:
    """What rules ask of a list of samples, as :class:`~.tables.TrainRecords` answer it."""

    def __init__(self, samples: Sequence[TrainSample]) -> None:
        self.samples = samples

    def domain(self, index: int) -> str:
        return self.samples[index].domain

    def accuracies(self, index: int) -> list[float]:
        return self.samples[index].accuracies

    def steps(self) -> np.ndarray:
        return np.array([len(sample.prompts[-1].steps) for sample in self.samples])

    def characters(self) -> np.ndarray:
        return np.array([sum(map(len, sample.prompts[-1].steps)) for sample in self.samples])


def facts_of(samples: Sequence[TrainSample]) -> TrainRecords | _Facts:
    """What rules ask of samples, without building each sample of a table."""
    return samples if isinstance(samples, TrainRecords) else _Facts(samples)


def taken(samples: Sequence[TrainSample], indices: Sequence[int]) -> Any:
    """These of the samples, in the order of ``indices``."""
    if isinstance(samples, TrainRecords):
        return samples.take(indices)
    return [samples[index] for index in indices]


def last_prompts(samples: Sequence[TrainSample]) -> Any:
    """The samples with their last prompt and label only."""
    if isinstance(samples, TrainRecords):
        return samples.last_prompts()
    return [
        replace(sample, prompts=sample.prompts[-1:], accuracies=sample.accuracies[-1:])
        for sample in samples
    ]
