"""JSON records to typed samples. Every error in a user's data is found and named here."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .answers import is_right
from .prompts import chain_prompts, join, open_image, split_question

MAX_LISTED = 20
MAX_ASPECT_RATIO = 200  # of the Qwen2-VL image processor
MANY_BARE = 10  # bare questions in a meta set that are no slip but its making
# Text that the tokenizer would take for an image or the end of a turn.
_CONTROL_TOKEN = re.compile(r"<\|(?:(?:image|video)_pad|vision_(?:start|end)|im_(?:start|end))\|>")


def holds_control_token(text: str) -> bool:
    """Whether a tokenizer would take a part of the text for an image or the end of a turn."""
    return _CONTROL_TOKEN.search(text) is not None


@dataclass
class TrainSample:
    """One step prefix with its Monte-Carlo accuracy (lower level)."""

    record: int  # number in the file, from 1
    prompt: str
    image: str
    domain: str
    accuracy: float
    chain: tuple  # records with the same value are prefixes of one chain


@dataclass
class MetaSample:
    """One whole chain of thought, right or wrong (upper level)."""

    record: int
    prompts: list[str]  # every step prefix, shortest first
    image: str
    true_false: bool


@dataclass
class CandidatesSample:
    """N candidate chains for one question (best-of-N)."""

    record: int
    question: str
    candidates: list[str]
    image: str
    true_false: list[bool] | None  # one per candidate, where known
    answer: str | None
    dataset: str | None


@dataclass
class QuestionSample:
    """A question with its answer, to be thought about (rollouts)."""

    record: int
    question: str
    image: str
    answer: str
    dataset: str
    choices: list[str] | None


class DataError(Exception):
    """Problems in the user's files, at most :data:`MAX_LISTED` of them spelled out."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        lines = problems[:MAX_LISTED]
        if len(problems) > 1:
            more = len(problems) - len(lines)
            lines.append(f"{len(problems)} problems" + (f", {more} not listed" if more else ""))
        super().__init__("\n".join(lines))
        self.notes: list[str] = []


