"""From a piece of a file to rows of a table, in a process of its own."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..system.record_files import Piece
from .answers.extraction import extract
from .fields import FieldReader
from .problems import Problem
from .samples import MetaSample, TrainSample
from .steps import split_question
from .tables import NAMED, SCHEMAS
from .texts import MAX_CHARACTERS

if TYPE_CHECKING:
    from .reader import RecordReader

MANY_BARE = 10  # bare questions in a meta set from which on they are no oversight
_PARSERS = {TrainSample: "train_sample", MetaSample: "meta_sample"}


@dataclass
class Part:
    """What a piece of a file holds; images and names are numbered within the part."""

    rows: pa.RecordBatch
    images: list[str]
    names: dict[str, list[str]]
    keys: np.ndarray  # [rows, 2], of 64 bits each: a hash of the question and its images
    problems: dict[int, list[Problem]]
    responses: Counter[tuple[bool, bool]]
    records: int
    end: int


def part_of(reader: RecordReader, kind: type, piece: Piece) -> Part:
    """Check the records of a piece, but for their images."""
    reader = replace(reader, digest=None, problems={}, image_fields={})
    records = list(piece.records())
    samples = reader.samples(getattr(reader, _PARSERS[kind]), records, piece.first)
    images, names = Numbers(), {name: Numbers() for name in NAMED}
    columns: dict[str, list] = {
        "record": [sample.record for sample in samples],
        "question": [sample.prompts[-1].question for sample in samples],
        "steps": ["".join(sample.prompts[-1].steps) for sample in samples],
        "lengths": [list(map(len, sample.prompts[-1].steps)) for sample in samples],
        "images": [[images[image] for image in sample.images] for sample in samples],
        "image_field": [
            names["image_field"][reader.image_fields[sample.record]] for sample in samples
        ],
    }
    if kind is TrainSample:
        columns |= {
            "accuracies": [sample.accuracies for sample in samples],
            "domain": [names["domain"][sample.domain] for sample in samples],
            "system": [names["system"][sample.system] for sample in samples],
            "id": [sample.id for sample in samples],
        }
        keys = [sample.chain for sample in samples]
    else:
        columns |= {
            "true_false": [sample.true_false for sample in samples],
            "response": [sample.response for sample in samples],
            "answered": [extract(sample.response) != "" for sample in samples],
        }
        keys = [(sample.images, sample.prompts[0].question) for sample in samples]
    hashes = b"".join(hashlib.blake2b(repr(k).encode(), digest_size=16).digest() for k in keys)
    return Part(
        pa.RecordBatch.from_pydict(columns, SCHEMAS[kind]),
        list(images),
        {name: list(numbers) for name, numbers in names.items()},
        np.frombuffer(hashes, np.uint64).reshape(-1, 2),
        reader.problems,
        response_labels(reader, records) if kind is MetaSample else Counter(),
        len(records),
        piece.end,
    )


class Numbers(defaultdict[str, int]):
    """Gives every new text the next number, from 0."""

    def __init__(self) -> None:
        super().__init__(self.__len__)


def response_labels(reader: FieldReader, records: Iterable[Any]) -> Counter[tuple[bool, bool]]:
    """How many meta records have or lack a response and are labelled true or false."""
    found: Counter[tuple[bool, bool]] = Counter()
    for record in records:
        text = record.get("input") if isinstance(record, dict) else None
        if isinstance(text, str) and len(text) <= MAX_CHARACTERS:
            label = record.get("true_false")
            if isinstance(label, (bool, int)):
                own = "response" in record
                has_response = own or bool(split_question(text, reader.step_pattern)[1])
                found[has_response, bool(label)] += 1
    return found


def meta_warnings(name: str, responses: Counter[tuple[bool, bool]]) -> list[str]:
    """A warning if the label can be told from the mere presence of a response.

    The published meta set is the example: all its chains are right and every wrong record is a
    bare question, so it can only teach the weights that text is good.

    Args:
        name: of the file.
        responses: see :func:`response_labels`.
    """
    with_response, without = (
        {label: count for (has, label), count in responses.items() if has is wanted}
        for wanted in (True, False)
    )
    answers, bare = sum(with_response.values()), sum(without.values())
    if not answers or bare < MANY_BARE or 1 not in (len(with_response), len(without)):
        return []
    return [
        f"{name}: {bare} of {answers + bare} records "
        f"hold no response at all, and {with_response.get(True, 0)} of the {answers} "
        f"responses are labelled true ({without.get(True, 0)} of the {bare} bare questions "
        "are): the label can be read from the presence of text, so such a set can only teach the "
        "weights that text is good"
    ]
