"""Best-of-N: score every step prefix of every candidate chain and pick one chain a question.

All candidates of a question share image and question, so they go through one prefix tree (see
:mod:`reweighting.prefix_tree`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch

from .prefix_tree import pack
from .prompts import EncodedPrompts, chain_prompts
from .reward_model import RewardModel
from .samples import CandidatesSample

Aggregation = Callable[[torch.Tensor], torch.Tensor]
# From the log-odds z of a chain's prefixes ``[steps]`` to one number; larger is better.
AGGREGATIONS: dict[str, Aggregation] = {
    "mean_log_odds": torch.mean,
    "sum_log_odds": torch.sum,
    "mean": lambda z: torch.sigmoid(z).mean(),
    "min": lambda z: torch.sigmoid(z).min(),
    "max": lambda z: torch.sigmoid(z).max(),
    "product": lambda z: torch.nn.functional.logsigmoid(z).sum(),  # its logarithm: no underflow
    "last": lambda z: torch.sigmoid(z[-1]),
}


@torch.no_grad()
def score_candidates(
    model: RewardModel,
    samples: Sequence[CandidatesSample],
    max_tokens_per_batch: int = 8192,
) -> Iterator[list[list[float]]]:
    """Log-odds of every step prefix of every candidate, one list of lists a question.

    Args:
        max_tokens_per_batch: questions are packed together up to this many tokens; a question
            whose tree is larger is cut into trees of fewer candidates.
    """
    device = model.LN.weight.device
    pending: list[EncodedPrompts] = []
    shapes: list[list[int]] = []  # steps of every candidate, a list a question
    tokens = 0

    def flush() -> Iterator[list[list[float]]]:
        if not pending:
            return
        flat = iter(model(pack(pending).to(device)).tolist())
        for steps in shapes:
            yield [[next(flat) for _ in range(count)] for count in steps]

    for sample in samples:
        prompts = [chain_prompts(sample.question, response) for response in sample.candidates]
        encoded = model.encoder.encode(sample.image, [p for chain in prompts for p in chain])
        steps = [len(chain) for chain in prompts]
        size = _tree_size(encoded.token_ids)
        if pending and tokens + size > max_tokens_per_batch:
            yield from flush()
            pending, shapes, tokens = [], [], 0
        if size > max_tokens_per_batch and len(steps) > 1:
            yield [
                scores
                for candidate in sample.candidates
                for [scores] in score_candidates(
                    model, [_with_candidates(sample, [candidate])], max_tokens_per_batch
                )
            ]
            continue
        pending.append(encoded)
        shapes.append(steps)
        tokens += size
    yield from flush()


def select(log_odds: Sequence[Sequence[float]], aggregation: str = "mean_log_odds") -> int:
    """Index of the best candidate; the first one among equals.

    Args:
        log_odds: z of every step prefix, one list a candidate.
        aggregation: a name of :data:`AGGREGATIONS`.
    """
    aggregate = AGGREGATIONS[aggregation]
    scores = [float(aggregate(torch.tensor(z, dtype=torch.float64))) for z in log_odds]
    return scores.index(max(scores))


def majority(answers: Sequence[str]) -> int:
    """Index of the first candidate that gives the most frequent answer (self-consistency)."""
    counts = Counter(answers)
    return answers.index(max(answers, key=counts.__getitem__))


def _tree_size(token_ids: list[list[int]]) -> int:
    """Tokens of the prompts' trie: neighbours in order share the most."""
    ordered = sorted(token_ids)
    size = len(ordered[0])
    for left, right in itertools.pairwise(ordered):
        shared = next(
            (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
            min(len(left), len(right)),
        )
        size += len(right) - shared
    return size


def _with_candidates(sample: CandidatesSample, candidates: list[str]) -> CandidatesSample:
    return CandidatesSample(
        sample.record, sample.question, candidates, sample.image, None, None, sample.dataset
    )
