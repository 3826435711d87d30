"""From a file of records to a table of samples, on all processors, and once for a large file.

A file is cut into pieces of whole records (:mod:`~..system.record_files`). Other processes turn
pieces into rows; this one numbers names and images, writes the rows, and checks the images.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from ..system.files import FileError, named, read_json, replacing, write_json
from ..system.record_files import PIECE, Piece, hash_file, record_pieces
from ..system.terminal import MAX_LINE, printable
from ..system.workers import ordered_map, processors
from . import cache
from .answers.extraction import extract
from .chains import Groups, linked
from .fields import FieldReader, image_problems
from .images import is_data_uri, is_url
from .problems import DataError, Problem
from .samples import MetaSample, TrainSample
from .steps import split_question
from .tables import IMAGE_SCHEMA, IMAGES, LINKS, NAMED, ROWS, SCHEMAS, Table
from .texts import MAX_CHARACTERS

if TYPE_CHECKING:
    from .reader import RecordReader

SMALL = 2**24  # bytes of a file that is quicker checked than kept
ABOUT = "about.json"  # written last: a folder that has it is complete
MANY_BARE = 10  # bare questions in a meta set from which on they are no oversight
_PARSERS = {TrainSample: "train_sample", MetaSample: "meta_sample"}
_AT_ONCE = 20_000  # rows whose texts are compared, and images that are written, at once


@dataclass
class _Part:
    """What a piece of a file holds; images and names are numbered within the part."""

    rows: pa.RecordBatch
    images: list[str]
    names: dict[str, list[str]]
    keys: np.ndarray  # [rows, 2], of 64 bits each: a hash of the question and its images
    problems: dict[int, list[Problem]]
    responses: Counter[tuple[bool, bool]]
    records: int
    end: int


@dataclass
class _Findings:
    """What was found in a file, apart from its table."""

    problems: dict[int, list[Problem]] = field(default_factory=dict)
    responses: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    records: int = 0
    bad_images: list[int] = field(default_factory=list)  # their numbers


def checked(
    reader: RecordReader, kind: type, progress: bool
) -> tuple[Table, np.ndarray, Counter[tuple[bool, bool]]]:
    """The records of a file, checked now or before.

    Problems are noted with the reader. A file of more than :data:`SMALL` bytes is checked once for
    its content, the way it is read and the program; :mod:`.cache` says where that is kept. Later
    only images that have changed since are looked at.

    Args:
        kind: :class:`~.samples.TrainSample` or :class:`~.samples.MetaSample`.

    Returns:
        the table of the records whose fields are sound, the rows that can be used, and how many
        meta records have or lack a response and are labelled true or false, by
        (has a response, label).

    Raises:
        DataError: the file is missing, unreadable, not JSON or holds no list of records.
    """
    try:
        key = _key(reader, kind)
        large = os.path.getsize(reader.file) > SMALL
        found = _kept(reader, key, progress) if large else None
        table, findings = found or _check(reader, kind, key if large else None, progress)
    except FileError as error:
        raise DataError([printable(error, MAX_LINE)]) from error
    if not findings.records:
        raise DataError([f"{reader.name}: holds no records"])
    reader.problems.update(findings.problems)
    bad = np.isin(table.column("record"), np.array(sorted(findings.problems), np.int32))
    return table, np.flatnonzero(~bad).astype(np.int32), findings.responses


def _key(reader: RecordReader, kind: type) -> str:
    """A name for all that the table of a file depends on, but the images."""
    content = hashlib.sha256()
    hash_file(reader.file, content, *([reader.digest] if reader.digest else []))
    facts = [
        *(content.hexdigest(), kind.__name__, _program(), reader.step_pattern),
        *(Path(reader.file).stem, reader.image_root, os.path.realpath(reader.image_root)),
        *(reader.allow_external_images, reader.allow_image_urls, Image.MAX_IMAGE_PIXELS),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.cache
def _program() -> str:
    """A hash of the code that reads records, and the versions of what it stands on."""
    versions = platform.python_version(), PIL.__version__, pa.__version__
    digest = hashlib.sha256(repr(versions).encode())
    here = Path(__file__).parent
    for path in [*sorted(here.rglob("*.py")), *sorted((here.parent / "system").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---- pieces, in processes of their own


def _part(reader: RecordReader, kind: type, piece: Piece) -> _Part:
    """Check the records of a piece, but for their images."""
    reader = replace(reader, digest=None, problems={}, image_fields={})
    records = list(piece.records())
    samples = reader.samples(getattr(reader, _PARSERS[kind]), records, piece.first)
    images, names = _Numbers(), {name: _Numbers() for name in NAMED}
    columns: dict[str, list] = {
        "record": [sample.record for sample in samples],
        "question": [sample.prompts[-1].question for sample in samples],
        "steps": ["".join(sample.prompts[-1].steps) for sample in samples],
        "lengths": [list(map(len, sample.prompts[-1].steps)) for sample in samples],
        "images": [[images[image] for image in sample.images] for sample in samples],
        "image_field": [
            names["image_field"][reader.image_fields[sample.record]] for sample in samples
        ],
    }
    if kind is TrainSample:
        columns |= {
            "accuracies": [sample.accuracies for sample in samples],
            "domain": [names["domain"][sample.domain] for sample in samples],
            "system": [names["system"][sample.system] for sample in samples],
            "id": [sample.id for sample in samples],
        }
        keys = [sample.chain for sample in samples]
    else:
        columns |= {
            "true_false": [sample.true_false for sample in samples],
            "response": [sample.response for sample in samples],
            "answered": [extract(sample.response) != "" for sample in samples],
        }
        keys = [(sample.images, sample.prompts[0].question) for sample in samples]
    hashes = b"".join(hashlib.blake2b(repr(k).encode(), digest_size=16).digest() for k in keys)
    return _Part(
        pa.RecordBatch.from_pydict(columns, SCHEMAS[kind]),
        list(images),
        {name: list(numbers) for name, numbers in names.items()},
        np.frombuffer(hashes, np.uint64).reshape(-1, 2),
        reader.problems,
        response_labels(reader, records) if kind is MetaSample else Counter(),
        len(records),
        piece.end,
    )


class _Numbers(defaultdict[str, int]):
    """Gives every new text the next number, from 0."""

    def __init__(self) -> None:
        super().__init__(self.__len__)


# ---- the table, in this process


def _check(
    reader: RecordReader, kind: type, key: str | None, progress: bool
) -> tuple[Table, _Findings]:
    """Check a whole file.

    Args:
        key: what to keep the table under; None: it stays in memory.
    """
    before = os.stat(reader.file)
    folder = cache.unfinished(key) if key else None
    try:
        with named(folder or Path(reader.file)):
            table, findings = _build(reader, kind, folder, progress)
            after = os.stat(reader.file)
            if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                raise FileError(f"{reader.file}: was changed while it was read")
            if folder and key:
                _write_about(reader, table, findings, folder)
                if not _may_change(table, findings):
                    folder = cache.keep(folder, key)
                table = Table.open(folder, table.names)
    except BaseException:
        if folder:
            cache.discard(folder)
        raise
    return table, findings


def _build(
    reader: RecordReader, kind: type, folder: Path | None, progress: bool
) -> tuple[Table, _Findings]:
    """The table of a file, in memory or in ``folder``, and what is wrong with its records."""
    findings = _Findings()
    reader = replace(reader, digest=None, problems=findings.problems)
    numbers, names = _Numbers(), {name: _Numbers() for name in NAMED}
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
        return Table(rows, pictures, links or pa.table({}), listed)

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


def _parts(reader: RecordReader, kind: type, progress: bool) -> Iterator[_Part]:
    """All parts of a file, in order."""
    work = functools.partial(_part, replace(reader, problems={}), kind)
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


def _renumbered(part: _Part, images: _Numbers, names: dict[str, _Numbers]) -> pa.RecordBatch:
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
    reader: RecordReader, table: Table, images: list[str], findings: _Findings, progress: bool
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


# ---- what is kept


def _write_about(reader: RecordReader, table: Table, findings: _Findings, folder: Path) -> None:
    start = len(reader.name)
    about = {
        "sizes": {name: (folder / name).stat().st_size for name in (ROWS, IMAGES, LINKS)},
        "names": table.names,
        "records": findings.records,
        "responses": [[*which, count] for which, count in findings.responses.items()],
        "bad_images": findings.bad_images,
        "problems": [  # without the name of the file, which may be another one next time
            [number, problem[start:], problem.kind[start:], problem.values]
            for number, problems in findings.problems.items()
            for problem in problems
        ],
    }
    write_json(folder / ABOUT, about)


def _kept(reader: RecordReader, key: str, progress: bool) -> tuple[Table, _Findings] | None:
    """What is kept under ``key`` and still holds, or None."""
    folder = cache.entry(key)
    if not folder.exists():
        return None
    try:
        about = read_json(folder / ABOUT)
        if any((folder / name).stat().st_size != size for name, size in about["sizes"].items()):
            raise ValueError("a file was cut short")
        table = Table.open(folder, about["names"])
        responses = {(has, label): count for has, label, count in about["responses"]}
        findings = _Findings({}, Counter(responses), about["records"], about["bad_images"])
        for number, text, kind, values in about["problems"]:
            problem = Problem(reader.name + text, reader.name + kind, tuple(values))
            findings.problems.setdefault(number, []).append(problem)
        if still_holds := _images_hold(reader, table, set(findings.bad_images), progress):
            return table, findings
    except (FileError, OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        still_holds = False
    if not still_holds:
        cache.discard(folder)
    return None


def _images_hold(reader: RecordReader, table: Table, bad: set[int], progress: bool) -> bool:
    """Whether what is known of images holds; those whose files have changed are opened again."""
    paths = table.images.column("image").to_pylist()
    now = pa.Table.from_batches(image_rows(paths), IMAGE_SCHEMA)
    same = [
        now.column(name).to_numpy() == table.images.column(name).to_numpy()
        for name in ("modified", "size")
    ]
    changed = np.flatnonzero(~np.logical_and(*same)).tolist()
    if not changed:
        return True
    images = [paths[number] for number in changed]
    outside = not reader.allow_external_images and not all(map(reader.inside, images))
    if outside or not bad.isdisjoint(changed) or any(image_problems(images, progress)):
        return False  # and all is checked anew, which says what is wrong with which record
    with (
        contextlib.suppress(FileError),  # a cache that is only read
        replacing(table.file(IMAGES), "wb") as file,
        pa.ipc.new_file(file, IMAGE_SCHEMA) as writer,
    ):
        writer.write_table(now)
    return True


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


def _may_change(table: Table, findings: _Findings) -> bool:
    """Whether an image that could not be used may be there next time, and no file tells."""
    images = table.images.column("image")
    return any(is_url(images[number].as_py()) for number in findings.bad_images)


# ---- what a meta set can teach


def response_labels(reader: FieldReader, records: Iterable[Any]) -> Counter[tuple[bool, bool]]:
    """How many meta records have or lack a response and are labelled true or false."""
    found: Counter[tuple[bool, bool]] = Counter()
    for record in records:
        text = record.get("input") if isinstance(record, dict) else None
        if isinstance(text, str) and len(text) <= MAX_CHARACTERS:
            label = record.get("true_false")
            if isinstance(label, (bool, int)):
                own = "response" in record
                has_response = own or bool(split_question(text, reader.step_pattern)[1])
                found[has_response, bool(label)] += 1
    return found


def meta_warnings(name: str, responses: Counter[tuple[bool, bool]]) -> list[str]:
    """A warning if the label can be told from the mere presence of a response.

    The published meta set is the example: all its chains are right and every wrong record is a
    bare question, so it can only teach the weights that text is good.

    Args:
        name: of the file.
        responses: see :func:`response_labels`.
    """
    with_response, without = (
        {label: count for (has, label), count in responses.items() if has is wanted}
        for wanted in (True, False)
    )
    answers, bare = sum(with_response.values()), sum(without.values())
    if not answers or bare < MANY_BARE or 1 not in (len(with_response), len(without)):
        return []
    return [
        f"{name}: {bare} of {answers + bare} records "
        f"hold no response at all, and {with_response.get(True, 0)} of the {answers} "
        f"responses are labelled true ({without.get(True, 0)} of the {bare} bare questions "
        "are): the label can be read from the presence of text, so such a set can only teach the "
        "weights that text is good"
    ]
