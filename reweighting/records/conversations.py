"""Records that are conversations with a label after every step (DreamPRM-1.5)."""

from __future__ import annotations

from typing import NamedTuple

from .fields import FieldReader
from .steps import LABELS, Prompt, step_prompts
from .texts import MAX_CHARACTERS, shown

FIELD = "conversations"
_LABELS = dict(zip(LABELS, (1.0, 0.0), strict=True))
_ROLES = ("system", "human", "gpt")


class Conversation(NamedTuple):
    """What a conversation says; without prompts if it has a problem."""

    question: str
    prompts: list[Prompt]  # one for each step
    labels: list[float]  # ``+`` is 1, ``-`` is 0
    system: str  # the system turn


def conversation(reader: FieldReader, record: dict, number: int) -> Conversation:
    """The conversation of a record; problems are noted with the reader.

    What the human says before the first label is the question and the first step, in one turn or
    in several; after that steps and labels alternate.
    """
    turns = record[FIELD]
    if not isinstance(turns, list) or not turns:
        reader.problem(number, FIELD, "must be a list of turns, is {}", shown(turns))
        return Conversation("", [], [], "")
    said, labels, system = _turns(reader, turns, number)
    question, *first = said[0] or [""]
    pieces = ["\n\n".join(first), *("\n\n".join(turns) for turns in said[1:] if turns)]
    if not labels and not first:
        pieces = []  # a question and nothing else
    characters = sum(map(len, pieces)) + len(question)
    if characters > MAX_CHARACTERS:
        kind = f"holds {{}} characters, more than {MAX_CHARACTERS}"
        reader.problem(number, FIELD, kind, str(characters))
    if number in reader.problems or not reader.check_count(len(pieces), number, FIELD):
        return Conversation(question, [], labels, system)
    # A first step that shares a turn with the question is empty: no gap before the second.
    steps = [
        "\n\n" + piece if index > 1 or (index and pieces[0]) else piece
        for index, piece in enumerate(pieces)
    ]
    return Conversation(question, step_prompts(question, tuple(steps)), labels, system)


def _turns(
    reader: FieldReader, turns: list, number: int
) -> tuple[list[list[str]], list[float], str]:
    """What the human says before each label and after the last one, the labels, the system turn."""
    said: list[list[str]] = [[]]
    labels, system = [], ""
    for index, turn in enumerate(turns, start=1):
        where = f"turn {index}"
        role = turn.get("from") if isinstance(turn, dict) else None
        if role not in _ROLES:
            kind = f"must be from {', '.join(_ROLES)}, is {{}}"
            reader.problem(number, FIELD, kind, shown(turn), where=where)
            continue
        text = reader.clean(turn.get("value"), number, FIELD, where).strip()
        if role == "human":
            said[-1].append(text)
        elif role == "system":
            system = text
            if index > 1:
                kind = "is from system: only the first may be"
                reader.problem(number, FIELD, kind, where=where)
        elif text not in _LABELS:
            if text:
                reader.problem(number, FIELD, "must be + or -, is {}", shown(text), where=where)
        elif not said[-1]:
            reader.problem(number, FIELD, "labels no step", where=where)
        else:
            labels.append(_LABELS[text])
            said.append([])
    return said, labels, system
