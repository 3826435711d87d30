"""Where the tables of checked records are kept, so that a large file is checked once."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from ..system.terminal import warning

VARIABLE = "DREAMPRM_CACHE"  # of the environment: the folder to use instead
_UNFINISHED = ".unfinished"
_OLD = 24 * 3600  # seconds after which nobody is still writing


def cache_folder() -> Path:
    """``$DREAMPRM_CACHE``, or ``dreamprm`` where the user's programs keep what can be made anew."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dreamprm"


def entry(key: str) -> Path:
    """The folder of what is kept under ``key``, whether it exists or not."""
    return cache_folder() / "records" / key


def unfinished(key: str) -> Path:
    """A new folder to write to, for :func:`keep` or :func:`discard`.

    Where the cache cannot be written, it is a temporary one that ends with the process.
    """
    place = entry(key).parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("*" + _UNFINISHED):
            if old.stat().st_mtime < time.time() - _OLD:
                discard(old)
        return Path(tempfile.mkdtemp(_UNFINISHED, key[:16] + ".", place))
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="dreamprm-"))
        warning(
            f"{place} cannot be written ({error.strerror}): what is checked now is checked again "
            f"at the next start; {VARIABLE} names another folder"
        )
        atexit.register(_discard_in, os.getpid(), folder)
        return folder


def keep(folder: Path, key: str) -> Path:
    """Keep an :func:`unfinished` folder under ``key``; returns where it lies now.

    If another process was quicker, what it has written is taken, unless it is another user's.
    """
    if folder.parent != entry(key).parent:
        return folder
    try:
        folder.rename(entry(key))
    except OSError:
        if not entry(key).is_dir():
            raise
        if not os.access(entry(key), os.R_OK | os.X_OK):
            atexit.register(_discard_in, os.getpid(), folder)
            return folder
        discard(folder)
    return entry(key)


def discard(folder: Path) -> None:
    """Delete a folder; a process that has mapped its files keeps them until it ends."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


def _discard_in(process: int, folder: Path) -> None:
    if os.getpid() == process:  # and not in its forks
        discard(folder)
