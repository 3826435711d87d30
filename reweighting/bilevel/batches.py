"""From samples to batches: a random order that can be resumed, data workers, collation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..records.chains import questions_of, truth_of
from ..records.samples import MetaSample, TrainSample
from ..reward_model.encoder import EncodedPrompts, PromptEncoder
from ..reward_model.prefix_tree import ByValue, PackedTrees, pack
from ..system.workers import end_with_parent

T = TypeVar("T")


@dataclass
class TrainBatch(ByValue):
    """B records with R prompts in all: one per record, or per labelled step of a conversation."""

    prompts: PackedTrees
    accuracy: torch.Tensor  # [R], Monte-Carlo accuracy in [0, 1]
    domains: torch.Tensor  # [B], domain index
    records: torch.Tensor  # [B], record number in the file, from 1
    record_of_prompt: torch.Tensor  # [R], which of the B records a prompt belongs to
    features: torch.Tensor | None = None  # [R, F], the instance net's inputs in the lower step
    whole: int | None = None  # records of the batch on all processes; None: all of it is here

    def to(self, device: torch.device | str) -> TrainBatch:
        return replace(
            self,
            prompts=self.prompts.to(device),
            accuracy=self.accuracy.to(device, non_blocking=True),
            domains=self.domains.to(device, non_blocking=True),
            record_of_prompt=self.record_of_prompt.to(device, non_blocking=True),
        )

    def records_of_trees(self) -> list[set[int]]:
        """For every tree of prompts, which of the B records have prompts in it."""
        found: list[set[int]] = [set() for _ in self.prompts.trees]
        trees, records = self.prompts.tree_of_prompt().tolist(), self.record_of_prompt.tolist()
        for tree, record in zip(trees, records, strict=True):
            found[tree].add(record)
        return found

    def trees_by_weight(self, sharing: torch.Tensor) -> dict[int, list[int]]:
        """By number in ``sharing``, ``[B]``: the trees all of whose records have that number."""
        numbers, found = sharing.tolist(), {}
        for tree, records in enumerate(self.records_of_trees()):
            shared = {numbers[record] for record in records}
            if len(shared) == 1:
                found.setdefault(shared.pop(), []).append(tree)
        return found

    def part(self, trees: Sequence[int]) -> tuple[TrainBatch, torch.Tensor]:
        """The records that have prompts in ``trees``, and which of the B they are."""
        tree_of_prompt = self.prompts.tree_of_prompt()
        chosen = torch.isin(tree_of_prompt, torch.tensor(trees, device=tree_of_prompt.device))
        records, record_of_prompt = self.record_of_prompt[chosen].unique(return_inverse=True)
        part = TrainBatch(
            prompts=self.prompts.part(trees),
            accuracy=self.accuracy[chosen],
            domains=self.domains[records],
            records=self.records[records.cpu()],
            record_of_prompt=record_of_prompt,
            features=None if self.features is None else self.features[chosen],
        )
        return part, records

    def pin_memory(self) -> TrainBatch:
        return replace(
            self,
            prompts=self.prompts.pin_memory(),
            accuracy=self.accuracy.pin_memory(),
            domains=self.domains.pin_memory(),
            record_of_prompt=self.record_of_prompt.pin_memory(),
        )


@dataclass
class MetaBatch(ByValue):
    """M complete chains of thought with R step prefixes in all."""

    prompts: PackedTrees
    chain: torch.Tensor  # [R], which of the M chains a prefix belongs to
    true_false: torch.Tensor  # [M], 1 right, 0 wrong
    records: torch.Tensor  # [M], record number in the file, from 1
    question: torch.Tensor  # [M], which unit a chain was drawn with: its question, or it alone
    whole: int | None = None  # losses of the batch on all processes; None: all of it is here
    idle: bool = False  # it is another process's, and only scored because there is none for this

    def to(self, device: torch.device | str) -> MetaBatch:
        return replace(
            self,
            prompts=self.prompts.to(device),
            chain=self.chain.to(device, non_blocking=True),
            true_false=self.true_false.to(device, non_blocking=True),
            question=self.question.to(device, non_blocking=True),
        )

    def pin_memory(self) -> MetaBatch:
        return replace(
            self,
            prompts=self.prompts.pin_memory(),
            chain=self.chain.pin_memory(),
            true_false=self.true_false.pin_memory(),
            question=self.question.pin_memory(),
        )


AnyBatch = TypeVar("AnyBatch", TrainBatch, MetaBatch)


def whole_size(batches: Sequence[TrainBatch]) -> int:
    """The records of a lower step with these micro-batches, on all processes."""
    return sum(len(batch.records) if batch.whole is None else batch.whole for batch in batches)


class EncodedDataset(Dataset):
    """Samples whose prompts are tokenised and whose images are processed when they are drawn.

    Items are asked for by the index of a unit, or by the indices of several units of one question,
    which then are one: they share a prefix tree.

    Args:
        units: samples of one question that are drawn together: a single record, or all train
            records of a chain.
        encoder: the reward model's.
    """

    def __init__(
        self, units: Sequence[Sequence[TrainSample | MetaSample]], encoder: PromptEncoder
    ) -> None:
        self.units = units
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(
        self, index: int | tuple[int, ...]
    ) -> tuple[Sequence[TrainSample | MetaSample], EncodedPrompts]:
        units = index if isinstance(index, tuple) else (index,)
        unit = [sample for number in units for sample in self.units[number]]
        prompts = [prompt for sample in unit for prompt in sample.prompts]
        return unit, self.encoder.encode(unit[0].images, prompts)


class CollateTrain:
    """Pack records into a :class:`TrainBatch`; ``domains`` fixes the domain indices."""

    def __init__(self, domains: Sequence[str]) -> None:
        self.index = {domain: index for index, domain in enumerate(domains)}

    def __call__(self, items: list[tuple[Sequence[TrainSample], EncodedPrompts]]) -> TrainBatch:
        samples = [sample for unit, _ in items for sample in unit]
        accuracies = [accuracy for sample in samples for accuracy in sample.accuracies]
        return TrainBatch(
            prompts=pack([prompts for _, prompts in items]),
            accuracy=torch.tensor(accuracies, dtype=torch.float32),
            domains=torch.tensor([self.index[sample.domain] for sample in samples]),
            records=torch.tensor([sample.record for sample in samples]),
            record_of_prompt=torch.repeat_interleave(
                torch.tensor([len(sample.prompts) for sample in samples])
            ),
        )


def collate_meta(items: list[tuple[Sequence[MetaSample], EncodedPrompts]]) -> MetaBatch:
    """Pack complete chains into a :class:`MetaBatch`."""
    samples = [sample for unit, _ in items for sample in unit]
    steps = torch.tensor([len(sample.prompts) for sample in samples])
    return MetaBatch(
        prompts=pack([prompts for _, prompts in items]),
        chain=torch.repeat_interleave(steps),
        true_false=torch.tensor([float(sample.true_false) for sample in samples]),
        records=torch.tensor([sample.record for sample in samples]),
        question=torch.repeat_interleave(torch.tensor([len(unit) for unit, _ in items])),
    )


class ShuffledStream(Sampler[list[int]]):
    """Endless batches of indices: one random permutation after another.

    A batch may span two epochs, so all batches have the same size. The order depends on the seed
    alone; ``start`` skips that many batches, which is how a run resumes in the middle of an epoch.

    Args:
        size: number of items.
        batch_size: items per batch.
        seed: of the order; the permutation of an epoch depends on the seed and its number.
        start: number of batches already used.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start * self.batch_size
        epoch, order = -1, torch.empty(0)
        while True:
            batch = []
            for index in range(position, position + self.batch_size):
                if index // self.size != epoch:
                    epoch = index // self.size
                    order = self._permutation(epoch)
                batch.append(int(order[index % self.size]))
            position += self.batch_size
            yield batch

    def _permutation(self, epoch: int) -> torch.Tensor:
        return torch.randperm(self.size, generator=_generator(self.seed, epoch))


