"""Files of records are checked, a large one once; later only its images are looked at.

:mod:`.building` makes the table of a file, and :mod:`.cache` says where it is kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
import pyarrow as pa
from PIL import Image

from ..system.files import FileError, named, read_json, replacing, write_json
from ..system.record_files import hash_file
from ..system.terminal import MAX_LINE, printable
from . import cache
from .building import Findings, build, image_rows
from .fields import image_problems
from .images import is_url
from .problems import DataError, Problem
from .tables import IMAGE_SCHEMA, IMAGES, LINKS, ROWS, Table

if TYPE_CHECKING:
    from .reader import RecordReader

SMALL = 2**24  # bytes of a file that is quicker checked than kept
ABOUT = "about.json"  # written last: a folder that has it is complete


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
        *(Path(reader.file).stem, str(reader.image_root), os.path.realpath(reader.image_root)),
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


def _check(
    reader: RecordReader, kind: type, key: str | None, progress: bool
) -> tuple[Table, Findings]:
    """Check a whole file.

    Args:
        key: what to keep the table under; None: it stays in memory.
    """
    before = os.stat(reader.file)
    folder = cache.unfinished(key) if key else None
    try:
        with named(folder or Path(reader.file)):
            table, findings = build(reader, kind, folder, progress)
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


def _write_about(reader: RecordReader, table: Table, findings: Findings, folder: Path) -> None:
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


def _kept(reader: RecordReader, key: str, progress: bool) -> tuple[Table, Findings] | None:
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
        findings = Findings({}, Counter(responses), about["records"], about["bad_images"])
        for number, text, kind, values in about["problems"]:
            problem = Problem(reader.name + text, reader.name + kind, tuple(values))
            findings.problems.setdefault(number, []).append(problem)
        if still_holds := _images_hold(reader, table, set(findings.bad_images), progress):
            return table, findings
    except (
        FileError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        pa.ArrowException,
    ):
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


def _may_change(table: Table, findings: Findings) -> bool:
    """Whether an image that could not be used may be there next time, and no file tells."""
    images = table.images.column("image")
    return any(is_url(images[number].as_py()) for number in findings.bad_images)
