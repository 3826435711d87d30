"""What a box holds, with what stands directly beside it: ``-\\boxed{5}`` is -5.

Whatever touches a box in a formula belongs to the answer: signs, operators, factors, powers, roots
and units; in a sentence so do a sign, a number or an operator, and the scale or the unit after it.
A name before "=", other values and the words of the sentence do not.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from .following import going_on
from .notation import clean, closing
from .number_words import NUMBER_WORDS
from .quantities import quantity
from .retraction import DENIED_AFTER, DENIED_BEFORE, is_taken_back
from .units import CHANGING, SCALES, known_unit

MAX_BOXES = 50  # that are looked at, from the end
MAX_BOX = 2_000  # characters in a box
BESIDE = 200  # characters before and after a box that are looked at

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=[^\s{])")
_TEXT = r"\\(?:text|textbf|textrm|mbox)\s{0,3}\{([^{}]*)\}"
# Between boxes of one list: "x = \boxed{1} and x = \boxed{2}"
_TOGETHER = re.compile(
    r"(?:[\s,;$]|\\[(),;]|\\q?quad(?![A-Za-z])|\\text\{ ?(?:and|or) ?\}"
    r"|\b(?:and|or|to|by|as well as)\b){0,20}"
    r"(?:[A-Za-z](?:_\{?\w\}?)?\s{0,3}=)?[\s$]{0,5}"
)


class Box(NamedTuple):
    """Where a box starts and ends, what the answer is, and whether the text takes that back."""

    start: int
    value: str
    taken_back: bool
    end: int


def boxes(text: str) -> list[Box]:
    """The answers in the last boxes of a text, in their order, without those that are denied."""
    found: list[list[tuple[int, int, str]]] = []
    for match in [*_BOX.finditer(text)][-MAX_BOXES:]:
        if match.group().rstrip().endswith("{"):
            value = _braced(text, match.end())
            end = match.end() + len(value) + 1
        else:
            value = re.match(r"\S*", text[match.end() : match.end() + 60]).group()
            end = match.end() + len(value)
        last = found[-1][-1][1] if found else 0
        if found and match.start() < last:
            continue  # within the last one
        between = text[last : match.start()]
        unit = re.match(r"\s*([A-Za-z]{1,10})(?= )", between) if found else None
        apart = between[unit.end() :] if unit and known_unit(unit[1]) else between
        if not (found and len(between) < BESIDE and _TOGETHER.fullmatch(apart)):
            found.append([])
        found[-1].append((match.start(), end, value.strip()))
    read = []
    for group in found:
        values = dict.fromkeys(box[2] for box in group)  # a box may repeat the last one
        gaps = " ".join(text[a[1] : b[0]] for a, b in itertools.pairwise(group))
        word = re.search(r"\b(?:to|by)\b", gaps)
        joint = f" {word[0]} " if word else ", "
        read.append(read_enclosed(text, group[0][0], group[-1][1], joint.join(values)))
    return [box for box in read if box is not None]


def _braced(text: str, start: int) -> str:
    """From ``start`` to the brace that closes the one before it, else to the end of the line."""
    ending = text[start - 1 : start + MAX_BOX]
    end = closing(ending, 0)
    return ending[1:end] if end >= 0 else ending[1:].split("\n")[0]


# Lines that a formula goes on with, before and after a box.
_OPEN_LINE = re.compile(r"(?<=[-+*/^×·({])[ \t]*\n[ \t]*$")
_GOES_ON = re.compile(r"^[ \t]*\n[ \t]*(?=\\(?:times|cdot|div|pm|text)|[×·/^])")


def read_enclosed(text: str, start: int, end: int, value: str) -> Box | None:
    """The answer in boxes, or a tag, that stand from ``start`` to ``end``; None if it is denied.

    Args:
        value: what they hold.
    """
    before = _OPEN_LINE.sub(" ", text[max(0, start - BESIDE) : start]).split("\n")[-1]
    after = _GOES_ON.sub(" ", text[end : end + BESIDE]).split("\n")[0]
    if before[-1:] == after[:1] == "'":
        before, after = before[:-1], after[1:]
    if DENIED_BEFORE.search(re.sub(_TEXT, r"\1 ", before)):
        return None
    beside = re.sub(r"^[$)}\]\\*_]+", "", after)
    taken_back = bool(DENIED_AFTER.match(beside) or is_taken_back(beside, 0, value, at_once=True))
    more = ""
    if not re.search(r"\w", after):
        more, length = going_on(value, text[end + len(after) : end + 2 * BESIDE])
        end += len(after) + length if more else 0
    formula = _formula(before, after, _within_display(text, start))
    if formula is None:
        return Box(start, _composed(*_in_sentence(before, value, after)) + more, taken_back, end)
    before, inner, rest, after = formula
    left, right = _before_in_formula(inner), _after_in_formula(value, rest)
    if left == inner.strip():
        left = _before_in_sentence(before) + left
    if right == rest.strip(" .,"):
        right += _after_in_sentence(value, after)
    return Box(start, _composed(left, value, right) + more, taken_back, end)


# ---- formulas

_DELIMITER = re.compile(r"(?<!\\)\$\$?|\\[()\[\]]")
_PLAIN_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
# What ends the part of a formula that a box stands in, on either side.
_RELATION = re.compile(
    r"(?<![<>!:])=(?!>)>?|[=-]>|≈|≡|→|⇒|∴|\\\\|&|\\(?:approx|equiv|to|in|quad|qquad|therefore|because"
    r"|implies|iff|[Rr]ightarrow|Longrightarrow|longrightarrow|begin\{[a-z*]+\}|end\{[a-z*]+\}"
    r"|pmod|tag|label|blacksquare|square|checkmark|qed|displaystyle)(?![A-Za-z])"
)


def _within_display(text: str, start: int) -> bool:
    opened = text.rfind("\\[", 0, start) > text.rfind("\\]", 0, start)
    return opened or text.count("$$", 0, start) % 2 == 1


def _formula(before: str, after: str, display: bool) -> tuple[str, str, str, str] | None:
    """What stands before the formula of a box, in it before and after the box, and after it.

    None if the box stands in no formula.
    """
    openings, closings = [*_DELIMITER.finditer(before)], [*_DELIMITER.finditer(after)]
    dollars = [m for m in openings if "$" in m[0]]
    opening = openings[-1] if openings else None
    if opening and "$" in opening[0] and len(dollars) % 2 == 0:
        opening = None
    if opening and closings and opening[0] not in ("\\)", "\\]"):
        inner, rest = before[opening.end() :], after[: closings[0].start()]
        if len(_PLAIN_WORD.findall(re.sub(_TEXT, " ", inner + rest))) < 2:  # no amounts of money
            return before[: opening.start()], inner, rest, after[closings[0].end() :]
    return ("", before, after, "") if display and not (openings or closings) else None


def _before_in_formula(text: str) -> str:
    """What belongs to the answer of what stands before a box in its formula."""

    def changing(match: re.Match[str]) -> str:
        return match[1] if not match[1].strip() or _MODIFIER.search(match[1]) else "="

    text = re.sub(r"\\displaystyle(?![A-Za-z])", " ", re.sub(_TEXT, changing, text))
    cuts = [match.end() for match in _RELATION.finditer(text)]
    cuts += [match.end() for match in re.finditer(r"(?<![\d}\s])\s*:\s*", text)]
    text = text[max(cuts, default=0) :]
    return re.sub(r"\\[,;:! ]|~", " ", text).strip()


def _after_in_formula(value: str, text: str) -> str:
    """What belongs to the answer of what stands after a box in its formula."""

    def measured(match: re.Match[str]) -> str:
        said = match[1].strip()
        belongs = not said or said in ("and", "or", "to", "of") or _measure(value, said)
        return match[0] if belongs else "="

    text = re.sub(_TEXT, measured, text)
    cut = _RELATION.search(text)
    parts = re.split(r"[,;](?!\d{3})", text[: cut.start()] if cut else text)
    kept = parts[0]
    for part in parts[1:] if not cut else parts[1:-1]:
        kept += "," + part if re.search(r"[\w]", part) else ""
    return re.sub(r"\\[;:! ]|~", " ", kept).rstrip(" .,")


# ---- sentences

_MATHEMATICAL = re.compile(r"[\w\\{}()\[\]^+\-−–*/.:×·÷√±<>≤≥≠¬$€£¥₹|%°]+$", re.A)
_OPERATOR = (
    r"(?:\\(?:times|cdot|div|pm|mp|neq?|leq?|geq?|lt|gt|cup|cap|setminus)(?![A-Za-z])"
    r"|[+*/^×·÷±<>≤≥≠∪∩]|!=)"
)
_OPERATOR_BEFORE = re.compile(
    rf"(?:(?P<operand>\S{{1,40}})\s{{0,3}})?(?P<sign>{_OPERATOR}|[-−–]|\b(?:minus|negative|plus|times))"
    r"\s{1,3}$"
)
_OPERATOR_AFTER = re.compile(
    rf"\s{{0,3}}(?:{_OPERATOR}|:(?=\s?\d)|[-−–—](?=\s?[\d\\(])"
    r"|\((?![^()]*[A-Za-z=]{3})(?=[^()=]*[-+*/^][^()=]*\))"
    r"|\b(?:and|or|to|times|plus|minus|over|point|dot|in|of|out of|per)\b"
    rf"(?=\s[-\\($]{{0,3}}(?:\d|[B-J]\b|boxed|frac|sqrt|pi|{'|'.join(NUMBER_WORDS)}))"
    r"|π|[b-zB-Z](?=\s*(?:$|[-+*/^=.,]))"
    r"|\b(?:or not|squared|cubed|factorial|divided by|and a (?:half|third|quarter))\b)"
)
# Words before a number that make it another one, or no answer.
_MODIFIER = re.compile(
    r"(?:\b(?:(?:more|less|fewer|greater|larger|bigger|smaller|other) than|at (?:least|most)|up to"
    r"|over|under|above|below|twice|double|triple|almost|nearly|no|without|unlike|far from|exceeds?"
    r"|except(?: for)?|(?:all|any\w*|every\w*)(?: \w+)? but|differs? from|different from|reaches"
    r"|divisible by|divided? by|(?:half|third|quarter|fifth|tenth|square|cube|root|negative"
    r"|opposite|reciprocal|inverse|multiple|factor|sum|product|logarithm) of|half"
    r"|between \S{1,20} and|sin|cos|tan|log|ln|sqrt|USD|EUR|GBP|INR|CNY)"
    r"|[¬€£¥₹]|\\\$)\s{0,3}$",
    re.I,
)
# "In millions: \boxed{4}"
_IN_SCALE = re.compile(
    r"\bin (?:units of )?(?:hundreds|thousands|millions|billions|trillions)\b[^.;!?\n]{0,30}$",
    re.I,
)
# Words before a dash that is a sign: "so - \boxed{4}", but "Answer - \boxed{4}"
_BEFORE_SIGN = frozenset(("so", "thus", "hence", "therefore", "then", "get", "gives", "equals"))
# Words after a number that make it another one, or no answer.
_QUALIFIED = re.compile(
    r"\s{0,3}(?:(?!of\b)[A-Za-z]{1,10}\s+|,\s*)?(?:(?:less|fewer)(?=\s*(?:[.,;]|$))"
    r"|(?:less|fewer|more|greater) than (?=[$]?\d|[$]?[a-z]\b)|(?:below|under|above) (?:zero|0)\b"
    r"|in debt|loss\b|short\b|or (?:more|less|fewer|so|greater|higher|above|below)\b"
    r"|at (?:least|most)\b|and (?:up|above|over|more|below)\b|(?:with |and )?(?:a )?remainder\b"
    r"|R ?(?=\d)|give or take\b)"
    r"|\s{0,3}\(?(?:mod|modulo)\b|\s{0,3}(?:\\?%|percent|per cent)\s+of\s+(?=\S{0,2}\d)",
    re.I,
)
# "-2 \boxed{4}", but neither "1. \boxed{4}" nor "Question 2 \boxed{4}"
_FACTOR = re.compile(r"\s*(?:(?:so|thus|hence|therefore)\s+)?([-−–]?\d[\d.]*\d|[-−–]?\d)\s+", re.I)
# "hours and 30 minutes", "ft 6 in", "^\circ 30'"
_SECOND = re.compile(
    r"(?:\s*(?P<first>[A-Za-z]{1,10})\.?)?(?P<joint>,?\s+and\s+|,\s+|\s+)\d[\d.]*\s*"
    r"(?P<unit>['′\"″]|\\prime|[A-Za-z]{1,10})"
)
_ANOTHER = re.compile(
    r"\s*(?:[,;](?:\s*(?:and|or|also)\b)?|[,;]?\s*\\text\s*\{\s*(?:and|or)\s*\}"
    r"|(?:,\s*)?(?:as well as|along with|together with|and also)\b|\((?:also|or)\b|&)\s*"
    r"(?P<value>[$]?-?\d[\d./]*[$]?|\(?[A-J]\)?)(?=\)?\s*(?:[.,;!]?\s*$|[,;.]\s))"
)
_ALSO = re.compile(r"[.;,]?\s*\(?(?P<value>[A-J])\)? (?:is|works|fits|would)\b[^.]{0,20}"
                   r"\b(?:also|too|as well|equally)\b")  # fmt: skip
_LETTER = re.compile(r"(?:\\text(?:bf)?\s*\{)?\(?[A-J]\)?\}?")
# What is said beside the letter of an option, in its sentence
_REMARK = re.compile(
    r"[)\s,:=*(]*(?:\\text\s*\{)?\s*"
    r"(?P<said>[^\n\\]{1,80}?)[\s)}*]*(?:(?<!i\.e)(?<!e\.g)[.;!]\s|[.]?$|\n)"
)
_BRACKETED = re.compile(r"[^()\[\]A-Za-z]{0,40}[)\]]")
_BRACKET_BEFORE = re.compile(r"[(\[][^()\[\]A-Za-z]{1,40}$")
_CLAUSE_END = re.compile(
    r"[,;:!?](?!\d)|\.(?!\d)|[()。，；、！？]|\s[-–—]\s|\bis\b|\bare\b|\\boxed"
)


def _in_sentence(before: str, value: str, after: str) -> tuple[str, str, str]:
    """What belongs to the answer before a box, what it holds, and what belongs to it after it."""
    left = _before_in_sentence(before)
    if re.search(r"[(\[]$", left) and (match := _BRACKETED.match(after)):
        return left, value, match[0]  # "(\boxed{5}, 6)"
    if after[:1] in (")", "]") and (match := _BRACKET_BEFORE.search(before)):
        return match[0], value, after[:1]
    remark = _LETTER.fullmatch(value.strip()) and re.match(r"\s?\\text", after)
    if re.match(r"\s?\\[A-Za-z,;:! ]", after) and not remark:  # a formula without delimiters
        hidden = re.sub(_TEXT, lambda match: " " * len(match[0]), after)
        words = _PLAIN_WORD.search(hidden)
        return left, value, _after_in_formula(value, after[: words.start()] if words else after)
    return left, value, _after_in_sentence(value, after)


def _before_in_sentence(text: str) -> str:
    """What belongs to the answer of what stands before a box, or its formula, in a sentence."""
    text = re.sub(r"(?:^|(?<![\w)]))[*_\"'`#]+$|</?[\w|]{1,30}>\s*$", "", text)
    text = re.sub(r"(?<=[-−–+])(?:\\[,;:! ]|~)+\s*$", "", text)
    text = re.sub(r"\$\s*([-−–+])\s*\$\s*$", r"\1", text)
    if scale := _IN_SCALE.search(text):
        return f"{scale[0].strip(' :$')} "
    if listed := re.search(r"-?\d[\d.]*,$", text):
        return listed[0]
    cuts = [match.end() for match in _RELATION.finditer(text)]
    cuts += [m.end() for m in re.finditer(r"[,;；，。、：]|(?<![\d}]):|:(?=\s)", text)]
    cut = max(cuts, default=0)
    tail = text[cut:]
    run = _MATHEMATICAL.search(tail)
    if run and not re.fullmatch(r"[A-Za-z]{2,}", run[0]):
        return run[0]
    if modifier := _MODIFIER.search(tail):
        return modifier[0]
    if factor := _FACTOR.fullmatch(tail):
        return f"{factor[1]} "
    match = _OPERATOR_BEFORE.search(tail)
    if match is None:
        return ""
    operand, sign = match["operand"] or "", match["sign"]
    number = bool(re.search(r"[\d)}]$|^[A-Za-z]$", operand))
    if sign in "-−–*>" and not number:
        # A dash after words, a list or a quotation at the start of a line; a sign after "=".
        if operand.casefold() in _BEFORE_SIGN and sign in "-−–":
            return sign
        return sign if cut and not operand and sign in "-−–" else ""
    return f"{operand} {sign} " if number else {"negative": "-", "minus": "-"}.get(sign, sign)


def _after_in_sentence(value: str, text: str) -> str:
    """What belongs to the answer of what stands after a box, or its formula, in a sentence."""
    text = re.sub(r"^[*_]+(?![\w(])|^[\"`]+", "", _DELIMITER.sub("", text))
    glued = re.match(r"(?:[^\s.,;:!?\"`\u2e80-\uffff]|[.,](?=\d)|:(?=[\d\\]))*", text)[0]
    glued = glued.rstrip("*_")
    rest = text[len(glued) :]
    if beside := _further(value, glued, rest):
        return beside if beside.startswith(":") else glued + beside
    if not glued.strip(")]}"):
        sign = _OPERATOR_AFTER.match(rest)
        end = _CLAUSE_END.search(rest, sign.end() if sign else 1)
        clause = rest[: end.start()] if end else rest
        if sign:
            return glued + clause.rstrip()
        if (bracket := re.match(r"\s{0,3}\(([^()]{1,40})\)", rest)) and _measure("5", bracket[1]):
            return f"{glued} {bracket[1]}"
        return glued + _measure(value, clause.strip(), True)
    return glued


def _further(value: str, glued: str, rest: str) -> str:
    """What goes on with an answer in its sentence: values, a remark, the rest of a quantity."""
    if more := _ANOTHER.match(rest) or _ALSO.match(rest):
        letters = (clean(value).strip("()")[-1:].isalpha(), more["value"].strip("()$").isalpha())
        return f", {more['value']}" if letters[0] == letters[1] else ""
    if _LETTER.fullmatch(value.strip()) and not _OPERATOR_AFTER.match(rest):
        remark = _REMARK.match(rest)
        return (
            f": {remark['said']}"
            if remark and re.match(r"(?!(?:I|and|or|but)\b)[A-Za-z\d$-]", remark["said"])
            else ""
        )
    if not re.search(r"\d", value):
        return ""
    of = re.match(r"\s+of\s+(?=\S{0,2}\d)", rest) if glued.endswith("%") else None
    if qualified := of or _QUALIFIED.match(rest):
        end = _CLAUSE_END.search(rest, qualified.end())
        return rest[: end.start()].rstrip() if end else rest.rstrip()
    word = re.match(r"\s+([A-Za-z]+)", rest)
    if word and {word[1].casefold(), word[1].casefold().rstrip("s")} & CHANGING:
        end = _CLAUSE_END.search(rest, word.end())
        return rest[: end.start()].rstrip() if end else rest.rstrip()
    second = _SECOND.match(rest)
    if second and (second["first"] or glued):
        known = known_unit(second["unit"]) or not second["unit"].isalpha()
        return second[0] if known or "and" in second["joint"] else ""
    return ""


def _measure(value: str, text: str, begin: bool = False) -> str:
    """A text after a number, after a space, if it is a scale, a unit or what is counted; else "".

    Args:
        begin: it need only begin with a scale or a unit.
    """
    words = text.split()
    if not words or not re.search(r"\d", value):
        return ""
    if re.match(r"[\u2e80-\uffff]", text):  # in a text without spaces
        sizes = [size for size in (4, 3, 2, 1) if quantity(clean(value) + text[:size])]
        return text[: sizes[0]] if sizes else ""
    if any(word.casefold() in SCALES for word in words[: 2 if begin else None]):
        return f" {' '.join(words[:6])}"
    for count in range(min(4, len(words)), 0 if begin else len(words) - 1, -1):
        some = " ".join(words[:count])
        if known_unit(some) and (count == len(words) or some not in ("in", "am", "A")):
            return f" {some}"
    counted = len(words) < 4 and quantity(f"{clean(value)} {clean(text)}")
    return f" {text}" if counted else ""


def _composed(left: str, value: str, right: str) -> str:
    """An answer of what stands before its box, what the box holds, and what stands after it."""
    opened, closed = _unmatched(left, "([{", ")]}"), _unmatched(right[::-1], ")]}", "([{")
    pairs = min(len(opened), len(closed))
    if len(opened) > pairs:
        left = left[opened[-pairs - 1] + 1 :]
    if len(closed) > pairs:
        right = right[: len(right) - 1 - closed[-pairs - 1]]
    left, right = left.replace("–", "-"), right.rstrip(" *_")
    if not left and not right:
        return value
    enclosing = value[:1] in ("(", "[") and closing(value, 0, "([)]") == len(value) - 1
    simple = enclosing or re.fullmatch(r"\d[\d.,]*|[A-Za-z]|\\[a-z]+(?:\{[^{}]*\}){0,2}", value)
    enclosed = left[-1:] in tuple("([{") and right[:1] in tuple(")]}")
    operated = re.match(rf"\s*(?:{_OPERATOR}|\d|\\boxed)", right)
    number = re.match(r"[\d.]", value) and re.search(r"[\w)}]$", left)
    if not enclosed and (
        number
        or (left.strip(" $\\€£¥₹(") and not simple)
        or (operated and (not simple or right[:1].isdigit()))
    ):
        value = f"({value})"
    return f"{left}{value}{right}".strip()


def _unmatched(text: str, opening: str, ending: str) -> list[int]:
    """Indices of the opening brackets that no ending one in a text closes."""
    found: list[int] = []
    for index, character in enumerate(text):
        if character in opening:
            found.append(index)
        elif character in ending and found:
            found.pop()
    return found
