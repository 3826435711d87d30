"""Chains of thought among the samples: which records belong to one, and what they are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from .answers.extraction import extract
from .samples import CandidatesSample, MetaSample, TrainSample
from .steps import cut_steps

MOST_SHOWN = 8  # step counts told apart in a description


class Groups(Sequence[list[int]]):
    """Lists of indices, kept as two arrays: millions of Python lists would fill the memory.

    Args:
        members: the lists one after the other, ``[n]``.
        starts: where each of them begins in ``members``, and ``n``.
    """

    def __init__(self, members: np.ndarray, starts: np.ndarray) -> None:
        self.members = members
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        return self.members[self.starts[number] : self.starts[number + 1]].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def by(cls, keys: np.ndarray, *order: np.ndarray) -> Groups:
        """Indices of equal ``keys`` ``[n]``, groups by rising key, each sorted by ``order``."""
        members = np.lexsort((np.arange(len(keys)), *reversed(order), keys)).astype(np.int32)
        changes = np.flatnonzero(np.diff(keys[members])) + 1
        ends = [len(keys)] if len(keys) else []
        return cls(members, np.concatenate([[0], changes, ends]).astype(np.int64))


def chains_of(samples: Sequence[TrainSample]) -> Sequence[list[int]]:
    """Indices of the samples that are prefixes of one chain, chains in order of appearance.

    Records of one question and the same images belong to one chain as long as each prefix extends
    another:
    text alone decides, so records without ``id`` and ``sid`` are matched as well. Where several
    extend the same prefix, the shortest goes on with its chain and the others open new ones.
    """
    if (known := getattr(samples, "chains", None)) is not None:  # TrainRecords
        return known
    by_question: dict[tuple, list[int]] = {}
    for index, sample in enumerate(samples):
        by_question.setdefault(sample.chain, []).append(index)
    same, extends = np.empty((2, len(samples)), np.int32)
    texts = [sample.text for sample in samples]
    for members in by_question.values():
        same[members], extends[members] = linked(members, [texts[index] for index in members])
    return chains_from(same, extends, np.array([len(text) for text in texts], np.int64))


def linked(numbers: Sequence[int], texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """How texts of one question hang together.

    Args:
        numbers: of the texts, one for each.

    Returns:
        for each text the number of the first text that equals it, and the number of the first text
        that is its longest proper prefix, -1 where there is none.
    """
    first: dict[str, int] = {}
    for number, text in zip(numbers, texts, strict=True):
        first.setdefault(text, number)
    # In alphabetical order a text comes after all its prefixes and directly before all its
    # extensions, so the stack holds the prefixes of the text at hand.
    longest_prefix: dict[str, int] = {}
    stack: list[str] = []
    for text in sorted(first):
        while stack and not text.startswith(stack[-1]):
            stack.pop()
        longest_prefix[text] = first[stack[-1]] if stack else -1
        stack.append(text)
    return [first[text] for text in texts], [longest_prefix[text] for text in texts]


def chains_from(text: np.ndarray, extends: np.ndarray, lengths: np.ndarray) -> Groups:
    """The chains of n samples, see :func:`chains_of`.

    Args:
        text: the number of each sample's text, ``[n]``, see :func:`linked`.
        extends: for all numbers of texts that of the longest prefix, or -1, ``[t]``. It may be a
            text that no sample has; its own prefix counts then.
        lengths: of the samples' texts, ``[n]``.
    """
    numbers, first, own = np.unique(text, return_index=True, return_inverse=True)
    place = np.full(len(extends) + 1, -1)  # among ``numbers``; the last one is for -1
    place[numbers] = np.arange(len(numbers))
    prefix = extends[numbers]
    while (absent := (prefix >= 0) & (place[prefix] < 0)).any():
        prefix[absent] = extends[prefix[absent]]
    prefix = place[prefix]
    # Of the texts that extend a prefix, the first in this order goes on with its chain.
    order = np.lexsort((first, lengths[first]))
    order = order[prefix[order] >= 0]
    going_on = order[np.unique(prefix[order], return_index=True)[1]]
    root = np.arange(len(numbers))
    root[going_on] = prefix[going_on]
    while (above := root[root]).tobytes() != root.tobytes():
        root = above
    return Groups.by(first[root[own]], lengths)


def questions_of(samples: Sequence[MetaSample]) -> Sequence[list[int]]:
    """Indices of the meta chains that answer one question about the same images, by question."""
    if (known := getattr(samples, "questions", None)) is not None:  # MetaRecords
        return known
    found: dict[tuple, list[int]] = {}
    for index, sample in enumerate(samples):
        found.setdefault((sample.images, sample.prompts[0].question), []).append(index)
    return list(found.values())


def truth_of(samples: Sequence[MetaSample]) -> Sequence[bool]:
    """Whether each meta chain is right."""
    if (known := getattr(samples, "truth", None)) is not None:  # MetaRecords
        return known
    return [sample.true_false for sample in samples]


def describe_chains(chains: Iterable[tuple[int, bool]]) -> str:
    """One line about chains: how many have 1, 2, 3, … steps, and how many no final answer.

    Args:
        chains: for each chain the number of its steps and whether a final answer can be read.
    """
    chains = list(chains)
    counts = sorted(Counter(steps for steps, _ in chains).items())
    shown, rest = counts[:MOST_SHOWN], counts[MOST_SHOWN:]
    parts = [f"{count:,} of {steps} step{'s' * (steps != 1)}" for steps, count in shown]
    if rest:
        parts.append(f"{sum(count for _, count in rest):,} of more")
    without = sum(not answered for _, answered in chains)
    return f"{len(chains):,} chains: {', '.join(parts)}; {without:,} without a final answer"


def describe_candidates(samples: Iterable[CandidatesSample], pattern: str | None) -> str:
    """One line about the steps and final answers of all candidates.

    Args:
        pattern: what starts a step, see :func:`~.steps.layout`.
    """
    return describe_chains(
        (len(cut_steps(response, pattern)) if response else 0, extract(response) != "")
        for sample in samples
        for response in sample.candidates
    )
