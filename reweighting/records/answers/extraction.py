"""Where the final answer of a response stands.

Answers are announced by "Final answer", by a box or an answer tag, and by "the answer is" and
"Answer:", in several languages. The last announcement of a letter, a number, mathematics or a few
words counts. Without one, an option counts that is called the right one; then, from the surest kind
of announcement to the least sure, the last announcement of anything; then a last line that is
nothing but a letter or a number. Delimiters, fences, tags and markup are never an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..steps import VERDICT_NAMES, response_start
from .boxes import boxes, read_enclosed
from .following import going_on
from .notation import clean, words
from .quantities import quantity
from .retraction import is_taken_back, retraction_in_line
from .units import known_unit

MAX_CHARACTERS = 100_000  # at the end of a response that are read
MAX_MARKERS = 50  # of each kind that are looked at, from the end
MAX_ENDING = 2_000  # characters after a marker or within a box that are looked at
BEFORE = 100  # characters before a marker that may say that it announces nothing
FEW_WORDS = 5  # of an answer that an earlier number does not replace
MAX_WORD = 40  # characters of a bare word that is an answer

# A further language is further words. The sure markers announce nothing but a final answer.
FINAL_MARKERS = VERDICT_NAMES
MARKERS = (
    *("correct answer", "correct option", "correct choice", "right answer", "best answer"),
    *("best choice", "best option", "respuesta correcta", "resposta correta", "正解", "正确选项"),
    *("故选", "答案选", "选项"),
    *("answer", "ans", "correct", "answer choice"),
    *("正确答案", "答案", "答え", "答", "정답", "답", "ответ", "правильный ответ"),
    *("réponse", "respuesta", "antwort", "lösung", "resposta", "risposta"),
    *("الإجابة", "الجواب", "उत्तर", "đáp án", "jawaban", "cevap", "antwoord", "svar", "odpowiedź"),
)
# Words that may stand between a marker and its answer.
IS = (
    *("is", "are", "was", "would be", "will be", "should be", "must be", "comes to", "equals"),
    *("est", "es", "ist", "lautet", "é", "è", "là", "adalah"),
    *("是", "为", "為", "は", "は、", "은", "는", "选"),
)
NO_ANSWER = frozenset(
    ("none", "n/a", "na", "unknown", "null", "unclear", "nothing", "unanswerable")
)

_DECORATION = r"[\s*_#>\"'`]"


def _any_of(phrases: Sequence[str]) -> str:
    ordered = sorted(phrases, key=len, reverse=True)
    return "|".join(re.escape(word).replace(r"\ ", r"[ \t]{1,20}") for word in ordered)


_LATIN = "[A-Za-zÀ-ÿ]"
_JOIN = (
    rf"(?:[*_\"' \t]{{0,20}}(?:[:：=】]|(?<![A-Za-z])(?:{_any_of(IS)})"
    rf"(?:(?<!{_LATIN})|(?!{_LATIN}))){{1,2}})"
)
_LINE_START = r"^[ \t#>*_\-•]*"
_SURE = re.compile(
    rf"(?<![A-Za-z])(?:{_any_of(FINAL_MARKERS)})(?![A-Za-z])"
    rf"[ \t*_]{{0,20}}(?:\([^()\n]{{0,40}}\)[ \t*_]{{0,20}})?{_JOIN}",
    re.I,
)
# At the start of a line it needs no colon: "Final answer isosceles", "Final answer – 5"
_SURE_LINE = re.compile(
    rf"{_LINE_START}(?:the[ \t]+)?(?:{_any_of(FINAL_MARKERS)})(?![A-Za-z])[*_ \t]*"
    r"(?:[-–—]{1,3}[ \t]+)?(?=[^\s,;.*_]|\n)",
    re.I | re.M,
)
_LIKELY = re.compile(
    rf"(?<![A-Za-z])(?:{_any_of(MARKERS)})(?![A-Za-z])"
    rf"(?:,[^,\n]{{1,20}},(?=[ \t]+is\b)"
    rf"|[ \t]+(?:to|for|of|choice|option)\b[^\n.:=]{{0,80}}?(?=[ \t]+is\b|[:：]))?{_JOIN}",
    re.I,
)
# "(B) 14 cm is the correct answer", "option B is correct", "I choose B"
_CHOSEN = re.compile(
    r"(?<![A-Za-z'])(?P<is>\([A-Z]\)(?:[^\S\n][^.\n]{0,60}?)?|[A-Z])[*_]*[ \t]+is[ \t]+"
    r"(?:the[ \t]+)?(?:correct|best|right[ \t]+(?:answer|option|choice|one)|answer)\b"
    r"(?![ \t]*(?:,|if\b|only\b|but\b))"
    r"|\b(?:choose|select|pick)[ \t]+(?:option[ \t]+)?[*_]*(?P<choose>\(?[A-Z]\)?)(?![A-Za-z'])"
    r"(?![*_]*,?[ \t]+(?:as|since|if|only|to|for)\b)"
    r"|(?:[选選][ \t]*[:：]?|选项)[ \t]*[(（]?(?P<chosen>[A-Z])[)）]?(?![A-Za-z点])",
    re.M,
)
# Words earlier in the clause of an announcement that make it announce something else.
_SAME_CLAUSE = r"(?:(?!\b(?:but|so|then|hence)\b)[^.,;:!?\n。，；：]){0,20}$"
_NOT_ANNOUNCED = re.compile(
    r"(?:\b(?:wrong|incorrect|false|common|whether|doubt|students|not|cannot|never|impossible|nobody"
    r"|suppose|assume|assuming|imagine|if|without|different|unlikely)\b|n't|不|没|未|错误)"
    + _SAME_CLAUSE
    # "My previous answer", "a naive answer", "old_answer"
    + r"|(?:\b|_)(?:wrong|incorrect|previous|earlier|old|first|initial|partial|naive|given|proposed"
    r"|suggested|claimed|intermediate|preliminary|tempting|rejected|student's|student|alternative"
    r"|runner-up)[\s_]*(?:the\s+)?$"
    # "Some would say the answer is", "Others claim that the answer is"
    r"|\b(?:some|others|many|people|one|they|nobody|you|someone|somebody|solver|everyone|he|she)\b"
    r"[^.;:!?\n]{0,20}\b(?:say|says|said|claims?|claimed|thinks?|thought|believes?|guess|answer)\b"
    + _SAME_CLAUSE
    # "If x were 2, the answer is"
    + r"|\b(?:if|suppose|assume|had)\b(?:(?!\b(?:but|so|hence|thus|therefore)\b)[^.;!?\n]){0,60}"
    r"\b(?:were|was|had|would)\b[^.;!?\n]{0,40}$|\bwithout\b[^.;!?\n]{0,30},[^.,;!?\n]{0,10}$",
    re.I,
)
_NOT_CHOSEN = re.compile(
    r"\b(?:angle|point|statement|vertex|line|side|type|vitamin|if|suppose|assume|that|saying|many"
    rf"|most)\b{_SAME_CLAUSE}|\b(?:or|nor)\s*\(?$",
    re.I,
)
_TAGGED = re.compile(
    r"<(?P<tag>answer|final_answer|\|begin_of_box\|)>(?P<value>[^<]{0,2000}(?:<(?!/|\|)[^<]{0,200}){0,8})",
    re.I,
)
_TAG_END = re.compile(r"(?:</[^<>]{0,40}>|<\|[^<>]{0,40}>)?")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*[A-Za-z]*[ \t]*$", re.M)
# A sentence after the answer's own: "5. This holds because ..."
_SENTENCE = re.compile(
    r"(?<=[\w)\]}$°%*\"'])[.!?][*_\"']*\s+(?=[*_\"']*[A-Z][A-Za-z']*[\s,])|[。！？](?=\S)"
)
_COPULA = re.compile(r"\s*(?:です|입니다|이다)[.。]?$")  # stands after the answer
# What may follow an announcement without being an answer: "in step 5", "rounded to"
_ELSEWHERE = re.compile(
    r"^(?:(?:in|from|see|at)\s+(?:the\s+)?(?:step|previous|next|last|end|above|below)"
    r"|(?:wrong|incorrect|clear|rounded|given)\s+(?:because|since|as|from|that|to|in|by)"
    r"|explanation|reasoning)\b",
    re.I,
)
_ABBREVIATIONS = frozenset(words("mrs prof gen col capt sgt rev hon ave dept approx"))


def extract(response: str, choices: Sequence[str] | None = None) -> str:
    """The final answer of a response, as written; empty if none can be read.

    Args:
        choices: texts of the options; a response may consist of one of them alone.
    """
    text = response[-MAX_CHARACTERS:]
    if start := response_start(text):
        text = text[start:].strip()
    found = {kind: list(filter(_is_ending, kind(text))) for kind in (_announced, _boxed, _likely)}
    every = sorted((ending for kind in found.values() for ending in kind), reverse=True)
    chosen = next((ending for ending in every if _counts(ending.value, ending.few)), None)
    chosen = chosen or _chosen(text)
    chosen = chosen or next((max(endings) for endings in found.values() if endings), None)
    if chosen is None:
        return _bare(text, choices)
    taken_back = chosen.value == _TAKEN_BACK or is_taken_back(text, chosen.end, chosen.value)
    return "" if taken_back else chosen.value


class _Ending(NamedTuple):
    """Where an answer is announced, how many words of it count, the answer, and where it ends."""

    start: int
    few: int
    value: str
    end: int


_TAKEN_BACK = "(taken back)"  # the value of an announcement that the text takes back


def _is_ending(ending: _Ending) -> bool:
    return _is_answer(ending.value)


def _counts(value: str, words: int) -> bool:
    """Whether this is a letter, a number, mathematics, or a text of at most ``words`` words."""
    plain = clean(value)
    if (
        value == _TAKEN_BACK
        or _OPTION_LINE.match(plain)
        or _OPTION_TEXT.match(plain)
        or quantity(plain)
    ):
        return True
    if _MATHEMATICS.match(value.strip()) or _is_expression(plain):
        return True
    return len(plain.split()) <= words


def _is_answer(text: str) -> bool:
    """Whether something is left without decoration."""
    if _is_symbol(text):
        return True
    if _ELSEWHERE.match(text):
        return False
    return any(c.isalnum() or c in "∅∞°π√" for c in clean(text)) and clean(text).casefold() not in (
        "text", "boxed", "latex", "answer", "final answer",
    )  # fmt: skip


def _is_symbol(text: str) -> bool:
    """Whether a text is a single sign: "<", "→" or "△" may be an answer."""
    kinds = {unicodedata.category(character) for character in text if character != "\ufe0f"}
    return text in ("-", "–", "%") or (len(text) <= 2 and kinds in ({"Sm"}, {"So"}))


def _announced(text: str) -> Iterator[_Ending]:
    """What follows the last occurrences of "Final answer", in their order."""
    starts = {match.end(): FEW_WORDS for match in _SURE_LINE.finditer(text)}
    begins = {match.end(): match.start() for match in _SURE_LINE.finditer(text)}
    for match in _SURE.finditer(text):  # all words after "Final answer:"
        begins[match.end()] = match.start()
        starts[match.end()] = MAX_ENDING if match.group()[-1] in ":：】" else FEW_WORDS
    for start in sorted(starts)[-MAX_MARKERS:]:
        if not _NOT_ANNOUNCED.search(text, max(0, begins[start] - BEFORE), begins[start]):
            yield _Ending(start, starts[start], *_value(text, start))


def _boxed(text: str) -> Iterator[_Ending]:
    found = boxes(text)
    for match in [*_TAGGED.finditer(text)][-MAX_MARKERS:]:
        end = _TAG_END.match(text, match.end()).end()
        tag = read_enclosed(text, match.start(), end, _inner(match["value"].strip()))
        found += [tag] if tag else []
    for box in sorted(found):
        value = _TAKEN_BACK if box.taken_back else without_lead_in(box.value)
        yield _Ending(box.start, FEW_WORDS, value, box.end)


def _inner(value: str) -> str:
    """A value in a tag without a box or a marker."""
    unboxed = _unboxed(value)
    return unboxed if unboxed != value else without_lead_in(value)


def _likely(text: str) -> Iterator[_Ending]:
    for match in [*_LIKELY.finditer(text)][-MAX_MARKERS:]:
        if not _NOT_ANNOUNCED.search(text, max(0, match.start() - BEFORE), match.start()):
            few = FEW_WORDS if match.group()[-1] in ":：】" else 0
            yield _Ending(match.end(), few, *_value(text, match.end()))


def _chosen(text: str) -> _Ending | None:
    """The last option that is called the right one; None if there is none."""
    for match in [*_CHOSEN.finditer(text)][: -MAX_MARKERS - 1 : -1]:
        before = max(0, match.start() - BEFORE), match.start()
        if not any(p.search(text, *before) for p in (_NOT_ANNOUNCED, _NOT_CHOSEN)):
            option = match["is"] or match["choose"] or match["chosen"]
            return _Ending(match.start(), 0, option, match.end())
    return None


_HALF_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(\\+-])")  # "2**3" is whole
# What may stand before an answer: beside its marker, and in a line of its own.
_BESIDE = re.compile(r"^(?:[\s*_#:：•→]|[-=]>|=|(?:is|are)\s)+")
_BEFORE = re.compile(r"^(?:[\s*_#>:：=]|[-•]\s|(?:is|are)\s)+")
_DISPLAY = re.compile(rf"(?:{_DECORATION}|[:：=]|-[ \t]|•)*(?P<display>\$\$|\\\[)")


def _value(text: str, start: int) -> tuple[str, int]:
    """The answer after a marker, in a line, a display, a fence or a tag, and where it ends."""
    rest = _FENCE.sub(lambda match: " " * len(match[0]), text[start : start + MAX_ENDING])
    if text[:start].endswith("=") and rest.startswith(">"):
        rest = " " + rest[1:]
    opened = re.match(r"[ \t\n*_:：=]*", rest).end()
    if tag := _TAGGED.match(rest, opened):
        return _inner(tag["value"].strip()), start + tag.end()
    if opening := _DISPLAY.match(rest):
        end = {"$$": "$$", "\\[": "\\]"}[opening["display"]]
        block, closed, after = rest[opening.end() :].partition(end)
        block = " ".join(block.split()) if closed else block.strip().split("\n")[0]
        tail = after.split("\n")[0].strip(" .*_") if closed else ""
        position = len(rest) - len(after) + len(after.split("\n")[0]) if closed else len(rest)
        more, length = going_on(block, rest[position:])
        value = _unboxed(f"${block}$ {tail}", f"{block} {tail}".strip())
        return value + more, start + position + length
    if _is_symbol(sign := rest.strip().split("\n")[0].strip(" *_`$\"'.")):
        return sign, start + rest.find(sign) + len(sign)
    return _value_in_lines(rest, start)


def _value_in_lines(rest: str, start: int) -> tuple[str, int]:
    """The answer in the first line that has one, with the lines that go on with it, and its end."""
    position = 0
    for number, whole in enumerate(rest.split("\n")):
        position += len(whole) + (number > 0)
        # A sign in the marker's own line belongs to the answer: "> 5", "- 5".
        line = (_BEFORE if number else _BESIDE).sub("", whole).rstrip(" *_\t\r")
        line = _HALF_BOLD.sub("", line) if line.count("**") % 2 else line
        line = line if "{" in line else line.rstrip("} ")  # of a JSON object or a box around
        if _is_answer(line):
            said, taken_back, instead = _retracted(line)
            if taken_back:
                counts = _counts(_sentence(instead), 0)
                return _sentence(instead) if counts else _TAKEN_BACK, start + position
            value = _unboxed(_COPULA.sub("", _sentence(said)))
            if _sentence(said) == said:
                more, length = going_on(said, rest[position:])
                if more:
                    return value.rstrip(" .,;") + more, start + position + length
            first = re.match(r"\W*[A-J](?=\W*\.\s)", value) or re.match(r".*", value, re.S)
            found = rest.find(first[0].rstrip(" .!?"), position - len(whole))
            return value, start + (found + len(first[0].rstrip(" .!?")) if found >= 0 else position)
        if line and not re.fullmatch(r"[\W_]*", line):
            break
    return "", start


def _retracted(line: str) -> tuple[str, bool, str]:
    """What a line says before it takes that back, whether it does, and what it says instead."""
    match = retraction_in_line(line)
    if match is None:
        return line, False, ""
    if re.search(
        r"doubt|sure|maybe|perhaps|possibly|probably|alternatively|seems|or$", match[0], re.I
    ):
        return line[: match.start()], True, ""  # a guess is no answer
    instead = re.sub(r"^(?:[\s,.:;!…—–-]|(?:no|wait|hmm+|actually|it(?: is|'s))\b){1,20}", "",
                     line[match.end() :], flags=re.I)  # fmt: skip
    return line[: match.start()], True, instead.strip(" *_)")


def _unboxed(text: str, plain: str = "") -> str:
    """What the boxes in a value say; if it has no box, ``plain`` or the value itself."""
    found = boxes(text)
    if any(box.taken_back for box in found):
        return _TAKEN_BACK
    return ", ".join(box.value for box in found) or plain or text


def _sentence(line: str) -> str:
    """The first sentence of a line; an option's letter and its text belong together."""
    for match in _SENTENCE.finditer(line):
        before = line[: match.start()]
        word = re.search(r"([A-Za-z]*)$", before).group()
        option = re.fullmatch(r"\W*[A-Z]\W*", before)
        if option and not re.match(
            r"(?:The|This|That|It|Because|Since|So|As)\b", line[match.end() :]
        ):
            continue
        # "3.5 kg. This": short words end a sentence only as the unit of a number.
        measured = known_unit(word) and re.search(r"\d\s*[A-Za-z]+$", before)
        whole = len(word) not in (1, 2) and word.lower() not in _ABBREVIATIONS
        if option or whole or measured:
            return before + match.group().rstrip()
    return line


