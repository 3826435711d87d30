"""Processes that work for this one: a map over all processors, and an end with their parent."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from .files import FileError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items for each process that are under way or wait to be taken


def processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """``function(item)`` of each of ``items``, in their order, computed by other processes.

    Items are drawn only a few ahead of the results. A single one is not worth a process.

    Raises:
        FileError: a process was killed.
    """
    items = iter(items)
    first = list(itertools.islice(items, 2))
    items = itertools.chain(first, items)
    if processes < 2 or len(first) < 2:
        yield from map(function, items)
        return
    # A fork needs no import and no guard in the user's script; elsewhere it is not safe.
    method = "fork" if sys.platform == "linux" else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(processes, context, initializer=end_with_parent)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise FileError("a process was killed; has the memory run out?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """End this process when its parent has ended, and on a SIGTERM of its parent only.

    A SIGTERM to the whole process group is for the training process: it finishes its step, for
    which it needs the workers, saves, and ends them. And a parent that was killed cannot end
    anybody; its workers would wait for good for someone to read what they made.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C likewise
    above, parent = os.getppid(), multiprocessing.parent_process()
    waits = parent is not None and hasattr(signal, "sigtimedwait")  # Linux
    if waits:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def watch() -> None:
        while os.getppid() == above:
            if not waits:
                time.sleep(1.0)
            elif (sent := signal.sigtimedwait({signal.SIGTERM}, 1.0)) and sent.si_pid == parent.pid:
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
