"""From a file of records to a table of samples, on all processors.

A file is cut into pieces of whole records (:mod:`~..system.record_files`). Other processes turn
pieces into rows (:mod:`.rows`); this one numbers names and images, writes the rows, and checks the
images.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..system.record_files import PIECE, record_pieces
from ..system.terminal import printable
from ..system.workers import ordered_map, processors
from .chains import Groups, linked
from .fields import image_problems
from .images import is_data_uri, is_url
from .problems import Problem
from .rows import Numbers, Part, part_of
from .samples import MetaSample, TrainSample
from .tables import IMAGE_SCHEMA, IMAGES, LINKS, NAMED, ROWS, SCHEMAS, Table

if TYPE_CHECKING:
    from .reader import RecordReader

_AT_ONCE = 20_000  # rows whose texts are compared at once


@dataclass
class Findings:
    """What was found in a file, apart from its table."""

    problems: dict[int, list[Problem]] = field(default_factory=dict)
    responses: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    records: int = 0
    bad_images: list[int] = field(default_factory=list)  # their numbers


def build(
    reader: RecordReader, kind: type, folder: Path | None, progress: bool
) -> tuple[Table, Findings]:
    """The table of a file, in memory or in ``folder``, and what is wrong with its records."""
    findings = Findings()
    reader = replace(reader, digest=None, problems=findings.problems)
    numbers, names = Numbers(), {name: Numbers() for name in NAMED}
    keys = [np.empty((0, 2), np.uint64)]

    def rows_of_parts() -> Iterator[pa.RecordBatch]:
        for part in _parts(reader, kind, progress):
            findings.problems.update(part.problems)
            findings.responses += part.responses
            findings.records += part.records
            keys.append(part.keys)
            yield _renumbered(part, numbers, names)

    def table(links: pa.Table | None = None) -> Table:
        listed = {name: list(found) for name, found in names.items()}
        if folder is not None:
            return Table.open(folder, listed)
        return Table(rows, pictures, pa.table({}) if links is None else links, listed)

    rows = _stored(rows_of_parts(), SCHEMAS[kind], folder, ROWS)
    images = list(numbers)
    pictures = _stored(image_rows(images), IMAGE_SCHEMA, folder, IMAGES)  # before they are opened
    _check_images(reader, table(), images, findings, progress)
    links = _LINKS[kind](table(), np.concatenate(keys), progress)
    return table(_stored(links.to_batches(), links.schema, folder, LINKS)), findings


def _stored(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: Path | None, name: str
) -> pa.Table:
    """A table in memory; in a ``folder`` it is written to a file instead, and has no rows."""
    if folder is None:
        return pa.Table.from_batches(batches, schema)
    with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return schema.empty_table()


def _parts(reader: RecordReader, kind: type, progress: bool) -> Iterator[Part]:
    """All parts of a file, in order."""
    work = functools.partial(part_of, replace(reader, problems={}), kind)
    with tqdm(
        desc=f"checking {printable(Path(reader.file).name, 40)}",
        total=os.path.getsize(reader.file),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,  # None: a bar in a terminal only
    ) as bar:
        for part in ordered_map(work, record_pieces(reader.file, PIECE), processors()):
            bar.update(part.end - bar.n)
            yield part


def _renumbered(part: Part, images: Numbers, names: dict[str, Numbers]) -> pa.RecordBatch:
    """The rows of a part, with the numbers that its images and names have in the whole file."""
    rows = part.rows
    for name in {*NAMED, "images"} & set(rows.schema.names):
        known, own = (images, part.images) if name == "images" else (names[name], part.names[name])
        number = np.array([known[text] for text in own], np.int32)
        column = rows.column(name)
        if name == "images":
            values = pa.array(number[column.values.to_numpy()])
            column = pa.ListArray.from_arrays(column.offsets, values)
        else:
            column = pa.array(number[column.to_numpy()])
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def _check_images(
    reader: RecordReader, table: Table, images: list[str], findings: Findings, progress: bool
) -> None:
    """Decode every image once; broken ones become problems of their records."""
    used, starts = table.lists("images")
    order, records = np.argsort(used, kind="stable"), table.column("record")
    first: Any = np.searchsorted(used, np.arange(len(images) + 1), sorter=order)
    fields, names = table.column("image_field"), table.names["image_field"]
    for number, trouble in image_problems(images, progress):
        findings.bad_images.append(number)
        places = order[first[number] : first[number + 1]]
        for row in np.unique(np.searchsorted(starts, places, side="right") - 1).tolist():
            name = names[fields[row]]
            reader.image_problem(int(records[row]), name, images[number], trouble)


def _train_links(table: Table, keys: np.ndarray, progress: bool) -> pa.Table:
    """``text`` and ``extends`` of :func:`~.chains.linked` for all rows."""
    text = np.arange(len(table), dtype=np.int32)
    extends = np.full(len(table), -1, np.int32)
    questions = Groups.by(_first_of_each(keys))
    sizes = np.diff(questions.starts)
    shared = np.flatnonzero(sizes > 1)
    with tqdm(
        desc="finding chains", total=int(sizes[shared].sum()), leave=False,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        ends = np.cumsum(sizes[shared])
        for part in np.split(shared, np.flatnonzero(np.diff(ends // _AT_ONCE)) + 1):
            groups = [questions[int(number)] for number in part]
            rows = np.sort(np.array([row for group in groups for row in group], np.int64))
            texts = dict(zip(rows.tolist(), table.texts(rows), strict=True))
            for group in groups:
                text[group], extends[group] = linked(group, [texts[row] for row in group])
            table.release()
            bar.update(len(rows))
    return pa.table({"text": text, "extends": extends})


def _meta_links(table: Table, keys: np.ndarray, progress: bool) -> pa.Table:
    return pa.table({"question_number": _first_of_each(keys)})


_LINKS = {TrainSample: _train_links, MetaSample: _meta_links}


def _first_of_each(keys: np.ndarray) -> np.ndarray:
    """For each of the ``keys`` ``[n, 2]`` the index of the first one that equals it, ``[n]``."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # equal ones stay in their order
    new = np.ones(len(keys), bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = np.empty(len(keys), np.int32)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def image_rows(images: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Images with the time of change (ns) and size (bytes) of their files, -1 without a file."""
    parts = [images[start : start + 500] for start in range(0, len(images), 500)]
    with ThreadPoolExecutor(16) as pool:  # a file system on a network makes one wait
        for part, statuses in zip(parts, pool.map(_statuses, parts), strict=True):
            modified, size = zip(*statuses, strict=True)
            columns = {"image": part, "modified": modified, "size": size}
            yield pa.RecordBatch.from_pydict(columns, IMAGE_SCHEMA)


def _statuses(images: Sequence[str]) -> list[tuple[int, int]]:
    return [_status(image) for image in images]


def _status(image: str) -> tuple[int, int]:
    if not is_data_uri(image) and not is_url(image):
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(image)
            return status.st_mtime_ns, status.st_size
    return -1, -1
