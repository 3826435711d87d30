"""Where the question, the steps and the verdict of a chain of thought stand in its text.

A *prefix* is the first i steps of a chain, as written; a *prompt* is a question with a prefix. One
function, :func:`layout`, finds steps and verdict for train and meta records, candidates and
rollouts alike. Everything here takes time linear in the length of the text: no pattern repeats a
repetition.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .patterns import compiled

LABELS = ("+", "-")  # for a right step and for a wrong one
MAX_STEPS = 1000  # in one chain

# How chains name their steps; {n} is the number. A further language is a further line.
STEP_NAMES = (
    *("step {n}", "ｓｔｅｐ {n}"),
    *("étape {n}", "etape {n}", "schritt {n}", "paso {n}", "passo {n}", "passaggio {n}"),
    *("stap {n}", "steg {n}", "trin {n}", "krok {n}", "шаг {n}", "крок {n}", "βήμα {n}"),
    *("adım {n}", "langkah {n}", "bước {n}", "चरण {n}", "ขั้นตอนที่ {n}", "الخطوة {n}"),
    *("步骤 {n}", "步驟 {n}", "第 {n} 步", "ステップ {n}", "手順 {n}", "단계 {n}", "{n} 단계"),
)
# What opens the verdict. The reward model sees nothing from there on; the final answer is read
# there (answers/extraction.py).
VERDICT_NAMES = (
    *("final answer", "final result"),
    *("réponse finale", "endgültige antwort", "finale antwort", "endantwort"),
    *("respuesta final", "resposta final", "risposta finale", "eindantwoord"),
    *("окончательный ответ", "итоговый ответ", "đáp án cuối cùng"),
    *("最终答案", "最后答案", "最終答案", "最終的な答え", "最終回答"),
    *("최종 정답", "최종 답변", "최종 답"),
)

# For character classes: spaces within a line (those without width too), line ends, and decoration
# at the start of a line.
_SPACE = " \t\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff"
_BREAK = "\n\r\x0b\x0c\x85\u2028\u2029"
_DECORATION = _SPACE + r"#>*_\-–—+•‣▪▸►●◦·→➡\ufe0f|"

_LINE_START = rf"(?<![^{_BREAK}])[{_DECORATION}]*"
# Inside a line a marker counts only where a sentence opens and with a delimiter, so that "as seen
# in Step 2, ..." does not cut a step in two. Chinese sentences end without a space.
_SENTENCE_START = rf"(?:(?<=[.!?])[{_SPACE}]+|(?<=[。！？])[{_SPACE}]*)[*_#]*"
# What stands before both: looked at first, as it rules out nearly every character of a text.
_START = rf"(?<![^{_BREAK}.!?。！？])"
_DELIMITER = rf"[*_]*[{_SPACE}]*[:.)\-：．）、]"
_NUMBER = r"(\d{1,5}(?!\d)|[二三四五六七八九]?十[一二三四五六七八九]?|[一二三四五六七八九])"
_NUMERALS = "一二三四五六七八九"


def _words(text: str, gap: str) -> str:
    """A pattern of words with ``gap`` for the spaces between them."""
    return gap.join(map(re.escape, text.split()))


def _name(template: str) -> str:
    before, after = template.split("{n}")
    # "Step 1", "Step: 1", "Step #1", "Step-1"
    gap = rf"[{_SPACE}]*(?:[:#№_\-][{_SPACE}]*)?" if before else ""
    return (
        _words(before, rf"[{_SPACE}]+")
        + (gap + _NUMBER)
        + (rf"[{_SPACE}]*" + _words(after, rf"[{_SPACE}]+") if after else "")
    )


_NAME = "(?:" + "|".join(map(_name, STEP_NAMES)) + ")"
_MARKER = re.compile(
    # "### Step 1:", "**Step 1**", "1) Step 1.", "$\textbf{Step 1}$"
    rf"{_START}(?:{_LINE_START}(?:\d{{1,5}}[.)][{_SPACE}*_]*)?(?:\$?\\text(?:bf|it)?\{{)?{_NAME}"
    # "[Step 1]", "<step 1>", '"Step 1"'
    rf"|{_LINE_START}[(\[<{{【（\"“'`]{_NAME}[{_SPACE}*_]*[:.)\]>}}】）\"”'`]"
    rf"|{_SENTENCE_START}{_NAME}{_DELIMITER})",
    re.IGNORECASE,
)
# "1.", "1)", "(1)", "1、" with what stands before it on its line.
_NUMBERED_LINE = re.compile(
    rf"({_LINE_START})(?:(\d{{1,5}})[.．]|(\d{{1,5}})\)|[(（](\d{{1,5}})[)）]|(\d{{1,5}})、)"
    rf"(?=[{_SPACE}{_BREAK}*_]|(?<=[、）]))"
)
_SENTENCE_END = re.compile(r"[.!?](?!\S)|[。！？]|[.!?][*_)\"”]")

_VERDICT_NAME = "(?:" + "|".join(_words(name, r"\s+") for name in VERDICT_NAMES) + ")"
# What states a verdict, as neither "must be whole" nor "should be checked" does.
_COPULA = (
    r"[\s*_]*(?:(?:is|would be|will be|ist|lautet|est|es|é|è|là)\b"
    r"|[是为為は은는:：])"
)
_THEREFORE = rf"(?:therefore|thus|hence|so|所以|因此)[,，{_SPACE}]*"
_STATED = rf"(?:(?:the|our|my)[{_SPACE}]+)?{_VERDICT_NAME}{_COPULA}"
_VERDICT = re.compile(
    rf"{_START}(?:(?:{_LINE_START}|{_SENTENCE_START})(?:{_THEREFORE})?{_STATED}"
    rf"|{_LINE_START}{_VERDICT_NAME}(?!\w))"
    # "it reads 3, so the final answer is 3": the first part is reasoning.
    rf"|[,，;；][{_SPACE}]*(?:and[{_SPACE}]+)?{_THEREFORE}{_STATED}",
    re.IGNORECASE,
)
# After a marker that opens the verdict instead of a step: "Step 3: Final answer: 3",
# "### Step 2: Final Answer".
_HEADED = re.compile(
    rf"[{_DECORATION}:.)\]}}>】）：．、]*"
    rf"(?:(?:{_THEREFORE})?{_STATED}|{_VERDICT_NAME}[{_DECORATION}.)\]}}$]*(?![^{_BREAK}]))",
    re.IGNORECASE,
)
# The end of what a model thought before it responded.
_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHT_START = re.compile(_THOUGHT.pattern.replace("/", ""), re.IGNORECASE)
# A blank line, and what may follow it and still belong to the question.
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n\s*")
_QUESTION_PART = re.compile(r"(question|options?|choices|hint|\(?[A-J][).:])", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a text start, as character offsets.

    Args:
        steps: the markers of the steps, in order; empty if no step is marked.
        verdict: what states the final answer; the text's length if nothing does.
        numbered: whether the steps are marked by plain numbers only.
        start: the response, after the model's thought (``</think>``) if there is one.
    """

    steps: list[int]
    verdict: int
    numbered: bool = False
    start: int = 0


