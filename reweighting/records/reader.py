"""From a file of records to typed samples: what each of the four kinds of records must hold.

:mod:`.fields` says how a single field is read and how its errors are named.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..system.terminal import printable
from .answers.comparison import is_right
from .checking import checked
from .conversations import conversation
from .fields import FieldReader
from .rows import meta_warnings
from .samples import CandidatesSample, MetaSample, QuestionSample, TrainSample
from .steps import Prompt, TooManySteps, chain_prompts, record_prompt, split_question
from .tables import MetaRecords, TrainRecords
from .texts import shown


class RecordReader(FieldReader):
    """Reads train, meta, candidates and question records.

    The methods take a record and its number; what they return is usable only if they have noted no
    problem of it.
    """

    def train_sample(self, record: dict, number: int) -> TrainSample | None:
        """A step prefix (DreamPRM), or a conversation with labels (DreamPRM-1.5)."""
        if "conversations" in record:
            return self._train_conversation(record, number)
        question = self.text(record, number, "input")
        prefix = self.text(record, number, "add")
        images = self.images(record, number)
        domain = self.text(record, number, "dataset")
        accuracy = record.get("accuracy")
        if "accuracy" not in record:
            self.problem(number, "accuracy", "is missing")
        elif isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)):
            self.problem(number, "accuracy", "must be a number, is {}", shown(accuracy))
        elif not math.isfinite(accuracy) or not 0 <= accuracy <= 1:
            self.problem(number, "accuracy", "must lie in [0, 1], is {}", printable(accuracy, 40))
        if number in self.problems:
            return None
        try:
            prompts = [record_prompt(question, prefix, self.step_pattern)]
        except TooManySteps as error:
            self.check_count(error.steps, number, "add")
            return None
        chain = (domain, images, question)
        name = str(record.get("id", ""))
        return TrainSample(number, prompts, images, domain, [accuracy], chain, id=name)

    def _train_conversation(self, record: dict, number: int) -> TrainSample:
        question, prompts, labels, system = conversation(self, record, number)
        images = self._conversation_images(record, number)
        # Without a name all records of a file are one domain.
        domain = Path(self.file).stem
        if "dataset" in record:
            domain = self.text(record, number, "dataset")
        if number not in self.problems and len(labels) < max(1, len(prompts)):
            self.problem(number, "conversations", "must end with the label of a step")
        chain = (domain, images, question)
        name = str(record.get("id", ""))
        return TrainSample(number, prompts, images, domain, labels, chain, system, name)

    def _conversation_images(self, record: dict, number: int) -> tuple[str, ...]:
        return self.images(record, number, "image" if record.get("image") else "image_path")

    def meta_sample(self, record: dict, number: int) -> MetaSample:
        """A whole chain with its truth, in either format."""
        if "conversations" in record:
            question, prompts, *_ = conversation(self, record, number)
            response = "".join(prompts[-1].steps) if prompts else ""
            images = self._conversation_images(record, number)
            if number not in self.problems and not prompts:
                response = self.text(record, number, "response")
                prompts = self._prompts(question, response, number, "response")
            return MetaSample(number, prompts, images, self._true_false(record, number), response)
        text = self.text(record, number, "input")
        images = self.images(record, number)
        if "response" in record:
            name, question, response = "response", text, self.text(record, number, "response")
        else:
            name, (question, response) = "input", split_question(text, self.step_pattern)
            if text and not response:
                self.problem(number, "input", "holds a question but no response to score")
        prompts = self._prompts(question, response, number, name)
        return MetaSample(number, prompts, images, self._true_false(record, number), response)

    def _true_false(self, record: dict, number: int) -> bool:
        true_false = record.get("true_false")
        if "true_false" not in record:
            self.problem(number, "true_false", "is missing")
        elif not isinstance(true_false, bool) and true_false not in (0, 1):
            self.problem(number, "true_false", "must be true or false, is {}", shown(true_false))
        return bool(true_false)

    def _prompts(self, question: str, response: str, number: int, name: str) -> list[Prompt]:
        """The prompts of a chain; none if the record has a problem, or the chain too many steps."""
        if number in self.problems:
            return []
        try:
            return chain_prompts(question, response, self.step_pattern)
        except TooManySteps as error:
            self.check_count(error.steps, number, name)
            return []

    def candidates_sample(self, record: dict, number: int) -> CandidatesSample | None:
        """A question with its candidate chains, of which some may be known to be right."""
        question = self.text(record, number, "question")
        images = self.images(record, number)
        # The published evaluation code reads one name and documents the other.
        name = "candidate" if "candidate" in record and "candidates" not in record else "candidates"
        candidates = record.get(name)
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(candidates, list) or not candidates:
            self.problem(number, name, "must be a list of responses, is {}", shown(candidates))
        else:
            candidates = [
                self._candidate(candidate, number, name, f"response {index}")
                for index, candidate in enumerate(candidates, start=1)
            ]
        true_false = self._each_true_false(record, number, candidates)
        answer = self.optional_text(record, number, "answer")
        dataset = self.optional_text(record, number, "dataset")
        choices = self._choices(record, number)
        if number in self.problems:
            return None
        if true_false is None and answer:
            true_false = [is_right(candidate, answer, choices) for candidate in candidates]
        benchmark = record.get("benchmark")
        if not isinstance(benchmark, (dict, type(None))):
            self.problem(number, "benchmark", "must be an object, is {}", shown(benchmark))
        return CandidatesSample(
            number, question, candidates, images, true_false, answer, dataset, choices, benchmark
        )

    def _each_true_false(self, record: dict, number: int, candidates: Any) -> list[bool] | None:
        """The optional labels of the candidates."""
        name, labels = "true_false", record.get("true_false")
        if labels is None:
            return None
        if not isinstance(labels, list) or any(label not in (0, 1) for label in labels):
            self.problem(number, name, "must be a list of true or false, is {}", shown(labels))
        elif isinstance(candidates, list) and len(labels) != len(candidates):
            kind = "holds {} values for {} candidates"
            self.problem(number, name, kind, str(len(labels)), str(len(candidates)))
        else:
            return [bool(label) for label in labels]
        return None

    def _candidate(self, value: Any, number: int, name: str, where: str) -> str:
        """A response; empty ones, as a reasoner that failed leaves them, are fine."""
        text = self.clean(value, number, name, where, may_be_empty=True)
        self.check_steps(text, number, name, where)
        return text if text.strip() else ""

    def _choices(self, record: dict, number: int) -> list[str] | None:
        """The optional texts of the options A, B, …"""
        choices = record.get("choices")
        if choices is not None and not (
            isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
        ):
            self.problem(number, "choices", "must be a list of texts, is {}", shown(choices))
        return choices

    def question_sample(self, record: dict, number: int) -> QuestionSample:
        """A question with its answer."""
        return QuestionSample(
            number,
            self.text(record, number, "question"),
            self.image(record, number),
            self.text(record, number, "answer"),
            self.text(record, number, "dataset"),
            self._choices(record, number),
        )


def load_train(reader: RecordReader, progress: bool = False) -> TrainRecords:
    """The usable train samples; the reader's ``problems`` says what is wrong with the others.

    Raises:
        DataError: the file is missing, unreadable, not JSON or holds no list of records.
    """
    table, rows, _ = checked(reader, TrainSample, progress)
    return TrainRecords(table, rows)


def load_meta(reader: RecordReader, progress: bool = False) -> tuple[MetaRecords, list[str]]:
    """The usable meta samples, and warnings about what they can teach.

    Raises:
        DataError: as for :func:`load_train`.
    """
    table, rows, responses = checked(reader, MetaSample, progress)
    return MetaRecords(table, rows), meta_warnings(reader.name, responses)


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
