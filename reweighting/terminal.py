"""What a command says: untrusted text made safe for a terminal, errors of one line, help."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import warnings
from typing import NoReturn

MAX_SHOWN = 200  # characters of a text that a message quotes
MAX_LINE = 1000  # characters of a message


def printable(text: object, limit: int = MAX_SHOWN) -> str:
    """``text`` on one line of at most ``limit`` characters, without anything a terminal obeys.

    White space becomes single spaces; escape sequences, control characters (C0 and C1), halves of
    surrogate pairs and marks that turn the direction of writing are spelled out.
    """
    text = str(text)[: 4 * limit + 4]  # what is cut anyway need not be cleaned
    line = "".join(c if c.isprintable() else _spelled(c) for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def error(text: object) -> None:
    """Print an error, several lines if it has them, to standard error."""
    _say("error", text)


def warning(text: object) -> None:
    """Print a warning to standard error."""
    _say("warning", text)


def _say(kind: str, text: object) -> None:
    for number, line in enumerate(str(text).split("\n")):
        print(f"{kind}: " * (number == 0) + printable(line, MAX_LINE), file=sys.stderr)


def quiet() -> None:
    """Leave the terminal to our own lines: no progress bars of transformers, no notes of Betty's,
    no word of torch about its own calls; Python's warnings in our own form.

    For the start of a command, before it loads a model; a library leaves that to its user.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # for transformers not yet imported
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    # A filter stays; Betty sets the logger's level anew when it first logs.
    logging.getLogger("betty").addFilter(_matters)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch\\.")
    warnings.showwarning = _show_warning


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A Python warning in our own form: to who types a command, the line of code says nothing.

    What is deprecated concerns developers alone.
    """
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        warning(message)


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


class HelpFormatter(argparse.HelpFormatter):
    """Every flag with its default, unless the help text already says it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is None or isinstance(action, argparse._StoreTrueAction):
            return text
        return text if action.default == argparse.SUPPRESS else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; subcommands' parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message, MAX_LINE)}\n")


def whole(minimum: int):
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, is {value}")
        return value

    parse.__name__ = "whole number"
    return parse


def real(minimum: float = 0.0, positive: bool = False):
    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or value < minimum or (positive and value == minimum):
            bound = "above" if positive else "at least"
            raise argparse.ArgumentTypeError(f"must be {bound} {minimum:g}, is {text}")
        return value

    parse.__name__ = "number"
    return parse