def layout(text: str, pattern: str | None = None) -> Layout:
    """Find the steps and the verdict of a text.

    The numbers of the markers run upwards from 1. Where they start more than once (a question that
    quotes "Step 1", a chain that starts again or looks back at its first step) the longest run
    counts, and the last of equally long ones; runs at the starts of lines take precedence. Plain
    numbers ("1.", "(1)") count where no step is named, see :func:`_numbered`.

    The verdict is looked for in the last step: a final answer with a further step after it belongs
    to the reasoning. The verdict opens a line or a sentence, or follows ", so" and the like; a last
    step that is nothing but the verdict ("Step 3: Final answer: 3") does not count as a step.

    Text before ``</think>`` has neither steps nor a verdict, unless nothing comes after it.

    Args:
        pattern: a regular expression for the start of a step, instead of the markers known here;
            see :func:`~.patterns.compiled`.
    """
    start = response_start(text)
    text, numbered, opening = text[start:], False, _MARKER
    if pattern is not None:
        opening = compiled(pattern)
        steps = [match.start() for match in opening.finditer(text)]
    else:
        steps = _longest_run(_markers(text))
        if not steps:
            steps = _numbered(text)
            numbered, opening = bool(steps), _NUMBERED_LINE
    end = len(text)
    while steps and _HEADED.match(text, opening.match(text, steps[-1]).end()):
        end = steps.pop()
    verdict = _VERDICT.search(text, steps[-1] if steps else 0, end)
    end = verdict.start() if verdict else end
    return Layout([start + step for step in steps], start + end, numbered, start)