@dataclass
class RecordReader:
    """Reads one file of records and collects what is wrong with them.

    Args:
        file: a JSON array or JSON Lines, told apart by content.
        image_root: relative image paths start here, and no image may lie outside.
        allow_external_images: accept URLs and images outside ``image_root``.
    """

    file: str
    image_root: str = "."
    allow_external_images: bool = False
    problems: dict[int, list[str]] = field(default_factory=dict)

    def read(self) -> list[Any]:
        """All records of the file.

        Raises:
            DataError: the file is missing, unreadable, not JSON or holds no list of records.
        """
        try:
            text = Path(self.file).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError([f"{self.file}: {error.strerror or error}"]) from error
        except UnicodeDecodeError as error:
            raise DataError([f"{self.file}: not UTF-8 text ({error.reason})"]) from error
        records = self._parse(text)
        if not records:
            raise DataError([f"{self.file}: holds no records"])
        return records

    def _parse(self, text: str) -> list[Any]:
        if text.lstrip().startswith("["):
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError([f"{self.file}: not JSON: {error}"]) from error
        records = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if not records and _is_json(text):
                    raise DataError([f"{self.file}: not a list of records"]) from error
                raise DataError([f"{self.file}: line {number}: not JSON: {error}"]) from error
        if len(records) == 1 and not isinstance(records[0], dict):
            raise DataError([f"{self.file}: not a list of records"])
        return records

    def problem(self, number: int, name: str | None, text: str) -> None:
        """Note a problem of record ``number`` (from 1) in field ``name``."""
        where = f"{self.file}: record {number}" + (f": field '{name}'" if name else "")
        self.problems.setdefault(number, []).append(f"{where}: {text}")

    def text(self, record: dict, number: int, name: str) -> str:
        """A required, non-empty text field."""
        value = record.get(name)
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(value, str):
            self.problem(number, name, f"must be text, is {_shown(value)}")
        elif not value.strip():
            self.problem(number, name, "is empty")
        elif control := _CONTROL_TOKEN.search(value):
            self.problem(number, name, f"holds the control token {control.group()}")
        else:
            return value
        return ""

    def image(self, record: dict, number: int, name: str = "image_path") -> str:
        """A required image path or URL, resolved; whether it opens is checked later."""
        value = self.text(record, number, name)
        if not value:
            return ""
        if re.match(r"[a-z][a-z0-9+.-]*://", value, re.IGNORECASE):
            if not self.allow_external_images:
                self.problem(number, name, f"is a URL ({value}); see --allow_external_images")
            elif not value.startswith(("http://", "https://")):
                self.problem(number, name, f"is a URL of an unknown kind ({value})")
            return value
        path = os.path.join(self.image_root, value)
        root = os.path.realpath(self.image_root)
        inside = os.path.commonpath([root, os.path.realpath(path)]) == root
        if not inside and not self.allow_external_images:
            self.problem(
                number,
                name,
                f"{value} lies outside the image root {self.image_root}; "
                "see --image_root and --allow_external_images",
            )
        return path

    def samples(self, parse: Callable[[dict, int], Any]) -> list[Any]:
        """Parse all records with ``parse(record, number)``, those with problems left out."""
        samples = []
        for number, record in enumerate(self.read(), start=1):
            if not isinstance(record, dict):
                self.problem(number, None, f"must be an object, is {_shown(record)}")
                continue
            sample = parse(record, number)
            if number not in self.problems:
                samples.append(sample)
        return samples

    def train_sample(self, record: dict, number: int) -> TrainSample:
        question = self.text(record, number, "input")
        prefix = self.text(record, number, "add")
        image = self.image(record, number)
        domain = self.text(record, number, "dataset")
        accuracy = record.get("accuracy")
        if "accuracy" not in record:
            self.problem(number, "accuracy", "is missing")
        elif isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)):
            self.problem(number, "accuracy", f"must be a number, is {_shown(accuracy)}")
        elif not math.isfinite(accuracy) or not 0 <= accuracy <= 1:
            self.problem(number, "accuracy", f"must lie in [0, 1], is {accuracy}")
        return TrainSample(
            number, join(question, prefix), image, domain, accuracy, (domain, image, question)
        )

    def meta_sample(self, record: dict, number: int) -> MetaSample:
        text = self.text(record, number, "input")
        image = self.image(record, number)
        true_false = record.get("true_false")
        if "true_false" not in record:
            self.problem(number, "true_false", "is missing")
        elif not isinstance(true_false, bool) and true_false not in (0, 1):
            self.problem(number, "true_false", f"must be true or false, is {_shown(true_false)}")
        question, response = split_question(text)
        if text and not response:
            self.problem(number, "input", "holds a question but no response to score")
        return MetaSample(number, chain_prompts(question, response), image, bool(true_false))

    def candidates_sample(self, record: dict, number: int) -> CandidatesSample:
        question = self.text(record, number, "question")
        image = self.image(record, number)
        # The published evaluation code reads one name and documents the other.
        name = "candidate" if "candidate" in record and "candidates" not in record else "candidates"
        candidates = record.get(name)
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(candidates, list) or not candidates:
            self.problem(number, name, f"must be a list of responses, is {_shown(candidates)}")
        else:
            for index, candidate in enumerate(candidates, start=1):
                if not isinstance(candidate, str) or not candidate.strip():
                    shown = _shown(candidate)
                    self.problem(number, name, f"response {index} must be text, is {shown}")
                elif control := _CONTROL_TOKEN.search(candidate):
                    text = f"response {index} holds the control token {control.group()}"
                    self.problem(number, name, text)
        true_false = record.get("true_false")
        if true_false is not None:
            if not isinstance(true_false, list) or any(x not in (0, 1) for x in true_false):
                shown = _shown(true_false)
                self.problem(number, "true_false", f"must be a list of true or false, is {shown}")
            elif isinstance(candidates, list) and len(true_false) != len(candidates):
                text = f"holds {len(true_false)} values for {len(candidates)} candidates"
                self.problem(number, "true_false", text)
            else:
                true_false = [bool(value) for value in true_false]
        for name in ("answer", "dataset"):
            if not isinstance(record.get(name), (str, type(None))):
                self.problem(number, name, f"must be text, is {_shown(record[name])}")
        choices = self._choices(record, number)
        if true_false is None and record.get("answer") and number not in self.problems:
            true_false = [is_right(c, record["answer"], choices) for c in candidates]
        return CandidatesSample(
            number,
            question,
            candidates,
            image,
            true_false,
            record.get("answer"),
            record.get("dataset"),
        )

    def _choices(self, record: dict, number: int) -> list[str] | None:
        """The optional texts of the options A, B, …"""
        choices = record.get("choices")
        if choices is not None and not (
            isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
        ):
            self.problem(number, "choices", f"must be a list of texts, is {_shown(choices)}")
        return choices

    def question_sample(self, record: dict, number: int) -> QuestionSample:
        return QuestionSample(
            number,
            self.text(record, number, "question"),
            self.image(record, number),
            self.text(record, number, "answer"),
            self.text(record, number, "dataset"),
            self._choices(record, number),
        )

    def check_images(self, samples: Iterable[Any], progress: bool) -> None:
        """Decode every distinct image once; broken ones become problems of their records."""
        records: dict[str, list[int]] = {}
        for sample in samples:
            records.setdefault(sample.image, []).append(sample.record)
        silent = {"disable": None if progress else True}  # None: only where a person looks
        with ThreadPoolExecutor() as pool:
            results = pool.map(_image_problem, records)
            bar = tqdm(results, "checking images", len(records), leave=False, **silent)
            for image, trouble in zip(records, bar, strict=True):
                if trouble:
                    for number in records[image]:
                        self.problem(number, "image_path", trouble)

    def all_problems(self) -> list[str]:
        """Everything noted so far, in the order of the records."""
        return [text for number in sorted(self.problems) for text in self.problems[number]]


