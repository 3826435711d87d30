"""What a command prints: untrusted text made safe, errors and warnings, help; types of flags."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

MAX_SHOWN = 200  # characters of a text that a message quotes
MAX_LINE = 1000  # characters of a message
_muted = False  # see mute()


def printable(text: object, limit: int = MAX_SHOWN) -> str:
    """``text`` on one line of at most ``limit`` characters, without control of the terminal.

    White space becomes single spaces; escape sequences, control characters (C0 and C1), halves of
    surrogate pairs and marks for the direction of writing are spelled out.
    """
    text = str(text)[: 4 * limit + 4]  # the rest would be cut anyway
    line = "".join(c if c.isprintable() else _spelled(c) for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def mute() -> None:
    """Print nothing but errors from now on: another process of the same command says the rest."""
    global _muted
    _muted = True
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def error(text: object) -> None:
    """Print an error, of one line or several, to standard error."""
    _say("error", text)


def warning(text: object) -> None:
    """Print a warning to standard error."""
    if not _muted:
        _say("warning", text)


def _say(kind: str, text: object) -> None:
    for number, line in enumerate(str(text).split("\n")):
        print(f"{kind}: " * (number == 0) + printable(line, MAX_LINE), file=sys.stderr)


def exit_with(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit code of a command; Ctrl-C ends it in one line with 130."""
    try:
        code = main()
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        code = 130
    sys.exit(code)


def quiet() -> None:
    """Silence libraries: progress bars of transformers, notes of Betty, deprecations in torch.

    Python's other warnings are printed like :func:`warning`. This is for the start of a command,
    before it loads a model; a program that uses the package as a library decides for itself.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # if not yet imported
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    # A filter, because Betty sets the level of its logger again when it first logs.
    logging.getLogger("betty").addFilter(_matters)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch\\.")
    warnings.showwarning = _show_warning


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Print a warning without its line of code, which means nothing to the user of a command.

    Deprecations concern developers only.
    """
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        warning(message)


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


class HelpFormatter(argparse.HelpFormatter):
    """Help of 100 columns that ends each flag's text with its default, if it has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is None or isinstance(action, argparse._StoreTrueAction):
            return text
        return text if action.default == argparse.SUPPRESS else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; the parsers of its subcommands are of this class too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message, MAX_LINE)}\n")


def whole(minimum: int) -> Callable[[str], int]:
    """The type of a flag: a whole number of at least ``minimum``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, is {value}")
        return value

    parse.__name__ = "whole number"
    return parse


def real(
    minimum: float = 0.0, positive: bool = False, most: float = math.inf
) -> Callable[[str], float]:
    """The type of a flag: a finite number of at least ``minimum``, or above it if ``positive``."""

    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or value < minimum or (positive and value == minimum):
            bound = "above" if positive else "at least"
            raise argparse.ArgumentTypeError(f"must be {bound} {minimum:g}, is {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:g}, is {text}")
        return value

    parse.__name__ = "number"
    return parse
