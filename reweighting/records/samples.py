"""JSON records to typed samples. Every error in a user's data is found and named here."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import FileError, check_json, read_records
from ..terminal import MAX_LINE, printable
from .answers.comparison import extract, is_right
from .images import allow_megapixels, image_problem, is_data_uri
from .steps import (
    LABELS,
    MAX_STEPS,
    Prompt,
    chain_prompts,
    cut_steps,
    describe_chains,
    record_prompt,
    split_question,
    step_prompts,
    step_starts,
)

MAX_CHARACTERS = 200_000  # of a text: more tokens than a forward pass takes
MAX_KINDS = 20  # of problems that an error lists
MAX_ALIKE = 3  # problems of one kind that are spelled out
MANY_BARE = 10  # bare questions in a meta set that are no slip but its making
# Text that a tokenizer would take for an image, a video or the end of a turn or a document.
_CONTROL_TOKEN = re.compile(
    r"<\|(?:(?:image|video|vision)_pad|(?:vision|im)_(?:start|end)|endoftext)\|>"
    r"|<IMG_CONTEXT>|</?img>|<image>|<video>"
)
# Where many data sets say that the image belongs; it has its place before the question.
_IMAGE_TAG = re.compile(r"<image>[ \t]*\n?")
_LABELS = dict(zip(LABELS, (1.0, 0.0), strict=True))
_ROLES = ("system", "human", "gpt")


def without_image_tags(text: str) -> str:
    """The text of a record without tags for its image, whose place the prompt decides."""
    return _IMAGE_TAG.sub("", text)


def holds_control_token(text: str) -> bool:
    """Whether a tokenizer would take a part of the text for an image or the end of a turn.

    Tags that :func:`without_image_tags` takes out are such parts.
    """
    return _CONTROL_TOKEN.search(text) is not None


def text_fault(text: Any) -> tuple[str, ...] | None:
    """What keeps a text from a model: a sentence with ``{}`` for values, and the values; or None.

    An empty text is none here: whether one may be missing depends on the place.
    """
    if not isinstance(text, str):
        return "must be text, is {}", _shown(text)
    if len(text) > MAX_CHARACTERS:
        return f"holds {{}} characters, more than {MAX_CHARACTERS}", str(len(text))
    if control := _CONTROL_TOKEN.search(text):
        return "holds the control token {}", control.group()
    return _json_fault(text)


def _json_fault(value: Any) -> tuple[str, ...] | None:
    """As :func:`text_fault`, what :func:`~..files.check_json` refuses."""
    try:
        check_json(value)
    except ValueError as error:
        kind, *half = str(error).split(", ")
        return kind + ", {}" * len(half), *half
    return None


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
    response: str = ""  # the whole chain, with its verdict


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
    benchmark: dict | None = None  # its own fields, which the results carry on


@dataclass
class QuestionSample:
    """A question with its answer, to be thought about (rollouts)."""

    record: int
    question: str
    image: str
    answer: str
    dataset: str
    choices: list[str] | None


class Problem(str):
    """One problem, spelled out; ``kind`` is what it shares with all that are like it.

    Args:
        values: what tells it from others of its kind, besides the record.
    """

    kind: str
    values: tuple[str, ...]

    def __new__(cls, text: str, kind: str = "", values: tuple[str, ...] = ()) -> Problem:
        problem = super().__new__(cls, text)
        problem.kind, problem.values = kind or text, values
        return problem


def summary(problems: Sequence[str]) -> str:
    """Problems by kind, some of each spelled out, so that a frequent kind hides no other one."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        problem = problem if isinstance(problem, Problem) else Problem(problem)
        kinds.setdefault(problem.kind, []).append(problem)
    lines: list[str] = []
    for kind, alike in list(kinds.items())[:MAX_KINDS]:
        lines += alike[:MAX_ALIKE]
        if len(alike) > MAX_ALIKE:
            different = len({problem.values for problem in alike})
            note = f" ({different} different ones in all)" if 1 < different < len(alike) else ""
            lines.append(f"{kind}: {len(alike) - MAX_ALIKE} more like these{note}")
    if len(problems) > 1:
        total = f"{len(problems)} problems"
        if 1 < len(kinds) < len(problems):
            total += f" of {len(kinds)} kinds"
        if len(kinds) > MAX_KINDS:
            total += f", {len(kinds) - MAX_KINDS} kinds not listed"
        lines.append(total)
    return "\n".join(lines)