def load_train(reader: RecordReader, progress: bool = False) -> list[TrainSample]:
    """The usable train samples; the reader's ``problems`` says what is wrong with the others."""
    samples = reader.samples(reader.train_sample)
    reader.check_images(samples, progress)
    return [sample for sample in samples if sample.record not in reader.problems]


def load_meta(reader: RecordReader, progress: bool = False) -> tuple[list[MetaSample], list[str]]:
    """The usable meta samples, and warnings about what they can teach."""
    samples = reader.samples(reader.meta_sample)
    reader.check_images(samples, progress)
    samples = [sample for sample in samples if sample.record not in reader.problems]
    return samples, _meta_warnings(reader)


def load_candidates(reader: RecordReader, progress: bool = False) -> list[CandidatesSample]:
    """All questions of a candidates file.

    Raises:
        DataError: any record has a problem.
    """
    samples = reader.samples(reader.candidates_sample)
    reader.check_images(samples, progress)
    if reader.problems:
        raise DataError(reader.all_problems())
    return samples


def load_questions(reader: RecordReader, progress: bool = False) -> list[QuestionSample]:
    """All questions of a file, images checked.

    Raises:
        DataError: any record has a problem.
    """
    samples = reader.samples(reader.question_sample)
    reader.check_images(samples, progress)
    if reader.problems:
        raise DataError(reader.all_problems())
    return samples


def chains_of(samples: list[TrainSample]) -> list[list[int]]:
    """Indices of the samples that are prefixes of one chain, chains in order of appearance.

    Records of one question and image belong to one chain as long as each prefix extends another:
    text alone decides, so records without ``id`` and ``sid`` are matched as well.
    """
    by_question: dict[tuple, list[int]] = {}
    for index, sample in enumerate(samples):
        by_question.setdefault(sample.chain, []).append(index)
    chains = []
    for indices in by_question.values():
        growing: list[list[int]] = []
        for index in sorted(indices, key=lambda i: len(samples[i].prompt)):
            for chain in growing:
                if samples[index].prompt.startswith(samples[chain[-1]].prompt):
                    chain.append(index)
                    break
            else:
                growing.append([index])
        chains += growing
    return sorted(chains)


def _meta_warnings(reader: RecordReader) -> list[str]:
    """Say when the label can be told from the mere presence of a response.

    The published meta set is the example: all its chains are right and every wrong record is a
    bare question, so it can only teach the weights that text is good.
    """
    labels = {True: Counter(), False: Counter()}  # has steps -> labels
    for record in reader.read():
        if isinstance(record, dict) and isinstance(record.get("input"), str):
            label = record.get("true_false")
            if isinstance(label, (bool, int)):
                has_response = bool(split_question(record["input"])[1])
                labels[has_response][bool(label)] += 1
    with_response, without = labels[True], labels[False]
    total = with_response.total() + without.total()
    if not total or not with_response.total():
        return []
    found = []
    if without.total() >= MANY_BARE and 1 in (len(with_response), len(without)):
        found.append(
            f"{reader.file}: {without.total()} of {total} records hold no response at all, and "
            f"{with_response[True]} of the {with_response.total()} responses are labelled true "
            f"({without[True]} of the {without.total()} bare questions are): the label can be read "
            "from the presence of text, so such a set can only teach the weights that text is good"
        )
    return found


def _image_problem(path: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                sides = sorted(image.size)
        if sides[1] > MAX_ASPECT_RATIO * sides[0]:
            return f"{path} is a strip: {sides[1]} pixels long and {sides[0]} wide"
    except FileNotFoundError:
        return f"{path} does not exist"
    except Image.DecompressionBombError as error:
        return f"{path} is too large to be safe: {error}"
    except Exception as error:  # Pillow's plugins raise whatever a broken file provokes
        size = os.path.getsize(path) if os.path.isfile(path) else None
        return f"{path} is empty" if size == 0 else f"{path} cannot be read: {error}"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
