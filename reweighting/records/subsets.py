"""Rivals of reweighting: train on a part of the records, or on some more often, all weighted 1.

They train on the same file and are compared with learned weights (DreamPRM, table 1). Each takes
indices of records and gives indices back, so that nothing is copied before it is chosen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .chains import chains_of
from .samples import TrainSample

RULES = ("all", "random", "random_chains", "s1", "bis", "car", "outcome")
SIZED = ("random", "random_chains", "s1", "bis", "car")  # those that need a size or a share
DEFAULT_SIZE = 2000  # records, where neither a size nor a share is given
SMOOTHING = 0.05  # α of the balanced-information score


def choose(
    samples: list[TrainSample],
    rule: str,
    size: int | None,
    step_length: Sequence[float],
    seed: int,
    share: float | None = None,
    wrong_times: int = 1,
) -> list[TrainSample]:
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
    if not samples or (rule == "all" and wrong_times == 1):
        return samples
    kept: Iterable[int] = range(len(samples))
    if rule != "all":
        kept = sorted(_kept(samples, rule, size, step_length, random.Random(seed), share))
    last = -1 if rule == "outcome" else 0  # of the labels of a conversation the last one
    chosen = [samples[index] for index in repeated(samples, kept, wrong_times, last)]
    return [_last_label(sample) for sample in chosen] if rule == "outcome" else chosen


def _kept(
    samples: Sequence[TrainSample],
    rule: str,
    size: int | None,
    step_length: Sequence[float],
    rng: random.Random,
    share: float | None,
) -> Iterable[int]:
    """Indices of the records that a rule keeps; there is at least one record."""
    if rule == "outcome":
        lengths = [len(sample.text) for sample in samples]
        return (max(chain, key=lengths.__getitem__) for chain in chains_of(samples))
    if rule == "s1":
        return s1_filter(samples, size, step_length, rng, share)
    wanted = size if share is None else max(1, int(share * len(samples)))
    if rule == "random":
        return rng.sample(range(len(samples)), min(wanted, len(samples)))
    if rule == "car":
        return clustered_and_ranked(samples, wanted, rng)
    share = min(1.0, wanted / len(samples)) if share is None else share
    if rule == "random_chains":
        return best_chains(samples, share, lambda chain: rng.random())
    return best_chains(samples, share, lambda chain: _information(samples, chain))


def best_chains(
    samples: Sequence[TrainSample], share: float, score: Callable[[list[int]], float]
) -> set[int]:
    """Indices of the records of the chains of every domain with the highest score.

    As in the code of BIS (arXiv 2602.04145) every domain keeps the same share of its chains,
    rounded down, and at least one chain.
    """
    by_domain: dict[str, list[list[int]]] = defaultdict(list)
    for chain in chains_of(samples):
        by_domain[samples[chain[0]].domain].append(chain)
    kept: set[int] = set()
    for chains in by_domain.values():
        best = sorted(chains, key=score, reverse=True)
        kept.update(*best[: max(1, int(share * len(chains)))])
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


def _information(samples: Sequence[TrainSample], chain: list[int]) -> float:
    return balanced_information([a for index in chain for a in samples[index].accuracies])


def clustered_and_ranked(
    samples: Sequence[TrainSample], size: int, rng: random.Random
) -> list[int]:
    """Indices of the records of diverse and good questions (clustering and ranking).

    After CaR (arXiv 2402.18191), which joins the best of all by a quality score with the best of
    each of √(n/2) clusters: DreamPRM's CaR-PRM filters questions so. Here n questions are clustered
    by their words; the best of each cluster comes first, better clusters before others, and then
    the best of all, while their records fit into ``size``. CaR's quality score is a model trained
    on instructions that experts have revised, which chains with labels do not have: the quality of
    a question is the mean :func:`balanced_information` of its chains.
    """
    from .clusters import cluster  # imports numpy, which --help does without

    chains: dict[tuple, list[list[int]]] = defaultdict(list)
    for chain in chains_of(samples):
        chains[samples[chain[0]].chain].append(chain)
    questions = list(chains.values())
    quality = [sum(_information(samples, c) for c in own) / len(own) for own in questions]
    texts = [samples[own[0][0]].prompts[0].question for own in questions]
    labels = cluster(texts, max(1, int((len(texts) / 2) ** 0.5)), rng)
    ranked = sorted(range(len(questions)), key=quality.__getitem__, reverse=True)
    first = {labels[question]: question for question in reversed(ranked)}  # the best of each
    order = sorted(ranked, key=lambda question: first[labels[question]] != question)
    kept: list[int] = []
    for question in order:
        records = [index for chain in questions[question] for index in chain]
        if not kept or len(kept) + len(records) <= size:
            kept += records
    return kept


def s1_filter(
    samples: Sequence[TrainSample],
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
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    all_of: dict[int, int] = defaultdict(int)
    for index, sample in enumerate(samples):
        steps = sample.prompts[-1].steps
        all_of[len(steps)] += 1
        characters = len("".join(steps)) / len(steps)
        if low <= characters <= high:
            accuracy = sum(sample.accuracies) / len(sample.accuracies)
            kind = "fractional" if 0 < accuracy < 1 else str(round(accuracy))
            groups[len(steps)][kind].append(index)
    kept: set[int] = set()
    for number, kinds in groups.items():
        wanted = size if share is None else max(1, int(share * all_of[number]))
        for indices in kinds.values():
            rng.shuffle(indices)
        fractional = kinds["fractional"][:wanted]
        kept.update(fractional, balanced(kinds["1"], kinds["0"], wanted - len(fractional)))
    return kept


def balanced(right: list[int], wrong: list[int], count: int) -> list[int]:
    """``count`` items from both lists, in equal numbers while they last."""
    fewer, more = sorted((right, wrong), key=len)
    from_fewer = min(len(fewer), count // 2)
    return fewer[:from_fewer] + more[: count - from_fewer]


def repeated(
    samples: Sequence[TrainSample], kept: Iterable[int], times: int, first: int = 0
) -> list[int]:
    """``kept`` with every record that went wrong ``times`` times (negative data up-sampled).

    Steps are seldom wrong by Monte-Carlo labels; Athena (arXiv 2506.09532) up-samples those that
    are. A record went wrong if one of its labels, from ``first`` on, is 0: no continuation from
    there ended right.
    """
    went_wrong = lambda index: min(samples[index].accuracies[first:]) == 0  # noqa: E731
    return [i for i in kept for _ in range(times if times > 1 and went_wrong(i) else 1)]


def _last_label(sample: TrainSample) -> TrainSample:
    return replace(sample, prompts=sample.prompts[-1:], accuracies=sample.accuracies[-1:])
