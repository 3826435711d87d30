"""Problems in a user's data, and how a long list of them is told in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

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


class Tally:
    """Counts problems by kind and keeps the first of each kind, however many problems there are."""

    def __init__(self, problems: Iterable[str] = ()) -> None:
        self.number = 0
        self._counts: Counter[str] = Counter()
        self._shown: dict[str, list[Problem]] = {}
        self._different: dict[str, set[int]] = {}  # hashes of what tells problems of a kind apart
        for problem in problems:
            self.add(problem)

    def add(self, problem: str) -> None:
        """Count a problem; one without a kind is a kind of its own."""
        problem = problem if isinstance(problem, Problem) else Problem(problem)
        kind = problem.kind
        self.number += 1
        self._counts[kind] += 1
        self._different.setdefault(kind, set()).add(hash(problem.values))
        shown = self._shown.setdefault(kind, [])
        if len(shown) < MAX_ALIKE:
            shown.append(problem)

    def text(self) -> str:
        """Problems by kind, a few of each spelled out, so that a frequent kind hides no others."""
        lines: list[str] = []
        for kind, count in list(self._counts.items())[:MAX_KINDS]:
            lines += self._shown[kind]
            if count > MAX_ALIKE:
                different = len(self._different[kind])
                note = f" ({different} different ones in all)" if 1 < different < count else ""
                lines.append(f"{kind}: {count - MAX_ALIKE} more like these{note}")
        if self.number > 1:
            kinds = len(self._counts)
            total = f"{self.number} problems"
            if 1 < kinds < self.number:
                total += f" of {kinds} kinds"
            if kinds > MAX_KINDS:
                total += f", {kinds - MAX_KINDS} kinds not listed"
            lines.append(total)
        return "\n".join(lines)


def summary(problems: Sequence[str]) -> str:
    """The text of a :class:`Tally` of problems."""
    return Tally(problems).text()


class DataError(Exception):
    """The user's files have problems; the message is their :func:`summary`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(summary(problems))
        self.problems = problems
        self.notes: list[str] = []
