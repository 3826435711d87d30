"""The one way to read JSON and JSON Lines, to write a file and to lock a directory."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

MAX_DEPTH = 100  # levels of nesting in a JSON value
MAX_DIGITS = 300  # of a number; floating point ends at 309
LOCK_FILE = ".lock"
NOT_UTF8 = "not UTF-8 text; save the file as UTF-8"
# An escaped surrogate or a long run of digits: values without them need not be walked through.
_SUSPICIOUS = re.compile(rf"\\u[dD][89a-fA-F]|[0-9]{{{MAX_DIGITS + 1}}}")


class FileError(Exception):
    """A file cannot be used; the message names it and says why."""


class BrokenLine(FileError):
    """A line of a JSON Lines file cannot be read.

    Args:
        torn: whether it is a last line without its end, as a killed writer leaves it.
    """

    def __init__(self, message: str, torn: bool) -> None:
        super().__init__(message)
        self.torn = torn

    def __reduce__(self) -> tuple:  # the way from one process to another
        return BrokenLine, (str(self), self.torn)


def parse_json(text: str | bytes, checked: bool = True) -> Any:
    """The value of a JSON text, with limits that the rest of the program relies on.

    Args:
        checked: whether to call :func:`check_json`; a caller that can name the place calls it.

    Raises:
        ValueError: it is no JSON, or :func:`check_json` refuses it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    with python_limits():
        value = json.loads(text)
    if checked and (_SUSPICIOUS.search(text) or text.count("[") + text.count("{") > MAX_DEPTH):
        check_json(value)
    return value


@contextlib.contextmanager
def python_limits() -> Iterator[None]:
    """Turn the errors of Python's own limits, met while JSON is parsed, into plain ones."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # the digits of an integer
        raise ValueError(f"holds a number of more than {MAX_DIGITS} digits") from None


def check_json(value: Any) -> None:
    """Make sure that a value can be processed and written again.

    Raises:
        ValueError: it is nested deeper than :data:`MAX_DEPTH`, holds a number of more than
            :data:`MAX_DIGITS` digits or half of a surrogate pair, which no UTF-8 file can hold.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        deeper = []
        for item in level:
            if depth > MAX_DEPTH and isinstance(item, (dict, list)):
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError as error:
                    half = f"\\u{ord(item[error.start]):04x}"
                    raise ValueError(f"holds half of a surrogate pair, {half}") from None
            elif isinstance(item, int) and abs(item) >= 10**MAX_DIGITS:
                raise ValueError(f"holds a number of more than {MAX_DIGITS} digits")
        level = deeper


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark; lines end with a line feed.

    Raises:
        FileError: it is missing, cannot be read or is not UTF-8.
    """
    with opened_text(Path(path)) as file:
        return file.read()


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        FileError: it cannot be read or is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise FileError(f"{path}: not JSON: {error}") from error


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """The text of a UTF-8 file as a stream, see :func:`read_text`.

    Raises:
        FileError: it is missing, cannot be read or is not UTF-8, also while the stream is read.
    """
    with named(path):
        refuse_pipes(path)
        with path.open(encoding="utf-8-sig") as file:
            try:
                yield file
            except UnicodeDecodeError as error:
                raise FileError(f"{path}: {NOT_UTF8} ({error.reason})") from error


def refuse_pipes(path: Path) -> None:
    """Refuse pipes: opening one that nobody writes to waits for ever."""
    if path.exists() and not path.is_file():
        raise FileError(f"{path}: not a file")


def read_json_lines(
    path: str | Path,
    checked: bool = True,
    broken: Callable[[BrokenLine], object] | None = None,
) -> Iterator[tuple[int, bytes, Any]]:
    """Number (from 1), bytes and value of every line of a JSON Lines file; blank lines are skipped.

    Lines end with a line feed and nothing else: U+2028 and U+0085 are text to JSON.

    Args:
        checked: as for :func:`parse_json`.
        broken: is called with the error of a line that cannot be read, which is then skipped.

    Raises:
        FileError: the file cannot be read.
        BrokenLine: a line cannot be read, and there is no ``broken``. The lines before it have been
            yielded.
    """
    path = Path(path)
    with named(path):
        refuse_pipes(path)
        with path.open("rb") as file:
            yield from parse_lines(path, file, 1, checked, broken)


def parse_lines(
    path: str | Path,
    lines: Iterable[bytes],
    first: int,
    checked: bool = True,
    broken: Callable[[BrokenLine], object] | None = None,
) -> Iterator[tuple[int, bytes, Any]]:
    """As :func:`read_json_lines`, for some ``lines`` of the file from number ``first`` on."""
    for number, line in enumerate(lines, start=first):
        body = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not body.strip():
            continue
        try:
            value = parse_json(body, checked)
        except ValueError as error:
            reason = f"not JSON: {error}"
            if isinstance(error, UnicodeDecodeError):
                reason = f"{NOT_UTF8} ({error.reason})"
            torn = not line.endswith(b"\n")
            problem = BrokenLine(f"{path}: line {number}: {reason}", torn)
            if broken is None:
                raise problem from error
            broken(problem)
            continue
        yield number, line, value


def complete_lines(path: str | Path) -> list[Any]:
    """The values of a JSON Lines file of our own, up to the first broken line; [] without a file.

    A killed writer leaves its last line broken.

    Raises:
        FileError: the file exists but cannot be read.
    """
    values: list[Any] = []
    if not Path(path).exists():
        return values
    with contextlib.suppress(BrokenLine):
        for _, line, value in read_json_lines(path):
            if not line.endswith(b"\n"):
                break
            values.append(value)
    return values


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number, which true and false are not."""
    return isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value)


