"""The data of a run: both files read, checked, and cut to what the run trains on."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..files import FileError, read_json
from ..terminal import printable
from .samples import (
    CandidatesSample,
    DataError,
    MetaSample,
    RecordReader,
    TrainSample,
    chains_of,
    load_candidates,
    load_meta,
    load_train,
    with_labels,
)
from .subsets import choose


@dataclass
class Data:
    """The checked data of a run."""

    train: list[TrainSample]
    meta: list[MetaSample]
    domains: list[str]  # in order of first appearance, as published
    warnings: list[str]
    fingerprint: str  # of all files and of the records in use
    fixed_weights: list[float] | None = None  # of the domains, where none are learned
    validation: list[CandidatesSample] = field(default_factory=list)
    system: str = ""  # the system turn of the train conversations, where they have one


def load_data(arguments: argparse.Namespace, progress: bool = True) -> Data:
    """Read and check both files.

    Raises:
        DataError: naming file, record and field of what is wrong; nothing has been written.
    """
    problems, notes = [], []
    train_reader = RecordReader.of(arguments, arguments.train_json_file)
    train, meta, meta_reader = [], [], None
    try:
        train = load_train(train_reader, progress)
    except DataError as error:
        problems += error.problems
    if arguments.learn_weights:
        meta_reader = RecordReader.of(
            arguments, arguments.meta_json_file, arguments.meta_image_root
        )
        try:
            meta, notes = load_meta(meta_reader, progress)
        except DataError as error:
            problems += error.problems
    for reader in filter(None, (train_reader, meta_reader)):
        if not arguments.skip_bad_records:
            problems += reader.all_problems()
        elif note := reader.left_out():
            notes.append(note)
    read = len(train)
    train = choose(
        train,
        arguments.train_subset,
        arguments.subset_size,
        arguments.step_length,
        arguments.seed,
    )
    if read and not train:
        problems.append(
            f"{train_reader.name}: --train_subset {arguments.train_subset} keeps none of "
            f"{read} records (--step_length {arguments.step_length[0]:g} "
            f"{arguments.step_length[1]:g})"
        )
    elif len(train) < read:
        notes.append(f"--train_subset {arguments.train_subset}: {len(train)} of {read} records")
    if arguments.history == "gold":
        train = with_labels(train)
    systems = Counter(sample.system for sample in train if sample.system)
    system = systems.most_common(1)[0][0] if systems else ""
    if len(systems) > 1 and arguments.score_head == "plus_minus":
        notes.append(
            f"{train_reader.name}: {len(systems)} different system turns; all prompts get "
            "the most common one"
        )
    domains = list(dict.fromkeys(sample.domain for sample in train))
    labels = {sample.true_false for sample in meta}
    if not train and not problems:
        problems.append(f"{train_reader.name}: no usable record is left")
    if arguments.learn_weights and not arguments.by_instance and len(domains) == 1:
        problems.append(
            f"{train_reader.name}: all usable records are of domain '{printable(domains[0])}': "
            "reweighting has nothing to weigh (--baseline trains without it, --reweighting "
            "instance_table weighs single records)"
        )
    if arguments.learn_weights and len(labels) == 1:
        problems.append(
            f"{arguments.meta_json_file}: every usable record is labelled "
            f"{str(labels.pop()).lower()}: the weights cannot learn from one label alone"
        )
    elif arguments.learn_weights and not labels and not problems:
        problems.append(f"{arguments.meta_json_file}: no usable record is left")
    validation = []
    if arguments.eval_candidates:
        reader = RecordReader.of(arguments, arguments.eval_candidates, arguments.eval_image_root)
        try:
            validation = load_candidates(reader, progress)
            if note := reader.left_out():
                notes.append(note)
            if not any(sample.true_false for sample in validation):
                problems.append(f"{arguments.eval_candidates}: no candidate is known to be right")
        except DataError as error:
            problems += error.problems
    fixed_weights = None
    if arguments.domain_weights and not problems:
        try:
            fixed_weights = load_fixed_weights(arguments.domain_weights, domains)
        except DataError as error:
            problems += error.problems
    if problems:
        error = DataError(problems)
        error.notes = notes
        raise error
    digest = hashlib.sha256()
    for reader, samples in ((train_reader, train), (meta_reader, meta)):
        if reader is not None:
            digest.update(Path(reader.file).read_bytes())
            digest.update(json.dumps([sample.record for sample in samples]).encode())
    digest.update(json.dumps(fixed_weights).encode())
    return Data(train, meta, domains, notes, digest.hexdigest(), fixed_weights, validation, system)


def load_fixed_weights(file: str, domains: list[str]) -> list[float]:
    """The weights of ``domains`` from a JSON file {domain: weight}, scaled to average 1.

    Raises:
        DataError: the file is unreadable, a domain is missing or a weight is no number >= 0.
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


def train_units(arguments: argparse.Namespace, train: list[TrainSample]) -> list[list[TrainSample]]:
    """What ``--batch_size`` counts: single records, or the records of one chain together."""
    if arguments.batch_by == "cot":
        return [[train[index] for index in chain] for chain in chains_of(train)]
    return [[sample] for sample in train]


def total_steps(arguments: argparse.Namespace, units: int) -> int:
    """Lower steps of the run: ``--iteration_num`` or ``--max_epoch``, whichever ends first."""
    per_step = arguments.batch_size * arguments.gradient_accumulation
    return min(arguments.iteration_num, max(1, arguments.max_epoch * units // per_step))
