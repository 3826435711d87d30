"""The rows of published files, one at a time, and what is refused in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...records.fields import NOTHING
from ...records.problems import Problem, Tally
from ...records.texts import shown, text_fault, without_image_tags
from ...system.files import FileError, is_number, read_json, read_json_lines
from ...system.terminal import printable

_BATCH = 128  # rows of a parquet file that are in memory at once


@dataclass(frozen=True)
class Source:
    """A file of rows.

    Args:
        domain: of rows that do not name one themselves.
        root: the folder that its image paths start from; "" leaves them as they are.
    """

    path: Path
    domain: str
    root: str = ""


class Refused(Exception):
    """A row is not as its layout says; :attr:`problem` names file, line and field."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True)
class Row:
    """A row of a file, read field by field; whatever is not as expected raises :class:`Refused`."""

    source: Source
    place: str  # "line 7", "row 7"
    value: dict[str, Any]

    def refuse(self, name: str | None, kind: str, *values: object) -> NoReturn:
        """Refuse the row for its field ``name``.

        Args:
            kind: the sentence, with ``{}`` for what differs from row to row.
        """
        told = tuple(printable(value) for value in values)
        field = f": field '{name}': " if name else ": "
        raise Refused(
            Problem(
                f"{self.source.path}: {self.place}{field}{kind.format(*told)}",
                f"{self.source.path}{field}{kind.replace('{}', '…')}",
                told,
            )
        )

    def clean(self, value: Any, name: str) -> str:
        """A text that is not empty, without tags for images, as our reader would take it."""
        text = without_image_tags(value) if isinstance(value, str) else value
        fault = text_fault(text)
        if fault:
            self.refuse(name, *fault)
        if not text.strip():
            self.refuse(name, "is empty")
        return text

    def text(self, *names: str) -> str:
        """The first of these fields that the row has."""
        for name in names:
            if self.value.get(name) is not None:
                return self.clean(self.value[name], name)
        self.refuse(names[-1], "is missing")

    def optional_text(self, name: str) -> str | None:
        """A text, or a number as text; None if there is nothing of this kind."""
        value = self.value.get(name)
        if is_number(value):
            return str(value)
        empty = not isinstance(value, str) or not without_image_tags(value).strip()
        return None if empty else self.clean(value, name)

    def objects(self, value: Any, name: str) -> list[dict]:
        """A list of objects that is not empty."""
        if not isinstance(value, list) or not value:
            self.refuse(name, "must be a list, is {}", shown(value))
        for item in value:
            if not isinstance(item, dict):
                self.refuse(name, "must hold objects only, holds {}", shown(item))
        return value

    def share(self, value: Any, name: str) -> float:
        """A number from 0 to 1."""
        if not is_number(value) or not 0 <= value <= 1:
            self.refuse(name, "must be a number from 0 to 1, is {}", shown(value))
        return float(value)

    def images(self, name: str = "image") -> tuple[str, ...]:
        """The paths of the images, in order; none of a row without."""
        value = self.value.get(name)
        images = [] if value in NOTHING else value if isinstance(value, list) else [value]
        return tuple(os.path.join(self.source.root, self.clean(path, name)) for path in images)


def sources(paths: Iterable[Path], image_dir: Path | None) -> list[Source]:
    """The files to read; a folder stands for its JSON Lines and parquet files.

    A ``.json`` file lists annotation files with the roots of their images, as InternVL writes it.
    Its paths are looked for beside it and then where the command runs.

    Args:
        image_dir: is put before all image paths.

    Raises:
        FileError: a folder holds no such file, or a list is not as described.
    """
    root = str(image_dir or "")
    found: list[Source] = []
    for path in paths:
        if path.suffix == ".json":
            found += _listed(path, root)
        elif path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix in (".jsonl", ".parquet"))
            if not files:
                raise FileError(f"{path}: holds no .jsonl and no .parquet file")
            found += [Source(file, file.stem, root) for file in files]
        else:
            found.append(Source(path, path.stem, root))
    return found


def _listed(path: Path, root: str) -> list[Source]:
    """The files that a list such as VisualPRM400K's ``meta.json`` names."""
    listed = read_json(path)
    if not isinstance(listed, Mapping) or not listed:
        raise FileError(f"{path}: must be an object that names annotation files")
    found = []
    for name, entry in listed.items():
        for key in ("annotation", "root"):
            if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str):
                raise FileError(f"{path}: '{printable(name)}': '{key}' must be text")
        beside = path.parent / entry["annotation"]
        annotation = beside if beside.exists() else Path(entry["annotation"])
        found.append(Source(annotation, name, os.path.join(root, entry["root"])))
    return found


def rows(source: Source, columns: list[str], refused: Tally) -> Iterator[Row]:
    """The rows of a file; lines that are no JSON objects are counted in ``refused``.

    Args:
        columns: of a parquet file that are read; those that it does not have are left out.

    Raises:
        FileError: the file cannot be read.
    """
    if source.path.suffix == ".parquet":
        yield from _parquet_rows(source, columns)
        return

    def broken(error: FileError) -> None:
        refused.add(Problem(str(error), f"{source.path}: lines that cannot be read"))

    for number, _, value in read_json_lines(source.path, broken=broken):
        row = Row(source, f"line {number}", value)
        try:
            if not isinstance(value, dict):
                row.refuse(None, "must be an object, is {}", shown(value))
        except Refused as error:
            refused.add(error.problem)
            continue
        yield row


def _parquet_rows(source: Source, columns: list[str]) -> Iterator[Row]:
    """The rows of a parquet file, with the named columns only."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(_BATCH, columns=present):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(source, f"row {number}", value)
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{source.path}: no parquet file: {reason}") from error