class QuestionStream(Sampler[list[tuple[int, ...]]]):
    """Endless batches of the chains of whole questions, as a ranking loss needs them.

    An epoch has every question once. A batch takes questions as long as all their chains fit, so it
    may be smaller than ``batch_size``. Of a question that has more chains than that, as many are
    drawn at random at each visit, half of them right where there are enough of both kinds.

    Args:
        samples: the meta chains; every question has a right and a wrong one.
        batch_size: most chains of a batch, at least 2.
        seed, start: see :class:`ShuffledStream`.
    """

    def __init__(
        self, samples: Sequence[MetaSample], batch_size: int, seed: int, start: int = 0
    ) -> None:
        self.true_false = truth_of(samples)
        self.questions = questions_of(samples)
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        return itertools.islice(filled(self._visits(), self.batch_size, len), self.start, None)

    def _visits(self) -> Iterator[tuple[int, ...]]:
        for epoch in itertools.count():
            generator = _generator(self.seed, epoch)
            for number in torch.randperm(len(self.questions), generator=generator).tolist():
                yield self._chains(self.questions[number], generator)

    def _chains(self, question: list[int], generator: torch.Generator) -> tuple[int, ...]:
        """The chains of a ``question``, or as many of them as a batch holds."""
        room = self.batch_size
        if len(question) <= room:
            return tuple(question)
        order = [question[k] for k in torch.randperm(len(question), generator=generator).tolist()]
        right = [chain for chain in order if self.true_false[chain]]
        wrong = [chain for chain in order if not self.true_false[chain]]
        rights = min(len(right), max(room // 2, room - len(wrong)))
        return tuple(sorted(right[:rights] + wrong[: room - rights]))


class Share(Sampler[list]):
    """The part of every batch of ``stream`` that one of several processes has.

    The parts are successive, whole units in their order, and of nearly equal size. If there are
    fewer units than processes, one that has none gets the last one, see :attr:`MetaBatch.idle`.

    Args:
        stream: endless batches of units, the same for all processes.
        rank: of the process.
        count: of processes.
    """

    def __init__(self, stream: ShuffledStream | QuestionStream, rank: int, count: int) -> None:
        self.stream = stream
        self.rank = rank
        self.count = count

    def __iter__(self) -> Iterator[list]:
        return (self.part(batch) or batch[-1:] for batch in self.stream)

    def part(self, batch: list) -> list:
        """The units of ``batch`` that are this process's."""
        sizes = [len(unit) if isinstance(unit, tuple) else 1 for unit in batch]
        ends, total = itertools.accumulate(sizes), sum(sizes)
        # A unit belongs to the process on whose part of a line its middle lies.
        return [
            unit
            for unit, size, end in zip(batch, sizes, ends, strict=True)
            if (2 * end - size) * self.count // (2 * total) == self.rank
        ]

    def shares(
        self, batches: Iterator[AnyBatch], losses: Callable[[list], int]
    ) -> Iterator[AnyBatch]:
        """The loaded ``batches`` of this stream, told what the whole ones are.

        Args:
            losses: how many losses the units of a batch have.
        """
        whole: Iterable[list] = self.stream
        for batch, units in zip(batches, whole, strict=False):
            batch.whole = losses(units)
            if isinstance(batch, MetaBatch):
                batch.idle = not self.part(units)
            yield batch


def filled(units: Iterable[T], batch_size: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches of successive ``units`` whose sizes together are at most ``batch_size``."""
    batch, room = [], batch_size
    for unit in units:
        if size(unit) > room:
            yield batch
            batch, room = [], batch_size
        batch.append(unit)
        room -= size(unit)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def batch_loader(
    units: Sequence[Sequence[TrainSample | MetaSample]],
    encoder: PromptEncoder,
    collate,
    stream: ShuffledStream | QuestionStream | Share,
    workers: int,
    pin_memory: bool,
) -> DataLoader:
    """A loader over ``stream``; with ``workers`` = 0 the training process encodes by itself."""
    return DataLoader(
        EncodedDataset(units, encoder),
        batch_sampler=stream,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if workers else None,
    )


def _start_worker(worker: int) -> None:
    """Give a worker one thread and its share of the image cache, and bind it to its parent."""
    torch.set_num_threads(1)
    info = get_worker_info()
    info.dataset.encoder.cache_bytes //= info.num_workers
    end_with_parent()
