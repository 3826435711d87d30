"""Where question, steps and verdict of a chain of thought are: texts alone, no tokens.

A *prefix* is the first i steps of a chain, as written; a *prompt* is a question with a prefix. One
function, :func:`layout`, says where steps and verdict are, for train and meta records, candidates
and rollouts alike. Everything here takes time in proportion to the length of the text: no pattern
repeats what is itself a repetition.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .patterns import compiled

LABELS = ("+", "-")  # of a step that is right, and of one that is wrong
MAX_STEPS = 1000  # of one chain

# How chains name their steps; {n} is the number. A line more teaches another language.
STEP_NAMES = (
    *("step {n}", "ｓｔｅｐ {n}"),
    *("étape {n}", "etape {n}", "schritt {n}", "paso {n}", "passo {n}", "passaggio {n}"),
    *("stap {n}", "steg {n}", "trin {n}", "krok {n}", "шаг {n}", "крок {n}", "βήμα {n}"),
    *("adım {n}", "langkah {n}", "bước {n}", "चरण {n}", "ขั้นตอนที่ {n}", "الخطوة {n}"),
    *("步骤 {n}", "步驟 {n}", "第 {n} 步", "ステップ {n}", "手順 {n}", "단계 {n}", "{n} 단계"),
)
# What opens the verdict, after which nothing is shown to the reward model; the final answer is read
# after it (extraction.py).
VERDICT_NAMES = (
    *("final answer", "final result"),
    *("réponse finale", "endgültige antwort", "finale antwort", "endantwort"),
    *("respuesta final", "resposta final", "risposta finale", "eindantwoord"),
    *("окончательный ответ", "итоговый ответ", "đáp án cuối cùng"),
    *("最终答案", "最后答案", "最終答案", "最終的な答え", "最終回答"),
    *("최종 정답", "최종 답변", "최종 답"),
)

# Inside character classes: spaces that do not end a line (also those without width), what ends
# one, and what decorates the start of one.
_SPACE = " \t\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff"
_BREAK = "\n\r\x0b\x0c\x85\u2028\u2029"
_DECORATION = _SPACE + r"#>*_\-–—+•‣▪▸►●◦·→➡\ufe0f|"

_LINE_START = rf"(?<![^{_BREAK}])[{_DECORATION}]*"
# Inside a line a marker counts only where a sentence opens and with a delimiter, so that "as seen
# in Step 2, ..." does not cut a step in two. Chinese sentences end without a space.
_SENTENCE_START = rf"(?:(?<=[.!?])[{_SPACE}]+|(?<=[。！？])[{_SPACE}]*)[*_#]*"
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
    rf"{_LINE_START}(?:\d{{1,5}}[.)][{_SPACE}*_]*)?(?:\$?\\text(?:bf|it)?\{{)?{_NAME}"
    # "[Step 1]", "<step 1>", '"Step 1"'
    rf"|{_LINE_START}[(\[<{{【（\"“'`]{_NAME}[{_SPACE}*_]*[:.)\]>}}】）\"”'`]"
    rf"|{_SENTENCE_START}{_NAME}{_DELIMITER}",
    re.IGNORECASE,
)
# "1.", "1)", "(1)", "1、" with what stands before it on its line.
_NUMBERED_LINE = re.compile(
    rf"({_LINE_START})(?:(\d{{1,5}})[.．]|(\d{{1,5}})\)|[(（](\d{{1,5}})[)）]|(\d{{1,5}})、)"
    rf"(?=[{_SPACE}{_BREAK}*_]|(?<=[、）]))"
)
_SENTENCE_END = re.compile(r"[.!?](?!\S)|[。！？]|[.!?][*_)\"”]")

_VERDICT_NAME = "(?:" + "|".join(_words(name, r"\s+") for name in VERDICT_NAMES) + ")"
# What states it: neither "must be whole" nor "should be checked" does.
_COPULA = (
    r"[\s*_]*(?:(?:is|would be|will be|ist|lautet|est|es|é|è|là)\b"
    r"|[是为為は은는:：])"
)
_THEREFORE = rf"(?:therefore|thus|hence|so|所以|因此)[,，{_SPACE}]*"
_STATED = rf"(?:(?:the|our|my)[{_SPACE}]+)?{_VERDICT_NAME}{_COPULA}"
_VERDICT = re.compile(
    rf"(?:{_LINE_START}|{_SENTENCE_START})(?:{_THEREFORE})?{_STATED}"
    # "it reads 3, so the final answer is 3": what comes before is reasoning.
    rf"|[,，;；][{_SPACE}]*(?:and[{_SPACE}]+)?{_THEREFORE}{_STATED}"
    rf"|{_LINE_START}{_VERDICT_NAME}(?!\w)",
    re.IGNORECASE,
)
# After the marker of a step that is none: "Step 3: Final answer: 3", "### Step 2: Final Answer".
_HEADED = re.compile(
    rf"[{_DECORATION}:.)\]}}>】）：．、]*"
    rf"(?:(?:{_THEREFORE})?{_STATED}|{_VERDICT_NAME}[{_DECORATION}.)\]}}$]*(?![^{_BREAK}]))",
    re.IGNORECASE,
)
# What a model thought before it responded ends here; extraction.py reads no answer in it either.
_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHT_START = re.compile(_THOUGHT.pattern.replace("/", ""), re.IGNORECASE)
# A blank line, and what after it still belongs to the question.
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n\s*")
_QUESTION_PART = re.compile(r"(question|options?|choices|hint|\(?[A-J][).:])", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a text are, as character offsets.

    Args:
        steps: of the markers of the steps, in order; empty if none are marked.
        verdict: of what gives the final answer, or the text's length.
        numbered: whether the steps are marked by plain numbers only.
        start: of the response, which is after what the model thought before (``</think>``).
    """

    steps: list[int]
    verdict: int
    numbered: bool = False
    start: int = 0


