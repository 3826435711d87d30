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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .answers import is_right
from .prompts import (
    LABELS,
    Prompt,
    chain_prompts,
    cut,
    open_image,
    record_prompt,
    split_question,
    step_prompts,
)

MAX_LISTED = 20
MAX_ASPECT_RATIO = 200  # of the Qwen2-VL image processor
MANY_BARE = 10  # bare questions in a meta set that are no slip but its making
# Text that a tokenizer would take for an image or the end of a turn.
_CONTROL_TOKEN = re.compile(
    r"<\|(?:(?:image|video)_pad|vision_(?:start|end)|im_(?:start|end))\|>|<IMG_CONTEXT>|</?img>|<video>"
)
# Where many data sets say that the image belongs; it has its place before the question.
_IMAGE_TAG = re.compile(r"<image>[ \t]*\n?")
_LABELS = dict(zip(LABELS, (1.0, 0.0), strict=True))
_ROLES = ("system", "human", "gpt")


def holds_control_token(text: str) -> bool:
    """Whether a tokenizer would take a part of the text for an image or the end of a turn."""
    return _CONTROL_TOKEN.search(text) is not None


@dataclass
class TrainSample:
    """A step prefix with its Monte-Carlo accuracy, or a conversation's labelled steps (lower)."""

    record: int  # number in the file, from 1
    prompts: list[Prompt]  # one, or one a labelled step, shortest first
    image: str
    domain: str
    accuracies: list[float]  # of each prompt
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
    prompts: list[Prompt]  # one a step prefix, shortest first
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
    choices: list[str] | None = None


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
    image_fields: dict[int, str] = field(default_factory=dict)  # by record: where its image stands

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
        """A required, non-empty text field, without the tags that stand for an image."""
        if name not in record:
            self.problem(number, name, "is missing")
            return ""
        return self._clean(record[name], number, name)

    def _clean(self, value: Any, number: int, name: str, where: str = "") -> str:
        """Text without image tags; ``where`` within field ``name`` it stands, for messages."""
        if not isinstance(value, str):
            self.problem(number, name, f"{where}must be text, is {_shown(value)}")
        elif not (text := _IMAGE_TAG.sub("", value)).strip():
            self.problem(number, name, f"{where}is empty")
        elif control := _CONTROL_TOKEN.search(text):
            self.problem(number, name, f"{where}holds the control token {control.group()}")
        else:
            return text
        return ""

    def image(self, record: dict, number: int, name: str = "image_path") -> str:
        """A required image path or URL, resolved; whether it opens is checked later.

        Of a list the first is taken.
        """
        self.image_fields[number] = name
        if isinstance(record.get(name), list) and record[name]:
            record = {name: record[name][0]}
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
        """A step prefix (DreamPRM), or a conversation with labels (DreamPRM-1.5)."""
        if "conversations" in record:
            return self._train_conversation(record, number)
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
        prompts = [record_prompt(question, prefix)]
        chain = (domain, image, question)
        name = str(record.get("id", ""))
        return TrainSample(number, prompts, image, domain, [accuracy], chain, id=name)

    def _train_conversation(self, record: dict, number: int) -> TrainSample:
        question, prompts, labels, system = self.conversation(record, number)
        image = self._conversation_image(record, number)
        # Without a name all records of a file are one domain.
        domain = Path(self.file).stem
        if "dataset" in record:
            domain = self.text(record, number, "dataset")
        if number not in self.problems and len(labels) < max(1, len(prompts)):
            self.problem(number, "conversations", "must end with the label of a step")
        chain = (domain, image, question)
        name = str(record.get("id", ""))
        return TrainSample(number, prompts, image, domain, labels, chain, system, name)

    def _conversation_image(self, record: dict, number: int) -> str:
        return self.image(record, number, "image" if "image" in record else "image_path")

    def conversation(self, record: dict, number: int) -> tuple[str, list[Prompt], list[float], str]:
        """The question, a prompt for every step, the labels (``+`` is 1, ``-`` 0), the system turn.

        What the human says before the first label is the question and the first step, in one turn
        or in several; then steps and labels take turns.
        """
        name = "conversations"
        turns = record[name]
        if not isinstance(turns, list) or not turns:
            self.problem(number, name, f"must be a list of turns, is {_shown(turns)}")
            return "", [], [], ""
        system, labels = "", []
        said: list[list[str]] = [[]]  # what the human says before each label
        for index, turn in enumerate(turns, start=1):
            where = f"turn {index} "
            role = turn.get("from") if isinstance(turn, dict) else None
            if role not in _ROLES:
                text = f"{where}must be from {', '.join(_ROLES)}, is {_shown(turn)}"
                self.problem(number, name, text)
                continue
            text = self._clean(turn.get("value"), number, name, where).strip()
            if role == "human":
                said[-1].append(text)
            elif role == "system":
                system = text
                if index > 1:
                    self.problem(number, name, f"{where}is from system: only the first may be")
            elif text not in _LABELS:
                if text:
                    self.problem(number, name, f"{where}must be + or -, is {_shown(text)}")
            elif not said[-1]:
                self.problem(number, name, f"{where}labels no step")
            else:
                labels.append(_LABELS[text])
                said.append([])
        question, *first = said[0] or [""]
        pieces = ["\n\n".join(first), *("\n\n".join(turns) for turns in said[1:] if turns)]
        if not labels and not first:
            pieces = []  # a question and nothing else
        prefixes = ["\n\n".join(filter(None, pieces[:count])) for count in range(len(pieces) + 1)]
        return question, step_prompts(question, cut(prefixes[1:])), labels, system

    def meta_sample(self, record: dict, number: int) -> MetaSample:
        """A whole chain with its truth, in either format."""
        if "conversations" in record:
            question, prompts, *_ = self.conversation(record, number)
            image = self._conversation_image(record, number)
            if number not in self.problems and not prompts:
                prompts = chain_prompts(question, self.text(record, number, "response"))
            return MetaSample(number, prompts, image, self._true_false(record, number))
        text = self.text(record, number, "input")
        image = self.image(record, number)
        question, response = split_question(text)
        if text and not response:
            self.problem(number, "input", "holds a question but no response to score")
        prompts = chain_prompts(question, response)
        return MetaSample(number, prompts, image, self._true_false(record, number))

    def _true_false(self, record: dict, number: int) -> bool:
        true_false = record.get("true_false")
        if "true_false" not in record:
            self.problem(number, "true_false", "is missing")
        elif not isinstance(true_false, bool) and true_false not in (0, 1):
            self.problem(number, "true_false", f"must be true or false, is {_shown(true_false)}")
        return bool(true_false)

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
            choices,
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
                        self.problem(number, self.image_fields[number], trouble)

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
        for index in sorted(indices, key=lambda i: len(samples[i].text)):
            for chain in growing:
                if samples[index].text.startswith(samples[chain[-1]].text):
                    chain.append(index)
                    break
            else:
                growing.append([index])
        chains += growing
    return sorted(chains)


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
