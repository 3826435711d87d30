"""The data of a run: its files are read once, checked, and cut to what the run trains on."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

from ..system.files import FileError, read_json
from ..system.terminal import printable
from .chains import chains_of, questions_of
from .problems import DataError
from .reader import RecordReader, load_candidates, load_meta, load_train
from .samples import CandidatesSample, TrainSample
from .subsets import choose
from .tables import MetaRecords, Sample, TrainRecords

T = TypeVar("T")
AT_ONCE = 100_000  # numbers of records in a text


@dataclass
class Data:
    """The checked data of a run."""

    train: TrainRecords
    meta: MetaRecords
    domains: list[str]  # in order of first appearance, as published
    warnings: list[str]
    fingerprint: str  # of the train and meta files, the records in use and the fixed weights
    fixed_weights: list[float] | None = None  # of the domains, where none are learned
    validation: list[CandidatesSample] = field(default_factory=list)
    system: str = ""  # the system turn of the train conversations, where they have one


@dataclass
class _Findings:
    """What is wrong with the data, and what is worth knowing about them."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def collect(self, load: Callable[[], T], missing: T) -> T:
        """What ``load`` returns, or ``missing`` if it finds problems, which are collected."""
        try:
            return load()
        except DataError as error:
            self.problems += error.problems
            return missing


def load_data(arguments: argparse.Namespace, progress: bool = True) -> Data:
    """Read and check all files of a run.

    Raises:
        DataError: naming file, record and field of what is wrong; nothing has been written.
    """
    found = _Findings()
    digest = hashlib.sha256()  # of both files as they are read, and of what is used of them
    train_reader = RecordReader.of(arguments, arguments.train_json_file, digest=digest)
    none = TrainRecords.none()
    train = found.collect(lambda: load_train(train_reader, progress), none)
    read = len(train)
    train = choose(
        train,
        arguments.train_subset,
        arguments.subset_size,
        arguments.step_length,
        arguments.seed,
        arguments.subset_share,
        arguments.upsample_wrong,
    )
    _update_numbers(digest, train)
    meta, readers = MetaRecords.none(), [train_reader]
    if arguments.learn_weights:
        file, root = arguments.meta_json_file, arguments.meta_image_root
        readers.append(RecordReader.of(arguments, file, root, digest))
        nothing: tuple[MetaRecords, list[str]] = (meta, [])
        meta, found.notes = found.collect(lambda: load_meta(readers[1], progress), nothing)
        if arguments.meta_loss == "rank" and meta:
            meta = _rankable(file, meta, found)
        _update_numbers(digest, meta)
    for reader in readers:
        if not arguments.skip_bad_records:
            found.problems += reader.all_problems()
        elif note := reader.left_out():
            found.notes.append(note)
    text_only = [train_reader.text_only(train), *(r.text_only(meta) for r in readers[1:])]
    found.notes += filter(None, text_only)
    kept = len(set(train.numbers.tolist()))  # --upsample_wrong repeats some
    _check_subset(arguments, train_reader.name, read, kept, found)
    if len(train) > kept:
        found.notes.append(
            f"--upsample_wrong {arguments.upsample_wrong}: {len(train):,} records an epoch, "
            f"not {kept:,}"
        )
    if arguments.history == "gold":
        train = train.with_labels()
    system = _system_turn(arguments, train_reader.name, train, found)
    domains = list(train.named("domain"))
    _check_labels(arguments, train_reader.name, train, domains, meta, found)
    validation = _load_validation(arguments, progress, found)
    fixed_weights = None
    if arguments.domain_weights and not found.problems:
        fixed_weights = found.collect(
            lambda: load_fixed_weights(arguments.domain_weights, domains), None
        )
    if found.problems:
        error = DataError(found.problems)
        error.notes = found.notes
        raise error
    digest.update(json.dumps(fixed_weights).encode())
    return Data(
        train, meta, domains, found.notes, digest.hexdigest(), fixed_weights, validation, system
    )


def _update_numbers(digest: hashlib._Hash, records: TrainRecords | MetaRecords) -> None:
    """Add the list of the numbers of the records, as JSON, which old checkpoints know."""
    for start in range(0, max(1, len(records)), AT_ONCE):
        text = ("" if start else "[") + ", " * (start > 0)
        text += ", ".join(map(str, records.numbers[start : start + AT_ONCE].tolist()))
        digest.update((text + "]" * (start + AT_ONCE >= len(records))).encode())


def _check_subset(
    arguments: argparse.Namespace, name: str, read: int, kept: int, found: _Findings
) -> None:
    """Say how many of the train records that were read ``--train_subset`` keeps."""
    if read and not kept:
        found.problems.append(
            f"{name}: --train_subset {arguments.train_subset} keeps none of {read} records "
            f"(--step_length {arguments.step_length[0]:g} {arguments.step_length[1]:g})"
        )
    elif kept < read:
        found.notes.append(f"--train_subset {arguments.train_subset}: {kept} of {read} records")