def response_start(text: str) -> int:
    """The offset of the response after a thought; 0 without a thought, or if nothing follows it."""
    *_, end = (0, *(match.end() for match in _THOUGHT.finditer(text)))
    rest = text[end:].lstrip()
    return len(text) - len(rest) if end and rest else 0


def _markers(text: str) -> list[tuple[int, int, bool]]:
    """Everything that looks like a marker: number, offset, and whether it opens a line."""
    return [
        (_value(match[match.lastindex]), match.start(), _opens_line(text, match.start()))
        for match in _MARKER.finditer(text)
    ]


def _opens_line(text: str, offset: int) -> bool:
    return offset == 0 or text[offset - 1] in _BREAK


def _value(number: str) -> int:
    if number.isdecimal():
        return int(number)
    tens, ten, ones = number.rpartition("十")
    value = _NUMERALS.index(ones) + 1 if ones else 0
    return value + 10 * (_NUMERALS.index(tens) + 1 if tens else 1) if ten else value


def _run(numbers: Iterable[int]) -> list[int]:
    """Indices of the first 1, the first 2 after it, and so on."""
    found: list[int] = []
    for index, number in enumerate(numbers):
        if number == len(found) + 1:
            found.append(index)
    return found


def _longest_run(markers: list[tuple[int, int, bool]]) -> list[int]:
    """Offsets of the longest run 1, 2, 3, … among markers; the last one of equally long runs."""
    longest = len(_run(number for number, *_ in markers))
    on_lines = [marker for marker in markers if marker[2]]
    if len(_run(number for number, *_ in on_lines)) < longest:
        on_lines = markers
    # Backwards from the last marker of the highest number: the latest start of such a run.
    wanted, start = longest, 0
    for number, offset, _ in reversed(on_lines):
        if number == wanted:
            wanted, start = wanted - 1, offset
    rest = [marker for marker in markers if marker[1] >= start]
    return [rest[index][1] for index in _run(number for number, *_ in rest)]


def _numbered(text: str) -> list[int]:
    """Offsets of the lines that plain numbers open, if these can only be steps.

    All lines with numbers in the same style must be numbered 1, 2, 3, …; there must be at least two
    of them, and each must hold a sentence, as answer options and lists within a step do not.
    """
    by_style: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for match in _NUMBERED_LINE.finditer(text):
        style = match[1], match.lastindex
        by_style.setdefault(style, []).append((int(match[match.lastindex]), match.start()))
    for lines in by_style.values():
        offsets = [offset for _, offset in lines]
        if len(lines) < 2 or [number for number, _ in lines] != list(range(1, len(lines) + 1)):
            continue
        items = (text[a:b] for a, b in itertools.pairwise([*offsets, len(text)]))
        # The dot of the number itself stands before a space too.
        if all(_SENTENCE_END.search(item.lstrip(_LEADING)) for item in items):
            return offsets
    return []


_LEADING = " \t#>*_-()（）.．、0123456789"


def step_starts(text: str, pattern: str | None = None) -> list[int]:
    """Character offsets of the markers of steps 1, 2, 3, …; see :func:`layout`."""
    return layout(text, pattern).steps


