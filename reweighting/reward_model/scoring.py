"""Score the candidates of many questions.

The candidates of a question form one prefix tree, because they share the images and the question;
several questions are packed into one forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL.Image import DecompressionBombError

from ..records.samples import CandidatesSample
from ..system.device import autocast
from .aggregation import LogOdds
from .encoder import EncodedPrompts, response_prompts
from .network import RewardNetwork
from .prefix_tree import pack


def score_candidates(
    model: RewardNetwork,
    samples: Sequence[CandidatesSample],
    max_tokens_per_batch: int = 8192,
    precision: str = "fp32",
    called: str = "record",
) -> Iterator[list[LogOdds]]:
    """Log-odds of every step prefix of every candidate, one batch of questions at a time.

    An empty candidate has no prefixes and therefore no log-odds.

    Args:
        max_tokens_per_batch: questions are packed together up to this many tokens; a question
            whose tree is larger is split into one tree per candidate.
        called: what a sample is in messages, beside its number.

    Raises:
        OSError, TypeError, ValueError, PIL.Image.DecompressionBombError: an image cannot be used;
            the message names the sample.
    """
    batch: list[tuple[EncodedPrompts | None, list[int]]] = []
    tokens = 0
    for sample in samples:
        with _named(f"{called} {sample.record}"):
            encoded, steps, size = _encode(model, sample)
        if batch and tokens + size > max_tokens_per_batch:
            yield _forward(model, batch, precision)
            batch, tokens = [], 0
        if size > max_tokens_per_batch and len(steps) > 1:
            alone = [replace(sample, candidates=[c], true_false=None) for c in sample.candidates]
            pieces = score_candidates(model, alone, max_tokens_per_batch, precision, called)
            yield [[scores for piece in pieces for [scores] in piece]]
            continue
        batch.append((encoded, steps))
        tokens += size
    if batch:
        yield _forward(model, batch, precision)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put ``place`` before the message of an error."""
    try:
        yield
    except (OSError, TypeError, ValueError, DecompressionBombError) as error:
        kinds = (OSError, TypeError, ValueError, DecompressionBombError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{place}: {error}") from error


def _encode(
    model: RewardNetwork, sample: CandidatesSample
) -> tuple[EncodedPrompts | None, list[int], int]:
    """The prompts of a question, the number of steps of each candidate, the tokens of the tree."""
    pattern = model.encoder.step_pattern
    chains = [response_prompts(sample.question, r, pattern) for r in sample.candidates]
    if not any(chains):
        return None, [0] * len(chains), 0
    encoded = model.encoder.encode(sample.images, [prompt for chain in chains for prompt in chain])
    ordered = sorted(encoded.token_ids)  # so that neighbours share the most
    size = len(ordered[0])
    for left, right in itertools.pairwise(ordered):
        pairs = enumerate(zip(left, right, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
        size += len(right) - shared
    return encoded, [len(chain) for chain in chains], size


@torch.no_grad()
def _forward(
    model: RewardNetwork, batch: list[tuple[EncodedPrompts | None, list[int]]], precision: str
) -> list[LogOdds]:
    # A key of its own for every question, so that no tree depends on the rest of the batch.
    groups = [
        replace(encoded, image_key=f"{index} {encoded.image_key}")
        for index, (encoded, _) in enumerate(batch)
        if encoded is not None
    ]
    device = model.device
    with autocast(device, precision):
        flat = iter(model(pack(groups).to(device)).tolist() if groups else [])
    return [[list(itertools.islice(flat, count)) for count in steps] for _, steps in batch]