def layout(text: str, pattern: str | None = None) -> Layout:
    """Where steps and verdict of a text are.

    The numbers of the markers run upwards from 1. Where they start more than once (a question that
    quotes "Step 1", a chain that starts again or looks back at its first step) the longest run
    counts, the last of equal ones; those that start on a line of their own come first. Plain
    numbers ("1.", "(1)") count where no step is named, see :func:`_numbered`.

    The verdict is looked for in the last step: a chain that states a final answer and goes on with
    a further step has that as reasoning. It opens a line or a sentence, or follows ", so" and the
    like; a last step that is nothing but the verdict ("Step 3: Final answer: 3") is none.

    What comes before ``</think>`` has neither steps nor a verdict, unless nothing comes after it.

    Args:
        pattern: a regular expression that matches at the start of every step, instead of the
            markers known here; see :func:`~.patterns.compiled`.
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
    """The offset after a thought and the space that follows; 0 if nothing else does."""
    *_, end = (0, *(match.end() for match in _THOUGHT.finditer(text)))
    rest = text[end:].lstrip()
    return len(text) - len(rest) if end and rest else 0


def _markers(text: str) -> list[tuple[int, int, bool]]:
    """Number, offset and whether it opens a line, of everything that looks like a marker."""
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
    """Offsets of the longest run 1, 2, 3, … among markers; of equal ones that which starts last."""
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
    """Offsets of the lines that plain numbers open, where these can only be steps.

    Lines written alike must be numbered 1, 2, 3, … to the last of them, at least two, and each must
    hold a sentence: answer options and lists within a step do not.
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
    """The steps of a response, each with the space before it: put together, its longest prefix.

    A step ends before the marker of the next one and the last one before the verdict, which is not
    shown to the reward model in the forms that :func:`layout` knows. Text before step 1 belongs to
    it, but for a thought (all up to ``</think>``), which is left out. A response without markers is
    one step. One that is nothing but a verdict is one step as well, taken whole.

    Raises:
        ValueError: there are more than :data:`MAX_STEPS`.
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


def check_count(steps: int) -> None:
    """Every score reads all steps before it, so the work grows with their square.

    Raises:
        ValueError: there are more than :data:`MAX_STEPS`.
    """
    if steps > MAX_STEPS:
        raise ValueError(f"has {steps:,} steps, at most {MAX_STEPS:,} can be scored")


def split_steps(response: str, pattern: str | None = None) -> list[str]:
    """All prefixes of a response, shortest first: the first step, the first two, … (see
    :func:`cut_steps`)."""
    return list(itertools.accumulate(cut_steps(response, pattern)))


def split_question(text: str, pattern: str | None = None) -> tuple[str, str]:
    """Cut a meta record's ``input`` (question + whole response) into its two parts.

    The response starts at its first step (see :func:`layout`). Without a named step it is what
    follows the first blank line that does not open answer options or another part of the question:
    plain numbers and own patterns may well be found in a question too. The response is empty when
    there is none. Where the response opens with a thought in tags, the question ends before it.
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


def step_prompts(question: str, steps: tuple[str, ...]) -> list[Prompt]:
    """A prompt for every step, shortest first."""
    return [Prompt(question, steps[:count]) for count in range(1, len(steps) + 1)]


def chain_prompts(question: str, response: str, pattern: str | None = None) -> list[Prompt]:
    """A prompt for every step prefix of ``response``, shortest first.

    Raises:
        ValueError: it has more than :data:`MAX_STEPS`.
    """
    return step_prompts(question, cut_steps(response, pattern))


def record_prompt(question: str, prefix: str, pattern: str | None = None) -> Prompt:
    """The prompt of a train record's ``prefix``, kept to the letter (but for a thought before it).

    Raises:
        ValueError: it has more than :data:`MAX_STEPS`.
    """
    steps = cut_steps(prefix, pattern)[:-1]
    prefix = prefix[response_start(prefix) :]
    return Prompt(question, (*steps, prefix[sum(map(len, steps)) :]))
