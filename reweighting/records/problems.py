"""Problems in a user's data, and how a long list of them is told in a few lines."""

from __future__ import annotations

from collections.abc import Sequence

MAX_KINDS = 20  # kinds of problems that an error lists
MAX_ALIKE = 3  # problems of one kind that are spelled out


class Problem(str):
    """The text of one problem.

    Args:
        kind: the text that it shares with all problems like it.
        values: what tells it from others of its kind, apart from the record.
    """

    kind: str
    values: tuple[str, ...]

    def __new__(cls, text: str, kind: str = "", values: tuple[str, ...] = ()) -> Problem:
        problem = super().__new__(cls, text)
        problem.kind, problem.values = kind or text, values
        return problem


def summary(problems: Sequence[str]) -> str:
    """Problems by kind, a few of each spelled out, so that a frequent kind does not hide others."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        problem = problem if isinstance(problem, Problem) else Problem(problem)
        kinds.setdefault(problem.kind, []).append(problem)
    lines: list[str] = []
    for kind, alike in list(kinds.items())[:MAX_KINDS]:
        lines += alike[:MAX_ALIKE]
        if len(alike) > MAX_ALIKE:
            different = len({problem.values for problem in alike})
            note = f" ({different} different ones in all)" if 1 < different < len(alike) else ""
            lines.append(f"{kind}: {len(alike) - MAX_ALIKE} more like these{note}")
    if len(problems) > 1:
        total = f"{len(problems)} problems"
        if 1 < len(kinds) < len(problems):
            total += f" of {len(kinds)} kinds"
        if len(kinds) > MAX_KINDS:
            total += f", {len(kinds) - MAX_KINDS} kinds not listed"
        lines.append(total)
    return "\n".join(lines)


class DataError(Exception):
    """The user's files have problems; the message is their :func:`summary`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(summary(problems))
        self.problems = problems
        self.notes: list[str] = []