def cut_steps(response: str, pattern: str | None = None) -> tuple[str, ...]:
    """The steps of a response, each with the space before it; joined, they are its longest prefix.

    A step ends before the marker of the next one, and the last step before the verdict, which the
    reward model is not shown. Text before step 1 belongs to step 1, except for a thought (up to
    ``</think>``), which is left out. A response without markers is one step, and so is a response
    that is nothing but a verdict.

    Raises:
        TooManySteps: there are more than :data:`MAX_STEPS`.
    """
    found = layout(response, pattern)
    check_count(len(found.steps))
    whole = response[found.start :].strip()
    if not found.steps:
        return (response[found.start : found.verdict].strip() or whole,)
    pieces, start = [], found.start
    for end in [*found.steps[1:], found.verdict]:
        piece = response[start:end].rstrip()
        if piece:
            pieces.append(piece)
            start += len(piece)
    return tuple(pieces) or (whole,)


class TooManySteps(ValueError):
    """A chain has more than :data:`MAX_STEPS` steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(f"has {steps:,} steps, at most {MAX_STEPS:,} can be scored")
        self.steps = steps


def check_count(steps: int) -> None:
    """Refuse too many steps: each score reads all earlier steps, so the work is quadratic.

    Raises:
        TooManySteps: there are more than :data:`MAX_STEPS`.
    """
    if steps > MAX_STEPS:
        raise TooManySteps(steps)


def split_steps(response: str, pattern: str | None = None) -> list[str]:
    """All prefixes of a response, shortest first; see :func:`cut_steps`."""
    return list(itertools.accumulate(cut_steps(response, pattern)))


def split_question(text: str, pattern: str | None = None) -> tuple[str, str]:
    """Cut a meta record's ``input`` into question and response; the response may be empty.

    The response starts at its first named step (see :func:`layout`). Without one, or with a
    ``pattern``, it is what follows the first blank line, unless answer options or another part of
    the question follow there: plain numbers and users' patterns may also match in the question. If
    the response opens with a thought in tags, the question ends before the thought.
    """
    start = response_start(text)
    if start and (thought := _THOUGHT_START.search(text, 0, start)):
        return text[: thought.start()].rstrip(), text[start:].strip()
    steps = _longest_run(_markers(text)) if pattern is None else []
    if steps:
        return text[: steps[0]].rstrip(), text[steps[0] :].strip()
    for blank in _BLANK_LINE.finditer(text):
        if blank.end() < len(text) and not _QUESTION_PART.match(text, blank.end()):
            return text[: blank.start()].rstrip(), text[blank.end() :].strip()
    return text.strip(), ""


def join(question: str, prefix: str) -> str:
    """The text of one user turn: the question, a blank line, the steps so far."""
    return f"{question}\n\n{prefix}" if prefix else question


@dataclass(frozen=True)
class Prompt:
    """What one score is read from: a question and the first steps of a response.

    Args:
        question: as the record gives it.
        steps: as written, with what lies between them: joined, they are the prefix itself.
        labels: whether each step before the last one is right; empty means that all are. Only the
            head ``plus_minus`` shows them to the model.
    """

    question: str
    steps: tuple[str, ...] = ()
    labels: tuple[bool, ...] = ()

    @property
    def text(self) -> str:
        """Question and steps in one user turn."""
        return join(self.question, "".join(self.steps))


def step_prompts(question: str, steps: tuple[str, ...]) -> list[Prompt]:
    """A prompt for every step, shortest first."""
    return [Prompt(question, steps[:count]) for count in range(1, len(steps) + 1)]


def chain_prompts(question: str, response: str, pattern: str | None = None) -> list[Prompt]:
    """A prompt for every step prefix of ``response``, shortest first.

    Raises:
        TooManySteps: it has more than :data:`MAX_STEPS`.
    """
    return step_prompts(question, cut_steps(response, pattern))


def record_prompt(question: str, prefix: str, pattern: str | None = None) -> Prompt:
    """The prompt of a train record's ``prefix``, unchanged but for a thought that is left out.

    Raises:
        TooManySteps: it has more than :data:`MAX_STEPS`.
    """
    steps = cut_steps(prefix, pattern)[:-1]
    prefix = prefix[response_start(prefix) :]
    return Prompt(question, (*steps, prefix[sum(map(len, steps)) :]))
