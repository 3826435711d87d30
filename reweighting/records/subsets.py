"""Rivals of reweighting: train on a part of the records, or on some more often, all weighted 1.

They train on the same file and are compared with learned weights (DreamPRM, table 1). Each gives
indices back, so that no sample is built before it is chosen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .clusters import cluster
from .tables import TrainRecords

SMOOTHING = 0.05  # α of the balanced-information score


def choose(
    records: TrainRecords,
    rule: str,
    size: int | None,
    step_length: Sequence[float],
    seed: int,
    share: float | None = None,
    wrong_times: int = 1,
) -> TrainRecords:
    """The records that a rule keeps, in the order of the file.

    Args:
        rule: ``all``; ``random``: single records; ``random_chains`` and ``bis``: chains at random,
            or those with the highest :func:`balanced_information`, see :func:`best_chains`;
            ``s1``: see :func:`s1_filter`; ``car``: see :func:`clustered_and_ranked`; ``outcome``:
            the longest prefix of each chain, and the last label of a conversation, which train an
            outcome reward model.
        size: records to keep, exactly for ``random``, about for rules that take whole chains; for
            ``s1`` records per step index. None: ``share`` says it.
        step_length: least and greatest number of characters per step, for ``s1``.
        share: part of all records, or for ``s1`` of those with each step index; ``size`` is
            None then.
        wrong_times: how often a record counts whose steps went wrong, see :func:`repeated`.
    """
    if rule != "all" and records:
        rng = random.Random(seed)
        records = records.take(sorted(_kept(records, rule, size, step_length, rng, share)))
        if rule == "outcome":
            records = records.last_prompts()
    return records.take(repeated(records, wrong_times)) if wrong_times > 1 else records


def _kept(
    records: TrainRecords,
    rule: str,
    size: int | None,
    step_length: Sequence[float],
    rng: random.Random,
    share: float | None,
) -> Iterable[int]:
    """Indices of the records that a rule keeps; there is at least one record."""
    if rule == "outcome":
        lengths = records.characters()
        return (max(chain, key=lengths.__getitem__) for chain in records.chains)
    if rule == "s1":
        return s1_filter(records, size, step_length, rng, share)
    wanted = size if share is None else part(share, len(records))
    if rule == "random":
        return rng.sample(range(len(records)), min(wanted, len(records)))
    if rule == "car":
        return clustered_and_ranked(records, wanted, rng)
    share = min(1.0, wanted / len(records)) if share is None else share
    if rule == "random_chains":
        return best_chains(records, share, lambda chain: rng.random())
    return best_chains(records, share, lambda chain: _information(records, chain))


def best_chains(
    records: TrainRecords, share: float, score: Callable[[list[int]], float]
) -> set[int]:
    """Indices of the records of the chains of every domain with the highest score.

    As in the code of BIS (arXiv 2602.04145) every domain keeps the same share of its chains,
    rounded down, and at least one chain.
    """
    chains = records.chains
    by_domain: dict[str, list[int]] = defaultdict(list)  # numbers of chains
    scores = []
    for number, chain in enumerate(chains):
        by_domain[records.domain(chain[0])].append(number)
        scores.append(score(chain))
    kept: set[int] = set()
    for numbers in by_domain.values():
        best = sorted(numbers, key=scores.__getitem__, reverse=True)
        kept.update(*(chains[number] for number in best[: part(share, len(numbers))]))
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


def _information(records: TrainRecords, chain: list[int]) -> float:
    return balanced_information([a for index in chain for a in records.accuracies(index)])


def clustered_and_ranked(records: TrainRecords, size: int, rng: random.Random) -> list[int]:
    """Indices of the records of diverse and good questions (clustering and ranking).

    After CaR (arXiv 2402.18191), which joins the best of all by a quality score with the best of
    each of √(n/2) clusters: DreamPRM's CaR-PRM filters questions so. Here n questions are clustered
    by their words; the best of each cluster comes first, better clusters before others, and then
    the best of all, while their records fit into ``size``. CaR's quality score is a model trained
    on instructions that experts have revised, which chains with labels do not have: the quality of
    a question is the mean :func:`balanced_information` of its chains.
    """
    chains: dict[tuple, list[list[int]]] = defaultdict(list)
    texts = {}
    for chain in records.chains:
        first = records[chain[0]]
        chains[first.chain].append(chain)
        texts[first.chain] = first.prompts[0].question
    questions = list(chains.values())
    quality = [sum(_information(records, c) for c in own) / len(own) for own in questions]
    labels = cluster(list(texts.values()), max(1, int((len(texts) / 2) ** 0.5)), rng)
    ranked = sorted(range(len(questions)), key=quality.__getitem__, reverse=True)
    first_of = {labels[question]: question for question in reversed(ranked)}  # the best of each
    order = sorted(ranked, key=lambda question: first_of[labels[question]] != question)
    kept: list[int] = []
    for question in order:
        indices = [index for chain in questions[question] for index in chain]
        if not kept or len(kept) + len(indices) <= size:
            kept += indices
    return kept


def s1_filter(
    records: TrainRecords,
    size: int | None,
    step_length: Sequence[float],
    rng: random.Random,
    share: float | None = None,
) -> set[int]:
    """Indices of the records that the published s1-style filter keeps (s1-PRM of the paper).

    Among prefixes whose mean step length is within ``step_length``, those with an accuracy strictly
    between 0 and 1 come first: the question is neither trivial nor hopeless. Each step index is
    then filled up with prefixes of accuracy 0 or 1, in equal numbers while they last, to ``size``
    records, or to ``share`` of all that have it.
    """
    low, high = step_length
    steps = records.steps()
    lengths = records.characters() / steps
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in np.flatnonzero((low <= lengths) & (lengths <= high)).tolist():
        accuracies = records.accuracies(index)
        accuracy = sum(accuracies) / len(accuracies)
        kind = "fractional" if 0 < accuracy < 1 else str(round(accuracy))
        groups[int(steps[index])][kind].append(index)
    kept: set[int] = set()
    for number, kinds in groups.items():
        wanted = size if share is None else part(share, int((steps == number).sum()))
        for indices in kinds.values():
            rng.shuffle(indices)
        fractional = kinds["fractional"][:wanted]
        kept.update(fractional, balanced(kinds["1"], kinds["0"], wanted - len(fractional)))
    return kept


def part(share: float, count: int) -> int:
    """``share`` of ``count``, rounded down, but at least 1; 0.29 of 200 is 58, not 57.99…"""
    return max(1, int(share * count + 1e-9))


def balanced(right: list[int], wrong: list[int], count: int) -> list[int]:
    """``count`` items from both lists, in equal numbers while they last."""
    fewer, more = sorted((right, wrong), key=len)
    from_fewer = min(len(fewer), count // 2)
    return fewer[:from_fewer] + more[: count - from_fewer]


def repeated(records: TrainRecords, times: int) -> list[int]:
    """Indices of all records, of those that went wrong ``times`` times (up-sampled negatives).

    Steps are seldom wrong by Monte-Carlo labels; Athena (arXiv 2506.09532) up-samples those that
    are. A record went wrong if one of its labels is 0: no continuation from there ended right.
    """
    return [
        index
        for index in range(len(records))
        for _ in range(times if min(records.accuracies(index)) == 0 else 1)
    ]
