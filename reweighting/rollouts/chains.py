"""Chains of thought: which are usable, and the candidates and meta records made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..records.answers.comparison import is_right
from ..records.answers.extraction import extract
from ..records.samples import QuestionSample
from ..records.steps import join, step_starts
from ..records.texts import holds_control_token
from ..system.server.errors import ItemError
from .reasoner import Rollout


def usable(response: str, pattern: str | None = None) -> bool:
    """Whether a response has what a chain needs: steps and a final answer.

    Args:
        pattern: what starts a step, see :func:`~..records.steps.layout`.
    """
    return bool(step_starts(response, pattern)) and extract(response) != ""


def candidates_records(
    samples: Sequence[QuestionSample],
    sampled: Sequence[Sequence[Rollout | ItemError]],
    questions: Sequence[dict],
    pattern: str | None = None,
) -> tuple[list[dict], list[dict], Counter[str]]:
    """Best-of-N records of all questions that have a chain; their other fields are kept.

    Args:
        sampled: the chains of every sample, or why one is lost.
        questions: all records of the file of questions.

    Returns:
        The records; what is lost and why; how many chains have something to remark on.
    """
    records, lost, notes = [], [], Counter()
    for sample, rollouts in zip(samples, sampled, strict=True):
        chains = []
        for rollout in rollouts:
            if isinstance(rollout, ItemError):
                lost.append({"record": sample.record, "why": str(rollout)})
            elif not rollout.text.strip() or holds_control_token(rollout.text):
                notes["left out: empty, or with control tokens in them"] += 1
            else:
                chains.append(rollout.text.strip())
                notes["cut off at --max_tokens"] += rollout.finish_reason == "length"
                notes["without steps or final answer"] += not usable(rollout.text, pattern)
        if chains:
            true_false = [is_right(chain, sample.answer, sample.choices) for chain in chains]
            question = questions[sample.record - 1]
            records.append({**question, "candidates": chains, "true_false": true_false})
    return records, lost, notes


def meta_records(records: Sequence[dict], pattern: str | None = None) -> list[dict]:
    """A right and a wrong chain for every question that has both; only usable chains.

    The label must not be readable from the form of a record, or the weights would learn nothing
    else. So both labels occur equally often with every question and image, both chains have steps
    and a final answer, and the pair that is most alike in length is taken.
    """
    meta = []
    for record in records:
        by_label: dict[bool, list[str]] = {True: [], False: []}
        for chain, right in zip(record["candidates"], record["true_false"], strict=True):
            if usable(chain, pattern):
                by_label[right].append(chain)
        if pair := most_alike(by_label[True], by_label[False]):
            # Which of the two comes first must not tell the label either.
            for right in (True, False) if len(meta) % 4 else (False, True):
                meta.append(
                    {
                        "id": len(meta),
                        "true_false": right,
                        "input": join(record["question"], pair[not right]),
                        "image_path": record["image_path"],
                        "dataset": record["dataset"],
                    }
                )
    return meta


def most_alike(right: Iterable[str], wrong: Iterable[str]) -> tuple[str, str] | None:
    """The right and the wrong chain whose lengths differ least; None if there is no pair."""
    wrong = list(wrong)
    pairs = [(a, b) for a in right for b in wrong]
    return min(pairs, key=lambda pair: abs(len(pair[0]) - len(pair[1])), default=None)
