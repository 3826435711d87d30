"""Chains of thought among the samples: which records belong to one, and what they are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .answers.extraction import extract
from .samples import CandidatesSample, MetaSample, TrainSample
from .steps import cut_steps

MOST_SHOWN = 8  # step counts told apart in a description


def chains_of(samples: Sequence[TrainSample]) -> list[list[int]]:
    """Indices of the samples that are prefixes of one chain, chains in order of appearance.

    Records of one question and the same images belong to one chain as long as each prefix extends
    another:
    text alone decides, so records without ``id`` and ``sid`` are matched as well. Where several
    extend the same prefix, the shortest goes on with its chain and the others open new ones.
    """
    by_question: dict[tuple, dict[str, list[int]]] = {}
    for index, sample in enumerate(samples):
        by_text = by_question.setdefault(sample.chain, {})
        by_text.setdefault(sample.text, []).append(index)
    chains: list[list[int]] = []
    for by_text in by_question.values():
        # In alphabetical order a text comes after all its prefixes and directly before all its
        # extensions, so the stack holds the prefixes of the text at hand.
        longest_prefix: dict[str, str | None] = {}
        stack: list[str] = []
        for text in sorted(by_text):
            while stack and not text.startswith(stack[-1]):
                stack.pop()
            longest_prefix[text] = stack[-1] if stack else None
            stack.append(text)
        by_end: dict[str | None, list[int]] = {}
        for text in sorted(by_text, key=len):
            chain = by_end.pop(longest_prefix[text], None)
            if chain is None:
                chains.append(chain := [])
            chain += by_text[text]
            by_end[text] = chain
    return sorted(chains)


def questions_of(samples: Sequence[MetaSample]) -> list[list[int]]:
    """Indices of the meta chains that answer one question about the same images, by question."""
    found: dict[tuple, list[int]] = {}
    for index, sample in enumerate(samples):
        found.setdefault((sample.images, sample.prompts[0].question), []).append(index)
    return list(found.values())


def with_labels(samples: list[TrainSample]) -> list[TrainSample]:
    """The samples with prompts that know the labels of their earlier steps (``--history gold``).

    A step is right if the prefix that ends with it has an accuracy above 1/2. That prefix is an
    earlier step of the same conversation or another record of the same chain; a step that no record
    judges counts as right, as it does in selection.
    """
    labelled = list(samples)
    for chain in chains_of(samples):
        known = _labels(samples[index] for index in chain)
        for index in chain:
            sample = samples[index]
            labels = known | _labels([sample])  # a record's own labels come first
            prompts = [
                replace(
                    prompt, labels=tuple(labels.get(k, True) for k in range(1, len(prompt.steps)))
                )
                for prompt in sample.prompts
            ]
            labelled[index] = replace(sample, prompts=prompts)
    return labelled


def _labels(samples: Iterable[TrainSample]) -> dict[int, bool]:
    """Step number -> whether the prefix that ends with it is more often right than wrong."""
    return {
        len(prompt.steps): accuracy > 0.5
        for sample in samples
        for prompt, accuracy in zip(sample.prompts, sample.accuracies, strict=True)
    }


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


def describe_meta(samples: Iterable[MetaSample]) -> str:
    """One line about the steps and final answers of the meta samples."""
    return describe_chains((len(s.prompts), extract(s.response) != "") for s in samples)


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
