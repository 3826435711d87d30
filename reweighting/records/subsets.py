"""Data-selection baselines of the paper: train on a part of the records, all weighted 1.

They are options of training over the same file, to be compared with reweighting (DreamPRM,
table 1).
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
    """The records a rule keeps, in their order in the file.

    Args:
        rule: ``all``; ``random``, ``size`` of them; ``s1``, see :func:`s1_filter`; ``outcome``,
            the longest prefix of each chain only, which trains an outcome reward model. Of a
            conversation that is its last label.
        size: records for ``random``; records per step index for ``s1``.
        step_length: least and most characters a step, for ``s1``.
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
    """Indices that the published s1-style filter keeps (paper-facts: s1-PRM).

    Of the prefixes whose steps have a middling length, those with an accuracy strictly between 0
    and 1 come first: such a question is neither trivial nor hopeless. Each step index is then
    topped up to ``per_step`` with certain ones, right and wrong in equal numbers while they last.
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
    """``count`` of both lists, in equal numbers while they last."""
    fewer, more = sorted((right, wrong), key=len)
    from_fewer = min(len(fewer), count // 2)
    return fewer[:from_fewer] + more[: count - from_fewer]