def _rankable(name: str, meta: MetaRecords, found: _Findings) -> MetaRecords:
    """The chains that ``--meta_loss rank`` can use: their questions have right and wrong ones."""
    questions = questions_of(meta)
    truth = meta.truth
    labels = [set(truth[question].tolist()) for question in questions]
    kept = [index for question, both in zip(questions, labels, strict=True) if len(both) == 2
            for index in question]  # fmt: skip
    right, wrong = labels.count({True}), labels.count({False})
    if not kept:
        found.problems.append(
            f"{name}: no question has both a right and a wrong chain, which --meta_loss rank needs"
        )
    elif right or wrong:
        found.notes.append(
            f"{name}: --meta_loss rank leaves out {right:,} of {len(questions):,} questions that "
            f"have right chains only, and {wrong:,} that have wrong ones only"
        )
    return meta.take(sorted(kept))


def _system_turn(
    arguments: argparse.Namespace, name: str, train: TrainRecords, found: _Findings
) -> str:
    """The most common system turn of the train conversations, "" if there is none."""
    systems = Counter(train.named("system"))
    systems.pop("", None)
    if len(systems) > 1 and arguments.score_head == "plus_minus":
        found.notes.append(
            f"{name}: {len(systems)} different system turns; all prompts get the most common one"
        )
    return systems.most_common(1)[0][0] if systems else ""


def _check_labels(
    arguments: argparse.Namespace,
    name: str,
    train: TrainRecords,
    domains: list[str],
    meta: MetaRecords,
    found: _Findings,
) -> None:
    """Both files must have usable records, and what weights are learned from must differ."""
    if not train and not found.problems:
        found.problems.append(f"{name}: no usable record is left")
    if not arguments.learn_weights:
        return
    if not arguments.by_instance and len(domains) == 1:
        found.problems.append(
            f"{name}: all usable records are of domain '{printable(domains[0])}': "
            "reweighting has nothing to weigh (--baseline trains without it, --reweighting "
            "instance_table weighs single records)"
        )
    labels = set(meta.truth.tolist())
    if len(labels) == 1:
        found.problems.append(
            f"{arguments.meta_json_file}: every usable record is labelled "
            f"{str(labels.pop()).lower()}: the weights cannot learn from one label alone"
        )
    elif not labels and not found.problems:
        found.problems.append(f"{arguments.meta_json_file}: no usable record is left")


def _load_validation(
    arguments: argparse.Namespace, progress: bool, found: _Findings
) -> list[CandidatesSample]:
    """The questions of ``--eval_candidates``, if it is given."""
    if not arguments.eval_candidates:
        return []
    reader = RecordReader.of(arguments, arguments.eval_candidates, arguments.eval_image_root)
    samples = found.collect(lambda: load_candidates(reader, progress), None)
    if samples is None:
        return []
    found.notes += filter(None, [reader.left_out(), reader.text_only(samples)])
    if not any(sample.true_false for sample in samples):
        found.problems.append(f"{arguments.eval_candidates}: no candidate is known to be right")
    return samples


def load_fixed_weights(file: str, domains: list[str]) -> list[float]:
    """The weights of ``domains`` from a JSON file {domain: weight}, scaled to an average of 1.

    Raises:
        DataError: the file is unreadable, a domain is missing, a weight is not a number >= 0, or
            all are 0.
    """
    try:
        weights = read_json(file)
    except FileError as error:
        raise DataError([str(error)]) from error
    if not isinstance(weights, dict):
        raise DataError([f"{file}: not an object {{domain: weight}}"])
    problems = []
    for domain in domains:
        weight = weights.get(domain)
        if domain not in weights:
            problems.append(f"{file}: domain '{printable(domain)}' of the train file is missing")
        elif (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not 0 <= weight < math.inf
        ):
            name = printable(domain)
            problems.append(f"{file}: domain '{name}': must be a number of at least 0")
    if not problems and not any(weights[domain] for domain in domains):
        problems.append(f"{file}: all weights are 0")
    if problems:
        raise DataError(problems)
    mean = sum(weights[domain] for domain in domains) / len(domains)
    return [weights[domain] / mean for domain in domains]


class Units(Sequence[list[Sample]]):
    """What is drawn together, built when it is drawn.

    Args:
        samples: of which the units consist.
        groups: indices of the samples of each unit; None: each sample is a unit.
    """

    def __init__(
        self, samples: Sequence[Sample], groups: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.samples = samples
        self.groups = groups

    def __len__(self) -> int:
        return len(self.samples if self.groups is None else self.groups)

    @overload
    def __getitem__(self, index: int) -> list[Sample]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Sample]]: ...
    def __getitem__(self, index: int | slice) -> list[Sample] | list[list[Sample]]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return [self.samples[member] for member in self.members(index)]

    def members(self, index: int) -> Sequence[int]:
        """Indices of the samples of unit ``index``."""
        return (index,) if self.groups is None else self.groups[index]


def train_units(arguments: argparse.Namespace, train: Sequence[TrainSample]) -> Units[TrainSample]:
    """The units that ``--batch_size`` counts: single records, or all records of one chain."""
    return Units(train, chains_of(train) if arguments.batch_by == "cot" else None)


def step_size(arguments: argparse.Namespace) -> int:
    """How many units a lower step takes, on all processes."""
    return arguments.batch_size * arguments.processes * arguments.gradient_accumulation


def total_steps(arguments: argparse.Namespace, units: int) -> int:
    """Lower steps of the run: ``--iteration_num`` or ``--max_epoch``, whichever ends first."""
    epochs = arguments.max_epoch * units // step_size(arguments)
    return min(arguments.iteration_num, max(1, epochs))
