"""What a row says, as a chain with labelled prefixes, and the records that are made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...records.steps import MAX_STEPS, layout, split_steps
from ..notes import image_path
from .rows import Row

GAP = "\n\n"  # between the steps of sets that do not say what stood there


class Label(NamedTuple):
    """What is known of a prefix.

    Args:
        accuracy: from 0 to 1.
        score: how many of ``times`` continuations ended right, where that is told.
    """

    accuracy: float
    score: int | None = None
    times: int | None = None


@dataclass(frozen=True)
class Chain:
    """A response with labels of its step prefixes.

    Args:
        prefixes: (steps, text, label) of every prefix that gets a record; steps count from 1.
        right: whether the chain ended right; None if that is not certain.
        truth: the true final answer, where it is told.
    """

    domain: str
    question: str
    images: tuple[str, ...]
    response: str
    prefixes: list[tuple[int, str, Label]]
    right: bool | None
    truth: str | None = None

    @property
    def key(self) -> int:
        """Tells questions apart: the same words, whatever the spaces, about the same images."""
        text = "\0".join([*self.images, " ".join(self.question.split())])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def ends_of(steps: Sequence[str], response: str) -> list[int] | None:
    """Where each step ends in the response; None unless they follow each other there.

    Only white space may stand between them.
    """
    ends, position = [], 0
    for step in steps:
        start = response.find(step, position)
        if start < 0 or response[position:start].strip():
            return None
        position = start + len(step)
        ends.append(position)
    return ends


def prefixes_of(
    row: Row, name: str, response: str, ends: Sequence[int], labels: Sequence[Label | None]
) -> tuple[str, list[tuple[int, str, Label]]]:
    """The response and its labelled prefixes, cut as our records are.

    The reward model is not shown the final answer, so no prefix reaches into it, and a last step
    that is nothing else gets no record. Where no step is named, each gets the heading "Step n: ":
    the chains of meta sets and candidates are cut at such headings.

    Args:
        name: the field that the steps come from, for messages.
        ends: of the steps, as offsets into the response.
        labels: of the steps; None makes no record.
    """
    if len(ends) > MAX_STEPS:
        row.refuse(name, f"holds {{}} steps, more than {MAX_STEPS}", len(ends))
    found = layout(response)
    if not found.steps:
        response, ends = _headed(response, ends)
        found = layout(response)
    prefixes: list[tuple[int, str, Label]] = []
    before = ""
    for number, (end, label) in enumerate(zip(ends, labels, strict=True), start=1):
        text = response[: min(end, found.verdict)].rstrip()
        if text == before:
            continue
        before = text
        if label is not None:
            prefixes.append((number, text, label))
    if not before:
        row.refuse(name, "holds no step before its final answer")
    return response, prefixes


def _headed(response: str, ends: Sequence[int]) -> tuple[str, list[int]]:
    """A response whose steps open with "Step n: ", and where they end now."""
    pieces: list[str] = []
    moved: list[int] = []
    start = length = number = 0
    for index, end in enumerate(ends, start=1):
        piece = response[start:end]
        body = piece.lstrip()
        # A last step that is nothing but the final answer does not count.
        if body and (index < len(ends) or layout(body).verdict):
            number += 1
            gap = piece[: len(piece) - len(body)]
            if number > 1 and "\n" not in gap:  # a heading opens a line
                gap += "\n"
            piece = f"{gap}Step {number}: {body}"
        pieces.append(piece)
        length += len(piece)
        moved.append(length)
        start = end
    return "".join([*pieces, response[start:]]), moved


def ended_right(labels: Sequence[Label]) -> bool | None:
    """Whether a chain ended right, by its last label; None if that is neither 0 nor 1."""
    last = labels[-1].accuracy
    return bool(last) if last in (0, 1) else None


def train_records(chain: Chain, number: int) -> Iterator[dict]:
    """The train records of the chain with this number, from 0."""
    for steps, text, label in chain.prefixes:
        record = {"id": number, "sid": steps, "input": chain.question, "add": text}
        if chain.truth is not None:
            record["ground_truth"] = chain.truth
        record |= {"image_path": image_path(chain.images), "dataset": chain.domain}
        if label.times is not None:
            record |= {"score": label.score, "times": label.times}
        yield record | {"accuracy": label.accuracy}


def meta_record(chain: Chain) -> dict:
    """The whole chain as a meta record."""
    return {
        "true_false": bool(chain.right),
        "input": chain.question,
        "response": chain.response,
        "image_path": image_path(chain.images),
        "dataset": chain.domain,
    }


def step_correct(chain: Chain) -> list[bool | None]:
    """Whether each of our steps of the response is right: some continuation of it ended right.

    None for a step that ends where the set has no label.
    """
    start = layout(chain.response).start
    known = {text[start:]: label.accuracy > 0 for _, text, label in chain.prefixes}
    return [known.get(prefix) for prefix in split_steps(chain.response)]


def candidates_record(chains: Sequence[Chain]) -> dict:
    """All these chains of one question as a candidates record, with the labels of their steps."""
    first = chains[0]
    record: dict = {
        "question": first.question,
        "image_path": image_path(first.images),
        "candidates": [chain.response for chain in chains],
        "true_false": [bool(chain.right) for chain in chains],
        "dataset": first.domain,
    }
    if any(chain.prefixes for chain in chains):
        record["step_correct"] = [step_correct(chain) for chain in chains]
    return record if first.truth is None else record | {"answer": first.truth}
