"""Where question, steps and verdict of a chain of thought are: texts alone, no tokens.

A *prefix* is the first i steps of a chain, as written; a *prompt* is a question with a prefix. One
set of functions serves train and meta records, candidates and rollouts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Real chains write "Step 1:", "### Step 1:", "**Step 1**", "STEP 1." at the start of a line. Inside
# a line only a marker that opens a sentence and carries a delimiter counts, so that "as seen in
# Step 2, ..." does not cut a step in two.
_LINE_START = r"(?:^[ \t]*(?:[#>*_-]+[ \t]*)*)"
_SENTENCE_START = r"(?:(?<=[.!?])[ \t]+[*_#]*)"
_FINAL_ANSWER = re.compile(
    rf"{_LINE_START}final\s+answer\b|{_SENTENCE_START}final\s+answer\s*(?:is\b|[*_]*\s*:)",
    re.IGNORECASE | re.MULTILINE,
)


def _step_marker(number: int) -> re.Pattern[str]:
    step = rf"step[ \t]*:?[ \t]*{number}(?!\d)"
    return re.compile(
        rf"{_LINE_START}{step}|{_SENTENCE_START}{step}[*_]*[ \t]*[:.)-]",
        re.IGNORECASE | re.MULTILINE,
    )


def step_starts(text: str, start: int = 0) -> list[int]:
    """Character offsets of the markers of steps 1, 2, 3, … in ``text``, searched from ``start``.

    The numbers must run upwards from 1; the first gap ends the chain.
    """
    offsets: list[int] = []
    while match := _step_marker(len(offsets) + 1).search(text, start):
        offsets.append(match.start())
        start = match.end()
    return offsets


def split_steps(response: str) -> list[str]:
    """All prefixes of a response, shortest first.

    Prefix i ends before the marker of step i+1 and the last one before "Final answer", so the
    verdict is never shown to the reward model. Text before step 1 belongs to every prefix. A
    response without step markers is one step, taken whole.
    """
    starts = step_starts(response)
    if not starts:
        return [response.strip()]
    final = _FINAL_ANSWER.search(response, starts[-1])
    ends = [*starts[1:], final.start() if final else len(response)]
    return [response[:end].rstrip() for end in ends]


def split_question(text: str) -> tuple[str, str]:
    """Cut a meta record's ``input`` (question + whole response) into its two parts.

    The response starts at the last "Step 1" (a question may quote the step-by-step instruction).
    Without any step, it is what follows the first blank line that does not open answer options or
    another part of the question. The response is empty when there is none.
    """
    first_steps = [m.start() for m in _step_marker(1).finditer(text)]
    if first_steps:
        cut = first_steps[-1]
        return text[:cut].rstrip(), text[cut:].strip()
    for blank in re.finditer(r"\n[ \t]*\n", text):
        rest = text[blank.end() :].lstrip()
        if rest and not re.match(r"(question|options?|choices|hint|\(?[A-J][).:])", rest, re.I):
            return text[: blank.start()].rstrip(), rest.strip()
    return text.strip(), ""


def final_answer(response: str) -> str:
    """What follows the last "Final answer" on its line, as written; "" if there is none."""
    matches = list(_FINAL_ANSWER.finditer(response))
    if not matches:
        return ""
    rest = response[matches[-1].end() :].strip().removeprefix("is")
    line = rest.lstrip(" *_:\n").splitlines()
    return line[0].strip(" *_") if line else ""


def join(question: str, prefix: str) -> str:
    """The text of one user turn: the question, a blank line, the steps so far."""
    return f"{question}\n\n{prefix}" if prefix else question


@dataclass(frozen=True)
class Prompt:
    """What one score is read from: a question and the first steps of a response.

    Args:
        question: as the record gives it.
        steps: as written, with what lies between them: put together they are the prefix itself.
        labels: of the steps before the last one, right or not; all right where there are none.
            Only ``plus_minus`` shows them to the model.
    """

    question: str
    steps: tuple[str, ...] = ()
    labels: tuple[bool, ...] = ()

    @property
    def text(self) -> str:
        """Question and steps in one user turn."""
        return join(self.question, "".join(self.steps))


def cut(prefixes: list[str]) -> tuple[str, ...]:
    """The pieces by which prefixes grow, the shortest prefix being the first piece."""
    grown = zip(prefixes[1:], prefixes, strict=False)
    return (*prefixes[:1], *(longer[len(shorter) :] for longer, shorter in grown))


def step_prompts(question: str, steps: tuple[str, ...]) -> list[Prompt]:
    """A prompt for every step, shortest first."""
    return [Prompt(question, steps[:count]) for count in range(1, len(steps) + 1)]


def chain_prompts(question: str, response: str) -> list[Prompt]:
    """A prompt for every step prefix of ``response``, shortest first."""
    return step_prompts(question, cut(split_steps(response)))


def record_prompt(question: str, prefix: str) -> Prompt:
    """The prompt of a train record's ``prefix``, which is kept to the letter."""
    return Prompt(question, cut([*split_steps(prefix)[:-1], prefix]))
