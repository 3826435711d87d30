"""Whether two expressions are equal, by math-verify within a limit of CPU time.

Computer algebra can take minutes, or all memory, for one line of LaTeX, and math-verify's own time
limits are signals, which only a main thread may use. So it runs in a helper process, which starts
with the first comparison. The kernel ends an attempt that uses up :data:`SECONDS`, even within one
long operation; nothing that the library prints reaches the screen.

The helper imports math-verify once and forks; the fork answers each pair with a line of JSON. When
the kernel has ended a fork, the helper answers "not known" and forks again, within milliseconds.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

SECONDS = 0.5  # of CPU time per pair; with wall time the answer would depend on the load
MAX_CHARACTERS = 300  # of an expression; longer ones count as unequal
MAX_MEMORY = 2 * 2**30  # bytes of address space of the helper


@lru_cache(maxsize=65_536)
def equal(left: str, right: str) -> bool | None:
    """Whether two LaTeX expressions are equal; None if that is not decided in time.

    Raises:
        RuntimeError: the helper process does not run.
    """
    if max(len(left), len(right)) > MAX_CHARACTERS:
        return False
    return _helper.ask(left, right)


class _Helper:
    """The helper process of this process."""

    def __init__(self) -> None:
        self._reset()
        # A process forked from this one must neither share the pipe nor inherit a held lock.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, left: str, right: str) -> bool | None:
        with self._lock:
            for _ in range(2):  # the helper may have been ended since the last question
                if self._process is None or self._process.poll() is not None:
                    self._start()
                try:
                    self._process.stdin.write(json.dumps([left, right]) + "\n")
                    self._process.stdin.flush()
                    if line := self._process.stdout.readline():
                        return json.loads(line)
                except BrokenPipeError:
                    pass
                except BaseException:  # Ctrl-C: the next question would get the answer to this one
                    self.stop()
                    raise
                self.stop()
        raise RuntimeError(
            "math-verify, which compares expressions, does not run; is it installed?"
        )

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # not ended by Ctrl-C but by the end of its input
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


_helper = _Helper()
atexit.register(lambda: _helper.stop())


# ---- the helper process


def main() -> None:
    """Answer pairs from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library may print
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    verified = _make_verifier()
    verified("x^2+2x+1", "(x+1)^2")  # loads the grammar of LaTeX and the simplification
    while True:
        fork = os.fork()
        if fork == 0:
            _answer(verified, answers)
            os._exit(0)
        _, status = os.waitpid(fork, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        print("null", file=answers, flush=True)


def _answer(verified, answers) -> None:
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        value = verified(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(value), file=answers, flush=True)


def _make_verifier():
    from math_verify import LatexExtractionConfig, parse, verify

    rules = [LatexExtractionConfig()]

    @lru_cache(maxsize=1024)
    def expression(text: str):
        return parse(f"${text}$", rules, parsing_timeout=None)

    def verified(left: str, right: str) -> bool:
        found = expression(left), expression(right)
        options = {"timeout_seconds": None, "allow_set_relation_comp": True}
        try:
            return bool(verify(*found, **options))
        except Exception:  # computer algebra may raise anything
            return False

    return verified


if __name__ == "__main__":
    main()
