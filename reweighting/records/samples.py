"""What one record holds once it is checked: a train, meta, candidates or question sample."""

from __future__ import annotations

from dataclasses import dataclass

from .steps import Prompt


@dataclass
class TrainSample:
    """A step prefix with its Monte-Carlo accuracy, or a conversation's labelled steps (lower)."""

    record: int  # number in the file, from 1
    prompts: list[Prompt]  # a single one, or one for each labelled step, shortest first
    images: tuple[str, ...]  # in the order in which the prompt shows them; none: text alone
    domain: str
    accuracies: list[float]  # one for each prompt
    chain: tuple  # records with the same value may be prefixes of one chain
    system: str = ""  # the instruction that a conversation opens with, if any
    id: str = ""  # as in the file, if it names its records

    @property
    def text(self) -> str:
        """Question and all steps."""
        return self.prompts[-1].text


@dataclass
class MetaSample:
    """One whole chain of thought, right or wrong (upper level)."""

    record: int
    prompts: list[Prompt]  # one for each step prefix, shortest first
    images: tuple[str, ...]
    true_false: bool
    response: str = ""  # the whole chain, with its verdict


@dataclass
class CandidatesSample:
    """N candidate chains for one question (best-of-N)."""

    record: int
    question: str
    candidates: list[str]
    images: tuple[str, ...]
    true_false: list[bool] | None  # one per candidate, where known
    answer: str | None
    dataset: str | None
    choices: list[str] | None = None
    benchmark: dict | None = None  # fields of the benchmark itself, copied to the results


@dataclass
class QuestionSample:
    """A question with its answer, for which a reasoner is to write chains (rollouts)."""

    record: int
    question: str
    image: str
    answer: str
    dataset: str
    choices: list[str] | None

    @property
    def images(self) -> tuple[str, ...]:
        """The image as the other kinds of samples have theirs."""
        return (self.image,)
