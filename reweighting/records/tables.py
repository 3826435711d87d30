"""Checked records as Arrow tables: a sample is built when it is drawn, and no sooner.

A million samples as Python objects take gigabytes, and every data worker copies them bit by bit,
as it counts references. A table is mapped into memory from a file that all processes share, or
held in memory if it is small. What concerns all records at once is computed on its columns.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .chains import Groups, chains_from, describe_chains
from .samples import MetaSample, TrainSample
from .steps import Prompt

Sample = TypeVar("Sample", TrainSample, MetaSample)
AnyRecords = TypeVar("AnyRecords", bound="Records")

ROWS, IMAGES, LINKS = "rows.arrow", "images.arrow", "links.arrow"  # the files of a table
DRAWN = 200  # rows that are read before the pages they lie on are given back

# ``lengths`` are the characters of each step in ``steps``, ``images`` numbers of rows of the table
# of images, and ``image_field``, ``domain`` and ``system`` numbers of names.
_COMMON = [
    ("record", pa.int32()),
    ("question", pa.string()),
    ("steps", pa.string()),
    ("lengths", pa.list_(pa.int32())),
    ("images", pa.list_(pa.int32())),
    ("image_field", pa.int32()),
]
SCHEMAS = {
    TrainSample: pa.schema(
        [
            *_COMMON,
            ("accuracies", pa.list_(pa.float64())),
            ("domain", pa.int32()),
            ("system", pa.int32()),
            ("id", pa.string()),
        ]
    ),
    MetaSample: pa.schema(
        [
            *_COMMON,
            ("true_false", pa.bool_()),
            ("response", pa.string()),
            ("answered", pa.bool_()),
        ]
    ),
}
IMAGE_SCHEMA = pa.schema(
    [("image", pa.large_string()), ("modified", pa.int64()), ("size", pa.int64())]
)
NAMED = ("image_field", "domain", "system")  # columns that hold numbers of names


class Table:
    """The rows of one file of records, their images, and how rows hang together.

    Args:
        rows: of a schema of :data:`SCHEMAS`.
        images: ``image``, a path, URL or ``data:`` URI, and its status when it was checked.
        links: per row; train: ``text`` and ``extends`` (:func:`~.chains.linked`), meta:
            ``question``, the same number for chains of one question about the same images.
        names: those that the columns :data:`NAMED` number.
        folder: where the tables lie as files, if they do.
    """

    def __init__(
        self,
        rows: pa.Table,
        images: pa.Table,
        links: pa.Table,
        names: dict[str, list[str]],
        folder: Path | None = None,
        mapped: mmap.mmap | None = None,
    ) -> None:
        self.rows, self.images, self.links = rows, images, links
        self.names = names
        self.folder = folder
        self._mapped = mapped
        self._drawn = 0
        self._batches = rows.to_batches()
        self._starts = np.array([0, *accumulate(len(batch) for batch in self._batches)])
        self._index = {name: number for number, name in enumerate(rows.schema.names)}

    @classmethod
    def open(cls, folder: Path, names: dict[str, list[str]]) -> Table:
        """The table in ``folder``, mapped into memory.

        Raises:
            OSError, ValueError, pyarrow.ArrowException: its files are missing or broken.
        """
        present = [name for name in (ROWS, IMAGES, LINKS) if (folder / name).exists()]
        mapped = [_mapped(folder / name) for name in present]
        tables = [pa.ipc.open_file(pa.py_buffer(file)).read_all() for file in mapped]
        links = tables[2] if LINKS in present else pa.table({})
        return cls(tables[0], tables[1], links, names, folder, mapped[0])

    def file(self, name: str) -> Path:
        """The path of a file of a table that lies in a folder."""
        assert self.folder is not None
        return self.folder / name

    def __reduce__(self):  # a data worker that is no fork opens the files itself
        if self.folder is not None:
            return Table.open, (self.folder, self.names)
        return Table, (self.rows, self.images, self.links, self.names)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> dict[str, Any]:
        """The values of row ``number`` (from 0), with names for their numbers and images."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        batch, number = self._batches[place], number - int(self._starts[place])
        found = {name: batch.column(k)[number].as_py() for name, k in self._index.items()}
        paths = self.images.column(0)
        found["images"] = tuple(paths[image].as_py() for image in found["images"])
        for name in NAMED:
            if name in found:
                found[name] = self.names[name][found[name]]
        self._drawn += 1
        if self._drawn % DRAWN == 0:
            self.release()
        return found

    def texts(self, rows: np.ndarray) -> list[str]:
        """The steps of ``rows``, which are sorted."""
        ends: Any = np.searchsorted(rows, self._starts)
        found: list[str] = []
        for k in np.flatnonzero(np.diff(ends)).tolist():
            local = rows[ends[k] : ends[k + 1]] - self._starts[k]
            found += self._batches[k].column("steps").take(pa.array(local)).to_pylist()
        return found

    def release(self) -> None:
        """Give back the memory of rows that were read; the file's pages would pile up in it."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers of the rows or the links, ``[rows]``, as a copy in memory."""
        table = self.rows if name in self._index else self.links
        found = table.column(name).to_numpy()
        self.release()
        return found

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of lists: all values, ``[n]``, and where each list begins, ``[rows + 1]``."""
        column = self.rows.column(name)
        counts = pc.list_value_length(column).to_numpy()
        values = pc.list_flatten(column).to_numpy()
        self.release()
        return values, np.concatenate([[0], np.cumsum(counts)])


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Records(Sequence[Sample]):
    """The usable records of a file, or a part of them, as a sequence of samples.

    Args:
        table: of the file.
        rows: which of its rows, in their order; None for all.
    """

    kind: type  # of the samples
    links: tuple[str, ...]  # columns of the table's links

    def __init__(self, table: Table, rows: np.ndarray | None = None) -> None:
        self.table = table
        self.rows = np.arange(len(table), dtype=np.int32) if rows is None else rows

    @classmethod
    def none(cls: type[AnyRecords]) -> AnyRecords:
        """No records at all."""
        rows = SCHEMAS[cls.kind].empty_table()
        links = pa.table({name: pa.array([], pa.int32()) for name in cls.links})
        return cls(Table(rows, IMAGE_SCHEMA.empty_table(), links, {name: [] for name in NAMED}))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._sample(range(len(self))[index])

    def __iter__(self) -> Iterator[Sample]:
        return map(self._sample, range(len(self)))

    def _sample(self, index: int) -> Sample:
        raise NotImplementedError

    def take(self: AnyRecords, indices: Sequence[int] | np.ndarray) -> AnyRecords:
        """These of the records, in the order of ``indices``."""
        return type(self)(self.table, self.rows[np.asarray(indices, np.int64)])

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, ``[n]``."""
        return self.table.column(name)[self.rows]

    def counts(self, name: str) -> np.ndarray:
        """How many values a column of lists has for each record, ``[n]``."""
        return np.diff(self.table.lists(name)[1])[self.rows]

    @cached_property
    def numbers(self) -> np.ndarray:
        """The numbers of the records in their file, from 1, ``[n]``."""
        return self.column("record")

    def numbered(self, number: int) -> Sample:
        """The sample of record ``number``.

        Raises:
            KeyError: it is not among these records.
        """
        index = int(np.searchsorted(self.numbers, number))
        if index == len(self) or self.numbers[index] != number:
            raise KeyError(number)
        return self[index]

    def texts(self, name: str) -> pa.Array | pa.ChunkedArray:
        """A column of short texts, or of names as a dictionary array, ``[n]``."""
        if name in NAMED:
            return pa.DictionaryArray.from_arrays(self.column(name), self.table.names[name])
        return self.table.rows.column(name).take(pa.array(self.rows))

    def named(self, name: str) -> dict[str, int]:
        """How many records have each name of a column, in order of first appearance."""
        numbers, first, counts = np.unique(self.column(name), return_index=True, return_counts=True)
        names = self.table.names[name]
        return {names[numbers[k]]: int(counts[k]) for k in np.argsort(first)}