class DataError(Exception):
    """Problems in the user's files; the message is their :func:`summary`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(summary(problems))
        self.problems = problems
        self.notes: list[str] = []


@dataclass
class RecordReader:
    """Reads one file of records and collects what is wrong with them.

    Args:
        file: a JSON array or JSON Lines, told apart by content.
        image_root: relative image paths start here, and no image may lie outside.
        allow_external_images: accept image files outside ``image_root``.
        allow_image_urls: accept http(s) URLs of images.
        skip_bad_records: leave out records with problems instead of raising.
        step_pattern: what starts a step, see :func:`~.steps.layout`.
    """

    file: str
    image_root: str = "."
    allow_external_images: bool = False
    allow_image_urls: bool = False
    skip_bad_records: bool = False
    step_pattern: str | None = None
    problems: dict[int, list[str]] = field(default_factory=dict)
    image_fields: dict[int, str] = field(default_factory=dict)  # by record: where its image stands

    @classmethod
    def of(
        cls, arguments: Namespace, file: str | Path, image_root: str | None = None
    ) -> RecordReader:
        """A reader as the flags of :func:`~..training.arguments.add_record_flags` say.

        Args:
            image_root: instead of ``--image_root``.
        """
        allow_megapixels(arguments.max_image_megapixels)
        return cls(
            str(file),
            image_root or arguments.image_root,
            arguments.allow_external_images,
            arguments.allow_image_urls,
            arguments.skip_bad_records,
            arguments.step_pattern,
        )

    @property
    def name(self) -> str:
        """The file as messages name it."""
        return printable(self.file, MAX_LINE // 2)

    def read(self) -> list[Any]:
        """All records of the file.

        Raises:
            DataError: the file is missing, unreadable, not JSON or holds no list of records.
        """
        try:
            records = read_records(self.file)
        except FileError as error:
            raise DataError([printable(error, MAX_LINE)]) from error
        if not records:
            raise DataError([f"{self.name}: holds no records"])
        return records

    def problem(
        self, number: int, name: str | None, kind: str, *values: str, where: str = ""
    ) -> None:
        """Note a problem of record ``number`` (from 1) in field ``name``.

        Args:
            kind: the sentence, with ``{}`` for what differs from record to record.
            where: the part of the field, as ``turn 3``, which begins the sentence.
        """
        if where:
            kind, values = "{} " + kind, (where, *values)
        values = tuple(printable(value) for value in values)
        self._note(number, name, kind.format(*values), kind.replace("{}", "…"), values)

    def _note(
        self, number: int, name: str | None, text: str, kind: str, values: tuple[str, ...]
    ) -> None:
        place = f": field '{printable(name)}': " if name else ": "
        problem = Problem(
            f"{self.name}: record {number}{place}{text}", f"{self.name}{place}{kind}", values
        )
        self.problems.setdefault(number, []).append(problem)

    def text(self, record: dict, number: int, name: str) -> str:
        """A required, non-empty text field, without the tags that stand for an image."""
        if name not in record:
            self.problem(number, name, "is missing")
            return ""
        return self._clean(record[name], number, name)

    def _optional_text(self, record: dict, number: int, name: str) -> str | None:
        if record.get(name) is None:
            return None
        return self._clean(record[name], number, name, may_be_empty=True)

    def _clean(
        self, value: Any, number: int, name: str, where: str = "", may_be_empty: bool = False
    ) -> str:
        """Text without image tags; ``where`` within field ``name`` it stands, for messages."""
        text = without_image_tags(value) if isinstance(value, str) else value
        fault = text_fault(text)
        if not fault and not may_be_empty and not text.strip():
            fault = ("is empty",)
        if fault:
            self.problem(number, name, *fault, where=where)
            return ""
        return text

    def _prompts(self, question: str, response: str, number: int, name: str) -> list[Prompt]:
        """The prompts of a chain; none if the record has a problem, or the chain too many steps."""
        if number in self.problems or not self._few_steps(response, number, name):
            return []
        return chain_prompts(question, response, self.step_pattern)

    def _few_steps(self, text: str, number: int, name: str, where: str = "") -> bool:
        return self._few(len(step_starts(text, self.step_pattern)), number, name, where)

    def _few(self, steps: int, number: int, name: str, where: str = "") -> bool:
        if steps > MAX_STEPS:
            kind = f"holds {{}} steps, more than {MAX_STEPS}"
            self.problem(number, name, kind, str(steps), where=where)
        return steps <= MAX_STEPS

    def image(self, record: dict, number: int, name: str = "image_path") -> str:
        """A required image path, URL or ``data:`` URI, resolved; later it is checked that it opens.

        Of a list the first is taken.
        """
        self.image_fields[number] = name
        value = record.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and is_data_uri(value):
            return value
        value = self.text({name: value} if name in record else {}, number, name)
        if not value:
            return ""
        if "\0" in value:
            self.problem(number, name, "holds a NUL character: {}", value)
            return ""
        if match := re.match(r"([a-z][a-z0-9+.-]*)://", value, re.IGNORECASE):
            scheme = match[1].lower()
            if scheme == "file":
                path = "/" + value[match.end() :].partition("/")[2]
                self.problem(number, name, "is a URL of a file: give its path instead, {}", path)
            elif scheme not in ("http", "https"):
                self.problem(number, name, "is a URL of an unknown kind ({})", value)
            elif not self.allow_image_urls:
                self.problem(number, name, "is a URL ({}); see --allow_image_urls", value)
            return scheme + value[len(scheme) :]
        path = os.path.join(self.image_root, value)
        root = os.path.realpath(self.image_root)
        inside = os.path.commonpath([root, os.path.realpath(path)]) == root
        if not inside and not self.allow_external_images:
            self.problem(
                number,
                name,
                "{} lies outside the image root {}; see --image_root and --allow_external_images",
                value,
                self.image_root,
            )
        return path

    def samples(self, parse: Callable[[dict, int], Any]) -> list[Any]:
        """Parse all records with ``parse(record, number)``, those with problems left out.

        What ``parse`` returns of a record that it notes a problem of is not looked at.
        """
        samples = []
        for number, record in enumerate(self.read(), start=1):
            if not isinstance(record, dict):
                self.problem(number, None, "must be an object, is {}", _shown(record))
                continue
            if self._can_be_written(record, number):
                sample = parse(record, number)
                if number not in self.problems:
                    samples.append(sample)
        return samples

    def _can_be_written(self, record: dict, number: int) -> bool:
        """Check every field, those that mean nothing here too: they are copied to other files."""
        for name, value in record.items():
            if fault := _json_fault([name, value]):
                self.problem(number, name, *fault)
        return number not in self.problems

    def usable(self, samples: list[Any]) -> list[Any]:
        """The samples that no problem was noted for.

        Raises:
            DataError: there are problems and records are not to be left out, or none is left.
        """
        if self.problems and not self.skip_bad_records:
            raise DataError(self.all_problems())
        samples = [sample for sample in samples if sample.record not in self.problems]
        if not samples:
            raise DataError([*self.all_problems(), f"{self.name}: no usable record is left"])
        return samples

    def left_out(self) -> str | None:
        """A note on the records with problems, if there are any."""
        if not self.problems:
            return None
        count = f"{len(self.problems)} record{'s' if len(self.problems) > 1 else ''}"
        return f"{self.name}: left out {count} with problems:\n{summary(self.all_problems())}"

    def train_sample(self, record: dict, number: int) -> TrainSample | None:
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
            self.problem(number, "accuracy", "must be a number, is {}", _shown(accuracy))
        elif not math.isfinite(accuracy) or not 0 <= accuracy <= 1:
            self.problem(number, "accuracy", "must lie in [0, 1], is {}", printable(accuracy, 40))
        if number in self.problems or not self._few_steps(prefix, number, "add"):
            return None
        prompts = [record_prompt(question, prefix, self.step_pattern)]
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
            self.problem(number, name, "must be a list of turns, is {}", _shown(turns))
            return "", [], [], ""
        system, labels = "", []
        said: list[list[str]] = [[]]  # what the human says before each label
        for index, turn in enumerate(turns, start=1):
            where = f"turn {index}"
            role = turn.get("from") if isinstance(turn, dict) else None
            if role not in _ROLES:
                kind = f"must be from {', '.join(_ROLES)}, is {{}}"
                self.problem(number, name, kind, _shown(turn), where=where)
                continue
            text = self._clean(turn.get("value"), number, name, where).strip()
            if role == "human":
                said[-1].append(text)
            elif role == "system":
                system = text
                if index > 1:
                    kind = "is from system: only the first may be"
                    self.problem(number, name, kind, where=where)
            elif text not in _LABELS:
                if text:
                    self.problem(number, name, "must be + or -, is {}", _shown(text), where=where)
            elif not said[-1]:
                self.problem(number, name, "labels no step", where=where)
            else:
                labels.append(_LABELS[text])
                said.append([])
        question, *first = said[0] or [""]
        pieces = ["\n\n".join(first), *("\n\n".join(turns) for turns in said[1:] if turns)]
        if not labels and not first:
            pieces = []  # a question and nothing else
        characters = sum(map(len, pieces)) + len(question)
        if characters > MAX_CHARACTERS:
            kind = f"holds {{}} characters, more than {MAX_CHARACTERS}"
            self.problem(number, name, kind, str(characters))
        if number in self.problems or not self._few(len(pieces), number, name):
            return question, [], labels, system
        # A first step that shares a turn with the question is empty: no gap before the second.
        steps = [
            "\n\n" + piece if index > 1 or (index and pieces[0]) else piece
            for index, piece in enumerate(pieces)
        ]
        return question, step_prompts(question, tuple(steps)), labels, system

    def meta_sample(self, record: dict, number: int) -> MetaSample:
        """A whole chain with its truth, in either format."""
        if "conversations" in record:
            question, prompts, *_ = self.conversation(record, number)
            response = "".join(prompts[-1].steps) if prompts else ""
            image = self._conversation_image(record, number)
            if number not in self.problems and not prompts:
                response = self.text(record, number, "response")
                prompts = self._prompts(question, response, number, "response")
            return MetaSample(number, prompts, image, self._true_false(record, number), response)
        text = self.text(record, number, "input")
        image = self.image(record, number)
        if "response" in record:
            name, question, response = "response", text, self.text(record, number, "response")
        else:
            name, (question, response) = "input", split_question(text, self.step_pattern)
            if text and not response:
                self.problem(number, "input", "holds a question but no response to score")
        prompts = self._prompts(question, response, number, name)
        return MetaSample(number, prompts, image, self._true_false(record, number), response)

    def _true_false(self, record: dict, number: int) -> bool:
        true_false = record.get("true_false")
        if "true_false" not in record:
            self.problem(number, "true_false", "is missing")
        elif not isinstance(true_false, bool) and true_false not in (0, 1):
            self.problem(number, "true_false", "must be true or false, is {}", _shown(true_false))
        return bool(true_false)

    def candidates_sample(self, record: dict, number: int) -> CandidatesSample | None:
        question = self.text(record, number, "question")
        image = self.image(record, number)
        # The published evaluation code reads one name and documents the other.
        name = "candidate" if "candidate" in record and "candidates" not in record else "candidates"
        candidates = record.get(name)
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(candidates, list) or not candidates:
            self.problem(number, name, "must be a list of responses, is {}", _shown(candidates))
        else:
            candidates = [
                self._candidate(candidate, number, name, f"response {index}")
                for index, candidate in enumerate(candidates, start=1)
            ]
        true_false = record.get("true_false")
        if true_false is not None:
            if not isinstance(true_false, list) or any(x not in (0, 1) for x in true_false):
                shown = _shown(true_false)
                self.problem(number, "true_false", "must be a list of true or false, is {}", shown)
            elif isinstance(candidates, list) and len(true_false) != len(candidates):
                kind = "holds {} values for {} candidates"
                self.problem(number, "true_false", kind, str(len(true_false)), str(len(candidates)))
            else:
                true_false = [bool(value) for value in true_false]
        answer = self._optional_text(record, number, "answer")
        dataset = self._optional_text(record, number, "dataset")
        choices = self._choices(record, number)
        if number in self.problems:
            return None
        if true_false is None and answer:
            true_false = [is_right(candidate, answer, choices) for candidate in candidates]
        benchmark = record.get("benchmark")
        if not isinstance(benchmark, (dict, type(None))):
            self.problem(number, "benchmark", "must be an object, is {}", _shown(benchmark))
        return CandidatesSample(
            number,
            question,
            candidates,
            image,
            true_false,
            answer,
            dataset,
            choices,
            benchmark,
        )

    def _candidate(self, value: Any, number: int, name: str, where: str) -> str:
        """A response; empty ones, as a reasoner that failed leaves them, are fine."""
        text = self._clean(value, number, name, where, may_be_empty=True)
        self._few_steps(text, number, name, where)
        return text if text.strip() else ""

    def _choices(self, record: dict, number: int) -> list[str] | None:
        """The optional texts of the options A, B, …"""
        choices = record.get("choices")
        if choices is not None and not (
            isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
        ):
            self.problem(number, "choices", "must be a list of texts, is {}", _shown(choices))
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
        # Python's list of ignored warnings is shared by all threads: it is changed here alone.
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")
            results = pool.map(image_problem, records)
            bar = tqdm(results, "checking images", len(records), leave=False, **silent)
            for image, trouble in zip(records, bar, strict=True):
                if trouble:
                    kind = trouble.replace(image, "…").partition(":")[0]
                    for number in records[image]:
                        name = self.image_fields[number]
                        self._note(number, name, printable(trouble, MAX_LINE), kind, (image,))

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


def describe_meta(samples: Iterable[MetaSample]) -> str:
    """One line about the steps and final answers of whole chains."""
    return describe_chains((len(s.prompts), extract(s.response) != "") for s in samples)


def describe_candidates(samples: Iterable[CandidatesSample], pattern: str | None) -> str:
    """The same about candidates, whose steps ``pattern`` tells (see :func:`~.steps.layout`)."""
    return describe_chains(
        (len(cut_steps(response, pattern)) if response else 0, extract(response) != "")
        for sample in samples
        for response in sample.candidates
    )


def load_candidates(reader: RecordReader, progress: bool = False) -> list[CandidatesSample]:
    """All usable questions of a candidates file.

    Raises:
        DataError: any record has a problem and is not to be left out, or none is usable.
    """
    samples = reader.samples(reader.candidates_sample)
    reader.check_images(samples, progress)
    return reader.usable(samples)


def load_questions(reader: RecordReader, progress: bool = False) -> list[QuestionSample]:
    """All usable questions of a file, images checked.

    Raises:
        DataError: any record has a problem and is not to be left out, or none is usable.
    """
    samples = reader.samples(reader.question_sample)
    reader.check_images(samples, progress)
    return reader.usable(samples)


def chains_of(samples: list[TrainSample]) -> list[list[int]]:
    """Indices of the samples that are prefixes of one chain, chains in order of appearance.

    Records of one question and image belong to one chain as long as each prefix extends another:
    text alone decides, so records without ``id`` and ``sid`` are matched as well. Where several
    extend the same prefix, the shortest goes on with its chain and the others open new ones.
    """
    by_question: dict[tuple, dict[str, list[int]]] = {}
    for index, sample in enumerate(samples):
        by_text = by_question.setdefault(sample.chain, {})
        by_text.setdefault(sample.text, []).append(index)
    chains: list[list[int]] = []
    for by_text in by_question.values():
        # In alphabetical order a text stands behind all its prefixes and before what is greater
        # than all its extensions: those on the stack are the prefixes of the text at hand.
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
        text = record.get("input") if isinstance(record, dict) else None
        if isinstance(text, str) and len(text) <= MAX_CHARACTERS:
            label = record.get("true_false")
            if isinstance(label, (bool, int)):
                own = "response" in record
                has_response = own or bool(split_question(text, reader.step_pattern)[1])
                labels[has_response][bool(label)] += 1
    with_response, without = labels[True], labels[False]
    total = with_response.total() + without.total()
    if not total or not with_response.total():
        return []
    found = []
    if without.total() >= MANY_BARE and 1 in (len(with_response), len(without)):
        found.append(
            f"{reader.name}: {without.total()} of {total} records hold no response at all, and "
            f"{with_response[True]} of the {with_response.total()} responses are labelled true "
            f"({without[True]} of the {without.total()} bare questions are): the label can be read "
            "from the presence of text, so such a set can only teach the weights that text is good"
        )
    return found


def _shown(value: Any) -> str:
    """A value as JSON writes it, its beginning if it is long."""
    return printable(json.dumps(value, ensure_ascii=False), 40)
