"""Data-selection baselines of the paper: train on a part of the records, all weighted 1.

They train on the same file and are compared with reweighting (DreamPRM, table 1).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from .chains import chains_of
from .samples import TrainSample


def choose(
    samples: list[TrainSample],
    rule: str,
    size: int,
    step_length: Sequence[float],
    seed: int,
) -> list[TrainSample]:
    """The records that a rule keeps, in the order of the file.

    Args:
        rule: ``all``; ``random``: ``size`` records; ``s1``: see :func:`s1_filter`; ``outcome``:
            the longest prefix of each chain, and the last label of a conversation, which train an
            outcome reward model.
        size: records for ``random``; records per step index for ``s1``.
        step_length: least and greatest number of characters per step, for ``s1``.
    """
    rng = random.Random(seed)
    if rule == "random":
        kept = set(rng.sample(range(len(samples)), min(size, len(samples))))
    elif rule == "s1":
        kept = s1_filter(samples, size, step_length, rng)
    elif rule == "outcome":
        lengths = [len(sample.text) for sample in samples]
        kept = {max(chain, key=lengths.__getitem__) for chain in chains_of(samples)}
        samples = [
            replace(sample, prompts=sample.prompts[-1:], accuracies=sample.accuracies[-1:])
            for sample in samples
        ]
    else:
        return samples
    return [sample for index, sample in enumerate(samples) if index in kept]


def s1_filter(
    samples: list[TrainSample], per_step: int, step_length: Sequence[float], rng: random.Random
) -> set[int]:
    """Indices of the records that the published s1-style filter keeps (s1-PRM of the paper).

    Among prefixes whose mean step length is within ``step_length``, those with an accuracy strictly
    between 0 and 1 come first: the question is neither trivial nor hopeless. Each step index is
    then filled up to ``per_step`` with prefixes of accuracy 0 or 1, in equal numbers while they
    last.
    """
    low, high = step_length
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, sample in enumerate(samples):
        steps = sample.prompts[-1].steps
        characters = len("".join(steps)) / len(steps)
        if low <= characters <= high:
            accuracy = sum(sample.accuracies) / len(sample.accuracies)
            kind = "fractional" if 0 < accuracy < 1 else str(round(accuracy))
            groups[len(steps)][kind].append(index)
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