def _prompts(row: dict[str, Any], count: int | None = None) -> list[Prompt]:
    """A prompt for every step of a row, shortest first; only for the last ``count`` if given."""
    ends = list(accumulate(row["lengths"], initial=0))
    steps = tuple(row["steps"][start:end] for start, end in pairwise(ends))
    first = 1 if count is None else len(steps) - count + 1
    return [Prompt(row["question"], steps[:end]) for end in range(first, len(steps) + 1)]


class TrainRecords(Records[TrainSample]):
    """Train records.

    Args:
        outcome: keep the last prompt and label of each record only.
        gold: prompts know the labels of their earlier steps, see :meth:`with_labels`.
    """

    kind = TrainSample
    links = ("text", "extends")

    def __init__(
        self,
        table: Table,
        rows: np.ndarray | None = None,
        outcome: bool = False,
        gold: bool = False,
    ) -> None:
        super().__init__(table, rows)
        self.outcome = outcome
        self.gold = gold

    def take(self, indices: Sequence[int] | np.ndarray) -> TrainRecords:
        part = super().take(indices)
        part.outcome, part.gold = self.outcome, self.gold
        return part

    def _sample(self, index: int) -> TrainSample:
        row = self.table.row(int(self.rows[index]))
        accuracies = row["accuracies"][-1:] if self.outcome else row["accuracies"]
        prompts = _prompts(row, len(accuracies))
        if self.gold:
            known = self._known_labels(index)
            prompts = [
                Prompt(
                    prompt.question,
                    prompt.steps,
                    tuple(known.get(k, True) for k in range(1, len(prompt.steps))),
                )
                for prompt in prompts
            ]
        chain = (row["domain"], row["images"], row["question"])
        return TrainSample(
            *(row["record"], prompts, row["images"], row["domain"], accuracies, chain),
            *(row["system"], row["id"]),
        )

    def last_prompts(self) -> TrainRecords:
        """The records with their last prompt and label only."""
        return TrainRecords(self.table, self.rows, True, self.gold)

    def with_labels(self) -> TrainRecords:
        """The records with prompts that know the labels of earlier steps (``--history gold``).

        A step is right if the prefix that ends with it has an accuracy above 1/2. That prefix is an
        earlier step of the same conversation or another record of the same chain; a step that no
        record judges counts as right, as it does in selection.
        """
        return TrainRecords(self.table, self.rows, self.outcome, True)

    def _known_labels(self, index: int) -> dict[int, bool]:
        """Step number -> whether the prefix that ends with it is more often right than wrong."""
        known: dict[int, bool] = {}
        # A record's own labels come first.
        for member in (*self.chains[int(self._chain_of[index])], index):
            values = self.accuracies(member)
            first = int(self._step_counts[member]) - len(values) + 1
            known.update((first + k, value > 0.5) for k, value in enumerate(values))
        return known

    def domain(self, index: int) -> str:
        """The domain of record ``index``, without the rest of it."""
        return self.table.names["domain"][self._domains[index]]

    @cached_property
    def _domains(self) -> np.ndarray:
        return self.column("domain")

    def steps(self) -> np.ndarray:
        """The number of steps of each record, ``[n]``."""
        return self.counts("lengths")

    @cached_property
    def _step_counts(self) -> np.ndarray:
        return self.steps()

    @cached_property
    def _chain_of(self) -> np.ndarray:
        """The chain of each record, ``[n]``."""
        found = np.empty(len(self), np.int32)
        found[self.chains.members] = np.repeat(
            np.arange(len(self.chains)), np.diff(self.chains.starts)
        )
        return found

    @cached_property
    def chains(self) -> Groups:
        """Which records are prefixes of one chain, see :func:`~.chains.chains_of`."""
        return chains_from(self.column("text"), self.table.column("extends"), self.characters())

    def characters(self) -> np.ndarray:
        """The characters of all steps of each record, ``[n]``."""
        lengths, starts = self.table.lists("lengths")
        totals = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return np.diff(totals[starts])[self.rows]

    def mean_labels(self) -> np.ndarray:
        """The mean accuracy of each record, ``[n]``."""
        values, starts = self._accuracies
        if self.outcome:
            return values[starts[self.rows + 1] - 1]
        return (np.add.reduceat(values, starts[:-1]) / np.diff(starts))[self.rows]

    @cached_property
    def _accuracies(self) -> tuple[np.ndarray, np.ndarray]:
        return self.table.lists("accuracies")

    def accuracies(self, index: int) -> list[float]:
        """The accuracies of record ``index``, without the rest of it."""
        values, starts = self._accuracies
        row = int(self.rows[index])
        found = values[starts[row] : starts[row + 1]].tolist()
        return found[-1:] if self.outcome else found


class MetaRecords(Records[MetaSample]):
    """Meta records."""

    kind = MetaSample
    links = ("question_number",)

    def _sample(self, index: int) -> MetaSample:
        row = self.table.row(int(self.rows[index]))
        return MetaSample(
            row["record"], _prompts(row), row["images"], row["true_false"], row["response"]
        )

    @cached_property
    def truth(self) -> np.ndarray:
        """Whether each chain is right, ``[n]``."""
        return self.column("true_false")

    def description(self) -> str:
        """One line about the steps and final answers of the chains."""
        steps, answered = self.counts("lengths").tolist(), self.column("answered").tolist()
        return describe_chains(zip(steps, answered, strict=True))

    @cached_property
    def questions(self) -> Groups:
        """Which chains answer one question, see :func:`~.chains.questions_of`."""
        numbers = self.column("question_number")
        _, first, own = np.unique(numbers, return_index=True, return_inverse=True)
        return Groups.by(first[own])
