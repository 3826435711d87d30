"""Commands as a reader would type them: printed first, then run in this process."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence

WIDTH = 100  # columns of a printed command


def shown(command: Sequence[str]) -> str:
    """``python <command>`` for a shell, on as many lines as it needs; a flag stays by its value."""
    parts: list[str] = []
    for before, word in zip(["", *command], command, strict=False):
        if before.startswith("--") and not word.startswith("--"):
            parts[-1] += f" {shlex.quote(word)}"
        else:
            parts.append(shlex.quote(word))
    lines = ["$ python"]
    for part in parts:
        if len(lines[-1]) + len(part) + len("  \\") > WIDTH:
            lines.append("   ")
        lines[-1] += f" {part}"
    return " \\\n".join(lines)


def show_and_run(command: Sequence[str]) -> int:
    """Print a command (the words after ``python``), run it, and return its exit code."""
    print(f"\n{shown(command)}", flush=True)
    if command[0] == "-m":
        name, arguments = f"{command[1]}.__main__", command[2:]
    else:
        name, arguments = command[0].removesuffix(".py"), command[1:]
    return importlib.import_module(name).main(list(arguments))
