"""From the files of step benchmarks to records with a label for every step.

The layouts of VisualProcessBench (arXiv 2503.10291), ProcessBench (arXiv 2412.06559) and PRMBench
(arXiv 2501.03124) are known here from their authors' papers and code; no file of theirs was read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..records.problems import DataError
from ..records.reader import RecordReader
from ..records.samples import CandidatesSample
from ..records.steps import cut_steps
from ..records.texts import shown

# The ways to look at all sources at once, which no source may be called.
ALL, BY_STEPS, BY_SOURCES = "all steps", "mean by steps", "mean of sources"
Labels = list[bool | None]  # of a chain's steps: right, wrong, or not judged


@dataclass
class StepRecord:
    """Chains of thought about one question, with a label for every step."""

    record: int  # number in the file, from 1
    source: str  # the part of the benchmark that it belongs to
    question: str
    images: tuple[str, ...]  # none, one or several
    chains: Sequence[str | list[str]]  # texts that are cut into steps, or lists of their steps
    labels: list[Labels]  # of the steps of every chain

    @property
    def sample(self) -> CandidatesSample:
        """The record as selection scores it; the labels go with it into the line of results."""
        return CandidatesSample(
            record=self.record,
            question=self.question,
            candidates=self.chains,  # type: ignore[arg-type]  # or lists of steps
            images=self.images,
            true_false=None,
            answer=None,
            dataset=self.source,
            benchmark={"step_labels": self.labels},
        )


class StepReader(RecordReader):
    """Reads records of step benchmarks: one method for each layout.

    The methods take a record and its number; what they return is usable only if they have noted no
    problem of it.
    """

    def visualprocessbench(self, record: dict, number: int) -> StepRecord | None:
        """A response to an image question; every step is right (1), wrong (-1) or neutral (0)."""
        question = self.text(record, number, "question")
        source = self.text(record, number, "data_source")
        images = self.images(record, number, "image")
        if "image" not in record and number not in self.problems:
            self.problem(number, "image", "is missing")
        response = record.get("response")
        if not isinstance(response, dict):
            self.problem(number, "response", "must be an object, is {}", shown(response))
            return None
        steps = self._steps(response, number, "steps")
        values = self._numbers(response, number, "process_correctness", -1, 1)
        if number not in self.problems and len(values) != len(steps):
            kind = "holds {} labels for {} steps"
            self.problem(number, "process_correctness", kind, str(len(values)), str(len(steps)))
        labels = [None if value == 0 else value == 1 for value in values]
        return StepRecord(number, source, question, images, [steps], [labels])

    def processbench(self, record: dict, number: int) -> StepRecord:
        """A solution of a text question with the index of its first wrong step, or -1.

        Of the steps after the first wrong one nothing is known. The source is the file, one for
        each split.
        """
        question = self.text(record, number, "problem")
        steps = self._steps(record, number, "steps")
        label = record.get("label")
        [first] = self._numbers({"label": [label]} if "label" in record else {}, number, "label",
                                -1, max(len(steps) - 1, 0)) or [-1]  # fmt: skip
        labels: Labels = [True] * len(steps)
        if first >= 0:
            labels[first:] = [False] + [None] * (len(steps) - first - 1)
        return StepRecord(number, Path(self.file).stem, question, (), [steps], [labels])

    def prmbench(self, record: dict, number: int) -> StepRecord:
        """A modified solution of a text question, and the numbers, from 1, of its wrong steps."""
        question = self.text(record, number, "modified_question")
        source = self.text(record, number, "classification")
        steps = self._steps(record, number, "modified_process")
        wrong = set(self._numbers(record, number, "error_steps", 1, len(steps)))
        labels: Labels = [place not in wrong for place in range(1, len(steps) + 1)]
        return StepRecord(number, source, question, (), [steps], [labels])

    def candidates(self, record: dict, number: int) -> StepRecord | None:
        """Our own candidates record with ``step_correct``: true, false, or null (not judged) for
        every step of every candidate."""
        sample = self.candidates_sample(record, number)
        labels = record.get("step_correct")
        name = "step_correct"
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(labels, list) or not all(isinstance(chain, list) for chain in labels):
            self.problem(number, name, "must be a list of lists of labels, is {}", shown(labels))
        elif not all(label is None or isinstance(label, bool) for c in labels for label in c):
            self.problem(number, name, "must hold true, false and null only, is {}", shown(labels))
        if number in self.problems:
            return None
        if len(labels) != len(sample.candidates):
            kind = "holds labels of {} chains for {} candidates"
            self.problem(number, name, kind, str(len(labels)), str(len(sample.candidates)))
        for place, (text, chain) in enumerate(zip(sample.candidates, labels, strict=False), 1):
            steps = len(cut_steps(text, self.step_pattern)) if text else 0
            if steps != len(chain):
                kind = "holds {} labels for {} steps"
                where = f"response {place}"
                self.problem(number, name, kind, str(len(chain)), str(steps), where=where)
        source = sample.dataset or Path(self.file).stem
        return StepRecord(number, source, sample.question, sample.images, sample.candidates, labels)

    def _steps(self, record: dict, number: int, name: str) -> list[str]:
        """A list of texts, at least one."""
        steps = record.get(name)
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(steps, list) or not steps:
            self.problem(number, name, "must be a list of steps, is {}", shown(steps))
        elif self.check_count(len(steps), number, name):
            return [self.clean(step, number, name, f"step {k}") for k, step in enumerate(steps, 1)]
        return []

    def _numbers(self, record: dict, number: int, name: str, least: int, most: int) -> list[int]:
        """A list of whole numbers in a range; [] if it has a problem."""
        values = record.get(name)
        if name not in record:
            self.problem(number, name, "is missing")
        elif not isinstance(values, list):
            self.problem(number, name, "must be a list of whole numbers, is {}", shown(values))
        else:
            odd = [v for v in values if type(v) is not int or not least <= v <= most]
            if not odd:
                return values
            kind = f"must be whole numbers from {least} to {{}}, not {{}}"
            self.problem(number, name, kind, str(most), shown(odd[0]))
        return []


LAYOUTS: dict[str, Callable[[StepReader, dict, int], StepRecord | None]] = {
    "visualprocessbench": StepReader.visualprocessbench,
    "processbench": StepReader.processbench,
    "prmbench": StepReader.prmbench,
    "candidates": StepReader.candidates,
}


# A field of the first record that tells the layout of a file, the first of them that it has.
TOLD_BY = {
    "step_correct": "candidates",
    "modified_process": "prmbench",
    "response": "visualprocessbench",
    "problem": "processbench",
}


def load_steps(reader: StepReader, layout: str, or_candidates: bool = False) -> list[StepRecord]:
    """All usable records of a file.

    Args:
        layout: a name in :data:`LAYOUTS`.
        or_candidates: the file may hold our own records instead, told by ``step_correct``.

    Raises:
        DataError: any record has a problem and is not to be left out, or none is usable.
    """
    items = reader.read()
    if or_candidates and told_layout(items[0]) == "candidates":
        layout = "candidates"
    return _usable(reader, layout, items)


def load_told_steps(reader: StepReader) -> tuple[str, list[StepRecord]]:
    """The layout that a file has, by its first record, and all its usable records.

    Raises:
        DataError: as :func:`load_steps`, or no layout is told.
    """
    items = reader.read()
    layout = told_layout(items[0])
    if layout is None:
        known = ", ".join(f"'{field}' ({name})" for field, name in TOLD_BY.items())
        raise DataError([f"{reader.name}: record 1 has no field that tells its layout: {known}"])
    return layout, _usable(reader, layout, items)


def told_layout(record: object) -> str | None:
    """The layout of a record by :data:`TOLD_BY`."""
    fields = record if isinstance(record, dict) else {}
    return next((layout for field, layout in TOLD_BY.items() if field in fields), None)


def _usable(reader: StepReader, layout: str, items: list) -> list[StepRecord]:
    records = reader.samples(lambda *record: LAYOUTS[layout](reader, *record), items)
    for record in records:
        if record.source in (ALL, BY_STEPS, BY_SOURCES):
            reader.problem(record.record, None, "its source has a reserved name, {}", record.source)
    reader.check_images(records, progress=True)
    return reader.usable(records)


def has_both(records: Sequence[StepRecord]) -> bool:
    """Whether there are right steps and wrong ones, without which no measure says anything."""
    known = {label for record in records for labels in record.labels for label in labels}
    return {True, False} <= known