# ---- bare answers

_OPTION_LINE = re.compile(r"^[(\[]?[A-J][)\]]?[.:]?$|^(?:option|choice) [(\[]?[A-J][)\]]?$", re.I)
_OPTION_TEXT = re.compile(r"^(?:\([A-J]\)|[A-J][.):])\s*\S", re.S)
# "Hence, x = 5", "So we get 5": the value must be a number to count
_CONCLUSION = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then)\b,?\s*)?(?:\\?[A-Za-z][\w()']{0,10}\s*="
    r"|we (?:get|have|obtain|find)|it must be|this gives|there (?:are|is))\s*(?P<value>[^=]+)$",
    re.I,
)
_MATHEMATICS = re.compile(r"^(?:\$\$?[^$]+\$\$?|\\\[.+\\\]|\\\(.+\\\))[.]?$", re.S)


def _bare(text: str, choices: Sequence[str] | None) -> str:
    """A response, or its last line, if that is nothing but an answer; else ""."""
    lines = [line for line in _FENCE.sub("", text).strip().splitlines() if line.strip()]
    if not lines or not any(character.isalnum() for character in lines[-1]):
        return lines[-1].strip() if len(lines) == 1 and _is_symbol(lines[-1].strip()) else ""
    last = re.sub(r"^(?:[*_#•]|[>-]?\s(?!\d))+(?=\D)", "", lines[-1].rstrip("*_ \t\r")).strip()
    plain = clean(last)
    conclusion = _CONCLUSION.match(plain)
    if conclusion and quantity(conclusion["value"]):
        plain = last = conclusion["value"]
    if _OPTION_LINE.match(plain) or quantity(plain) or _MATHEMATICS.match(last.strip()):
        return last
    whole = text.strip()
    if len(lines) > 1:
        first = lines[0].strip()
        if first.startswith("**") and _OPTION_LINE.match(clean(first)):
            option = first.strip("* ")  # "**B**", then an explanation
            return "" if is_taken_back(whole, len(first), option) else option
        return whole if _MATHEMATICS.match(whole) else ""
    word = re.fullmatch(r"[\w'-]+", plain)
    if plain.casefold() in NO_ANSWER:
        return ""
    if (word and len(plain) <= MAX_WORD) or _OPTION_TEXT.match(plain):
        return last
    if choices and any(clean(choice).casefold() == plain.casefold() for choice in choices):
        return last
    return last if _is_expression(plain) else ""


def _is_expression(plain: str) -> bool:
    digits = len(plain) <= 100 and re.search(r"\d", plain)
    return bool(digits and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{3}", plain)) or (
        plain.startswith("\\") and " " not in plain
    )


# ---- lead-ins

_LEAD_IN = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then)\b,?\s*)?(?:the\s+)?(?:correct\s+|final\s+|right\s+){0,3}"
    rf"(?:{_any_of(['answer', 'option', 'choice', 'result', 'value', *FINAL_MARKERS, *MARKERS])})"
    rf"(?:\s*[:：=]\s*|\s+(?:{_any_of(IS)})(?![A-Za-z])\s*[:：]?\s*|\s*[是为為は]\s*)",
    re.I,
)
_IT_IS = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then)\b,?|(?:it|there|this|that|they)(?:'s|\s+(?:is|are|was|equals)))\s+(?=\S)",
    re.I,
)


def without_lead_in(text: str) -> str:
    """``text`` without "The answer is" and the like before it."""
    match = _LEAD_IN.match(text) or _IT_IS.match(text)
    return text[match.end() :].strip() if match and text[match.end() :].strip() else text