def json_line(value: Any) -> str:
    """One line of JSON Lines, with its line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """A stream to write; its content becomes the file ``path`` when the block ends without error.

    Readers of ``path`` see the old file or the new one and never a part of it, even after a kill or
    a power failure.

    Raises:
        FileError: it cannot be written; the old file is as it was.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".unfinished")
    encoding = None if "b" in mode else "utf-8"
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open(mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON; see :func:`replacing`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_records(path: str | Path, records: Iterable[dict], lines: bool = False) -> None:
    """Write records one by one, each on a line of its own; see :func:`replacing`.

    Args:
        records: may be made while they are written.
        lines: as JSON Lines and not as a JSON array.
    """
    before, between, after, empty = ("", "", "", "") if lines else ("[\n", ",\n", "\n]\n", "[]\n")
    with replacing(path) as file:
        number = 0
        for number, record in enumerate(records, start=1):
            text = json_line(record) if lines else json.dumps(record, ensure_ascii=False)
            file.write((between if number > 1 else before) + text)
        file.write(after if number else empty)


def remove(path: str | Path) -> None:
    """Delete a file if it exists.

    Raises:
        FileError: it cannot be deleted.
    """
    with named(Path(path)):
        Path(path).unlink(missing_ok=True)


_locks: set[int] = set()  # open files of this process's locks


def _leave_locks_to_the_parent() -> None:
    """A forked child, such as a data worker, must not hold a lock that outlives its parent."""
    for file in _locks:
        os.close(file)
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


class DirectoryLock:
    """Keeps other processes out of a directory until it is released or this process dies.

    Args:
        directory: is created if it does not exist.

    Raises:
        FileError: another process has locked the directory, or it cannot be written.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / LOCK_FILE
        with named(Path(directory)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(self._file)
                raise FileError(f"{directory} is in use by another process") from error
        _locks.add(self._file)

    def release(self) -> None:
        """Give up the lock. The file stays: if it were deleted, two processes could lock it."""
        if self._file in _locks:
            _locks.remove(self._file)
            os.close(self._file)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *error) -> None:
        self.release()


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a :class:`FileError` that names the file."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror or error}") from error


def unwritable(path: str) -> str | None:
    """Why a directory at ``path`` could not be created or written, or None."""
    present = os.path.abspath(path)
    while not os.path.lexists(present):
        present = os.path.dirname(present)
    if not os.path.isdir(present):
        return f"{present} is no directory"
    if not os.access(present, os.W_OK | os.X_OK):
        return f"no permission in {present}"
    return None
