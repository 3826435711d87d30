"""One file of records, read field by field; every problem is noted with its place."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from ..system.files import FileError
from ..system.record_files import read_records
from ..system.terminal import MAX_LINE, printable
from .images import allow_megapixels, image_problem, is_data_uri
from .problems import DataError, Problem, summary
from .steps import MAX_STEPS, step_starts
from .tables import Records
from .texts import json_fault, shown, text_fault, without_image_tags

if TYPE_CHECKING:
    import hashlib

Reader = TypeVar("Reader", bound="FieldReader")

NOTHING: tuple = (None, "", [])  # what a field holds that names no image
IN_HAND = 10_000  # images that are handed to threads at once


@dataclass
class FieldReader:
    """Reads one file of records and collects what is wrong with them.

    Args:
        file: a JSON array or JSON Lines, told apart by content.
        image_root: relative image paths start here, and no image may lie outside.
        allow_external_images: accept image files outside ``image_root``.
        allow_image_urls: accept http(s) URLs of images.
        skip_bad_records: leave out records with problems instead of raising.
        step_pattern: what starts a step, see :func:`~.steps.layout`.
        digest: is updated with the bytes of the file when :mod:`.checking` reads it.
    """

    file: str
    image_root: str = "."
    allow_external_images: bool = False
    allow_image_urls: bool = False
    skip_bad_records: bool = False
    step_pattern: str | None = None
    digest: hashlib._Hash | None = None
    problems: dict[int, list[Problem]] = field(default_factory=dict)
    image_fields: dict[int, str] = field(default_factory=dict)  # record -> where its image stands
    _inside: dict[str, bool] = field(default_factory=dict, init=False)  # image path -> see inside()

    @classmethod
    def of(
        cls: type[Reader],
        arguments: Namespace,
        file: str | Path,
        image_root: str | None = None,
        digest: hashlib._Hash | None = None,
    ) -> Reader:
        """A reader as the flags of :func:`~.flags.add_record_flags` say.

        Args:
            image_root: instead of ``--image_root``.
            digest: as for the class.
        """
        allow_megapixels(arguments.max_image_megapixels)
        return cls(
            str(file),
            image_root or arguments.image_root,
            arguments.allow_external_images,
            arguments.allow_image_urls,
            arguments.skip_bad_records,
            arguments.step_pattern,
            digest,
        )

    @property
    def name(self) -> str:
        """The file as messages name it."""
        return printable(self.file, MAX_LINE // 2)

    # ---- records

    def read(self) -> list[Any]:
        """All records of the file.

        Raises:
            DataError: the file is missing, unreadable, not JSON or holds no list of records.
        """
        try:
            records = read_records(self.file)
        except FileError as error:
            raise DataError([printable(error, MAX_LINE)]) from error
        if not records:
            raise DataError([f"{self.name}: holds no records"])
        return records

    def samples(
        self,
        parse: Callable[[dict, int], Any],
        records: list[Any] | None = None,
        first: int = 1,
    ) -> list[Any]:
        """What ``parse(record, number)`` makes of every record that has no problem.

        Args:
            parse: what it returns is dropped if it notes a problem of the record.
            records: of the file, where they have been read already.
            first: the number of the first of them.
        """
        samples = []
        for number, record in enumerate(self.read() if records is None else records, start=first):
            if not isinstance(record, dict):
                self.problem(number, None, "must be an object, is {}", shown(record))
                continue
            if self._can_be_written(record, number):
                sample = parse(record, number)
                if number not in self.problems:
                    samples.append(sample)
        return samples

    def _can_be_written(self, record: dict, number: int) -> bool:
        """Check every field, even those without a meaning here: they are copied to other files."""
        for name, value in record.items():
            if name.isascii() and isinstance(value, str) and value.isascii():
                continue  # what most fields hold
            if fault := json_fault([name, value]):
                self.problem(number, name, *fault)
        return number not in self.problems

    def usable(self, samples: list[Any]) -> list[Any]:
        """The samples that no problem was noted for.

        Raises:
            DataError: there are problems and records are not to be left out, or none is left.
        """
        if self.problems and not self.skip_bad_records:
            raise DataError(self.all_problems())
        samples = [sample for sample in samples if sample.record not in self.problems]
        if not samples:
            raise DataError([*self.all_problems(), f"{self.name}: no usable record is left"])
        return samples

    # ---- problems

    def problem(
        self, number: int, name: str | None, kind: str, *values: str, where: str = ""
    ) -> None:
        """Note a problem of record ``number`` (from 1) in field ``name``.

        Args:
            kind: the sentence, with ``{}`` for what differs from record to record.
            where: the part of the field, as ``turn 3``, which begins the sentence.
        """
        if where:
            kind, values = "{} " + kind, (where, *values)
        values = tuple(printable(value) for value in values)
        self._note(number, name, kind.format(*values), kind.replace("{}", "…"), values)

    def _note(
        self, number: int, name: str | None, text: str, kind: str, values: tuple[str, ...]
    ) -> None:
        place = f": field '{printable(name)}': " if name else ": "
        problem = Problem(
            f"{self.name}: record {number}{place}{text}", f"{self.name}{place}{kind}", values
        )
        self.problems.setdefault(number, []).append(problem)

    def all_problems(self) -> list[str]:
        """Everything noted so far, in the order of the records."""
        return [text for number in sorted(self.problems) for text in self.problems[number]]

    def left_out(self) -> str | None:
        """A note on the records with problems, if there are any."""
        if not self.problems:
            return None
        count = f"{len(self.problems)} record{'s' if len(self.problems) > 1 else ''}"
        return f"{self.name}: left out {count} with problems:\n{summary(self.all_problems())}"

    def text_only(self, samples: Sequence[Any]) -> str | None:
        """A note on how many of the samples have no image, if there are any.

        Nobody should train without images for want of a field unawares.
        """
        if isinstance(samples, Records):
            count = int((samples.counts("images") == 0).sum())
        else:
            count = sum(not sample.images for sample in samples)
        if not count:
            return None
        return f"{self.name}: {count:,} of {len(samples):,} records name no image: text alone"

    # ---- texts

    def text(self, record: dict, number: int, name: str) -> str:
        """A required, non-empty text field, without the tags that stand for an image."""
        if name not in record:
            self.problem(number, name, "is missing")
            return ""
        return self.clean(record[name], number, name)

    def optional_text(self, record: dict, number: int, name: str) -> str | None:
        """A text field that may be empty, null or missing."""
        if record.get(name) is None:
            return None
        return self.clean(record[name], number, name, may_be_empty=True)

    def clean(
        self, value: Any, number: int, name: str, where: str = "", may_be_empty: bool = False
    ) -> str:
        """A text without image tags; "" if it has a problem.

        Args:
            where: the part of field ``name`` that the text is, for messages.
        """
        text = without_image_tags(value) if isinstance(value, str) else value
        fault = text_fault(text)
        if not fault and not may_be_empty and not text.strip():
            fault = ("is empty",)
        if fault:
            self.problem(number, name, *fault, where=where)
            return ""
        return text

    def check_steps(self, response: str, number: int, name: str, where: str = "") -> bool:
        """Whether a response has no more steps than can be scored."""
        return self.check_count(len(step_starts(response, self.step_pattern)), number, name, where)

    def check_count(self, steps: int, number: int, name: str, where: str = "") -> bool:
        """As :meth:`check_steps`, where the number of steps is known."""
        if steps > MAX_STEPS:
            kind = f"holds {{}} steps, more than {MAX_STEPS}"
            self.problem(number, name, kind, str(steps), where=where)
        return steps <= MAX_STEPS

    # ---- images

    def images(self, record: dict, number: int, name: str = "image_path") -> tuple[str, ...]:
        """The images as resolved paths, URLs or ``data:`` URIs, in order; none for text alone.

        A record without images lacks the field, or has null, "" or an empty list there. If it
        lacks the field and has another that looks like it, the name may be mis-spelt: a problem.
        :meth:`check_images` opens the images later.
        """
        self.image_fields[number] = name
        value = record.get(name)
        if value in NOTHING:
            if name not in record and (other := _other_image_field(record)):
                kind = "is missing, but there is '{}'; null says that a record has no image"
                self.problem(number, name, kind, other)
            return ()
        if not isinstance(value, list):
            return (self._image(value, number, name),)
        places = (f"image {place}" for place in range(1, len(value) + 1))
        return tuple(map(self._image, value, repeat(number), repeat(name), places))

    def image(self, record: dict, number: int, name: str = "image_path") -> str:
        """The image of a record that must have exactly one, see :meth:`images`."""
        found = self.images(record, number, name)
        if len(found) != 1 and number not in self.problems:
            self.problem(number, name, "must name one image, names {}", str(len(found)))
        return found[0] if found else ""

    def _image(self, value: Any, number: int, name: str, where: str = "") -> str:
        if isinstance(value, str) and is_data_uri(value):
            return value
        value = self.clean(value, number, name, where)
        if not value:
            return ""
        if "\0" in value:
            self.problem(number, name, "holds a NUL character: {}", value, where=where)
            return ""
        if match := re.match(r"([a-z][a-z0-9+.-]*)://", value, re.IGNORECASE):
            scheme = match[1].lower()
            if scheme == "file":
                path = "/" + value[match.end() :].partition("/")[2]
                kind = "is a URL of a file: give its path instead, {}"
                self.problem(number, name, kind, path, where=where)
            elif scheme not in ("http", "https"):
                self.problem(number, name, "is a URL of an unknown kind ({})", value, where=where)
            elif not self.allow_image_urls:
                kind = "is a URL ({}); see --allow_image_urls"
                self.problem(number, name, kind, value, where=where)
            return scheme + value[len(scheme) :]
        path = os.path.join(self.image_root, value)
        if not self.allow_external_images and not self.inside(path):
            self.problem(
                number,
                name,
                "{} lies outside the image root {}; see --image_root and --allow_external_images",
                value,
                self.image_root,
                where=where,
            )
        return path

    def inside(self, path: str) -> bool:
        """Whether an image lies inside the image root."""
        if path not in self._inside:
            root = os.path.realpath(self.image_root)
            self._inside[path] = os.path.commonpath([root, os.path.realpath(path)]) == root
        return self._inside[path]

    def check_images(self, samples: Iterable[Any], progress: bool) -> None:
        """Decode every distinct image once; broken ones become problems of their records."""
        records: dict[str, list[int]] = {}
        for sample in samples:
            for image in dict.fromkeys(sample.images):
                records.setdefault(image, []).append(sample.record)
        images = list(records)
        for place, trouble in image_problems(images, progress):
            for number in records[images[place]]:
                self.image_problem(number, self.image_fields[number], images[place], trouble)

    def image_problem(self, number: int, name: str, image: str, trouble: str) -> None:
        """Note what :func:`~.images.image_problem` says of an image of record ``number``."""
        kind = trouble.replace(image, "…").partition(":")[0]
        self._note(number, name, printable(trouble, MAX_LINE), kind, (image,))


def image_problems(images: Sequence[str], progress: bool) -> Iterator[tuple[int, str]]:
    """The places of the images that cannot be used, and why (:func:`~.images.image_problem`)."""
    silent = {"disable": None if progress else True}  # None: a bar in a terminal only
    # All threads share Python's list of ignored warnings, so it is changed here, outside them.
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor() as pool,
        tqdm(desc="checking images", total=len(images), leave=False, **silent) as bar,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, len(images), IN_HAND):  # a task of the pool takes a kilobyte
            part = images[start : start + IN_HAND]
            for place, trouble in enumerate(pool.map(image_problem, part), start):
                bar.update()
                if trouble:
                    yield place, trouble


def _other_image_field(record: dict) -> str | None:
    """A field that holds something and has a name much like those of image fields."""
    for name, value in record.items():
        spelt = name.lower()
        like = "image" in spelt or "img" in spelt or "picture" in spelt
        if value not in NOTHING and (like or difflib.get_close_matches(spelt, ["image_path"])):
            return name
    return None
