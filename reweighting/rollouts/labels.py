"""Step prefixes of chains, their Monte-Carlo accuracies, and which of them to train on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records.answers.comparison import is_right
from ..records.samples import CandidatesSample
from ..records.steps import split_steps
from ..records.subsets import balanced
from ..system.server.errors import ItemError
from .chains import usable
from .reasoner import Query
from .sampler import Sampler
from .schedules import Schedule


@dataclass(frozen=True)
class Prefix:
    """The first steps of a chain, to be labelled."""

    sample: CandidatesSample
    choices: list[str] | None
    record_id: Any
    text: str
    sid: int  # number of steps, from 1
    last: bool  # whether it is the whole chain up to the final answer
    right: bool  # whether its own chain ends with the right answer


def prefixes_of(
    samples: Sequence[CandidatesSample],
    records: Sequence[dict],
    chains_per_question: int,
    pattern: str | None = None,
) -> list[Prefix]:
    """All prefixes of the first ``chains_per_question`` usable chains of every question.

    Args:
        records: all records of the file that ``samples`` come from.
    """
    prefixes = []
    for sample in samples:
        record = records[sample.record - 1]
        chains = [i for i, text in enumerate(sample.candidates) if usable(text, pattern)]
        for index in chains[:chains_per_question]:
            steps = split_steps(sample.candidates[index], pattern)
            for sid, text in enumerate(steps, start=1):
                prefixes.append(
                    Prefix(
                        sample,
                        record.get("choices"),
                        record.get("id", sample.record),
                        text,
                        sid,
                        sid == len(steps),
                        sample.true_false[index],
                    )
                )
    return prefixes


async def count_right(
    sampler: Sampler, prefix: Prefix, schedule: Schedule
) -> tuple[int, int] | ItemError:
    """How many rollouts of a prefix end right, and of how many, in the order of their indices.

    A completion without a final answer counts as wrong, as is usual for Monte-Carlo estimates of
    this kind: the reasoner did not get there. A rollout that is lost (:class:`ItemError`) counts as
    nothing. What it would have said is unknown, so the prefix has no label until it is sampled.
    """
    [image] = prefix.sample.images
    query = Query(prefix.sample.question, image, prefix.text)
    own = schedule.counts_own_chain
    score, times, asked = int(own and prefix.right), int(own), 0
    while more := schedule.wanted(score, times, asked):
        for rollout in await sampler.rollouts(query, range(asked, asked + more)):
            if isinstance(rollout, ItemError):
                return rollout
            if schedule.counts(rollout.text, prefix.last):
                times += 1
                score += is_right(rollout.text, prefix.sample.answer, prefix.choices)
        asked += more
    return score, times


def train_records(
    prefixes: Sequence[Prefix],
    counts: Sequence[tuple[int, int]],
    records: Sequence[dict],
    estimate: str,
) -> list[dict]:
    """Train records in the published format.

    Args:
        counts: right rollouts and all rollouts of every prefix.
        records: all records of the file of candidates.
        estimate: how the accuracy is estimated: ``frequency``, score / times, or ``posterior``, see
            :func:`posterior_accuracies`.
    """
    accuracies = [score / times for score, times in counts]
    if estimate == "posterior":
        for domain in {prefix.sample.dataset for prefix in prefixes}:
            here = [i for i, prefix in enumerate(prefixes) if prefix.sample.dataset == domain]
            scores, times = zip(*(counts[i] for i in here), strict=True)
            for i, accuracy in zip(here, posterior_accuracies(scores, times), strict=True):
                accuracies[i] = accuracy
    return [
        {
            "id": prefix.record_id,
            "sid": prefix.sid,
            "input": prefix.sample.question,
            "add": prefix.text,
            "ground_truth": prefix.sample.answer,
            "image_path": records[prefix.sample.record - 1]["image_path"],
            "dataset": prefix.sample.dataset,
            "score": score,
            "times": times,
            "accuracy": accuracy,
        }
        for prefix, (score, times), accuracy in zip(prefixes, counts, accuracies, strict=True)
    ]


def posterior_accuracies(
    scores: Sequence[int], times: Sequence[int], iterations: int = 200
) -> list[float]:
    """Posterior means of the accuracies of prefixes of one domain (empirical Bayes).

    The prior is the distribution of accuracies under which the domain's counts are likeliest: the
    non-parametric maximum likelihood estimate (Kiefer and Wolfowitz, 1956) on a grid, by EM. On
    average the posterior mean is closer to the truth than score / times, but every value is drawn
    towards those of its domain. The likelihood does not depend on the rule that stopped sampling.
    """
    grid = np.linspace(0.005, 0.995, 100)
    counts, where = np.unique(np.stack([scores, times], axis=1), axis=0, return_inverse=True)
    how_often = np.bincount(where.ravel())
    right, wrong = counts[:, :1], counts[:, 1:] - counts[:, :1]
    likelihood = grid**right * (1 - grid) ** wrong  # [distinct counts, grid]
    prior = np.full(len(grid), 1 / len(grid))
    for _ in range(iterations):
        posterior = likelihood * prior
        posterior /= posterior.sum(1, keepdims=True)
        prior = how_often @ posterior / how_often.sum()
    return (posterior @ grid)[where.ravel()].tolist()


def limit_per_domain(records: Sequence[dict], per_domain: int, seed: int) -> list[dict]:
    """At most ``per_domain`` train records of every domain, in their order, by the paper's rule.

    Accuracies strictly between 0 and 1 come first: the outcome of such a prefix is open. Then come
    prefixes that always or never end right, equally many of both while they last, then the rest.
    """
    domains: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, record in enumerate(records):
        accuracy = record["accuracy"]
        if record.get("times"):  # --estimate posterior never says 0 or 1
            accuracy = record["score"] / record["times"]
        kind = {0: "wrong", 1: "right"}.get(accuracy, "fractional")
        domains[record["dataset"]][kind].append(index)
    kept: set[int] = set()
    for name, kinds in domains.items():
        rng = random.Random(f"{seed}/{name}")
        for kind in ("fractional", "right", "wrong"):
            rng.shuffle(kinds[kind])
        fractional = kinds["fractional"][:per_domain]
        certain = balanced(kinds["right"], kinds["wrong"], per_domain - len(fractional))
        kept.update(fractional, certain)
    return [records[index] for index in sorted(kept)]
