"""Is a response right? Final answers compared, without a judge model.

What the true answer is decides how it is compared: option letters (one, or a set), a number with a
unit, an expression, a list, tuple or interval of these, or free text. :mod:`.extraction` finds the
final answer of a response, :mod:`.notation` brings it to one notation, :mod:`.mathematics` compares
expressions. Benchmarks have official scorers of their own; for a number that is to be published,
use those.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from string import ascii_uppercase

from . import mathematics
from .extraction import extract, without_lead_in
from .notation import (
    MAX_CHARACTERS,
    Quantity,
    clean,
    closing,
    quantity,
    same_quantity,
    unit,
    unit_of_expression,
    without_about,
    words,
)

__all__ = ["extract", "is_right", "parties", "same", "unreadable", "unreadable_note"]

MAX_PARTS = 16  # of a list that is compared in any order
MAX_UNKNOWN = 4  # comparisons of expressions that run out of time, of two answers
MAX_DEPTH = 6  # of lists within tuples within unions …

Choices = Sequence[str] | None


def same(predicted: str, true: str, choices: Choices = None) -> bool:
    """Whether two final answers say the same. Nothing is the same as no answer.

    Args:
        choices: texts of the options A, B, …, of which either may be given instead of its letter.
    """
    return _same(predicted, true, None if choices is None else tuple(choices))


def is_right(response: str, true: str, choices: Choices = None) -> bool:
    """Whether a response ends with the right final answer."""
    return same(extract(response, choices), true, choices)


def parties(answers: Sequence[str], choices: Choices = None) -> list[int]:
    """Which answers say the same: a number for each, equal ones for the same, -1 for no answer.

    An answer joins the first party whose first member it is the :func:`same` as.
    """
    members: list[str] = []  # the first of each party
    number: dict[str, int] = {}
    for answer in answers:
        if answer.strip() and answer not in number:
            found = (i for i, first in enumerate(members) if same(answer, first, choices))
            number[answer] = next(found, len(members))
            if number[answer] == len(members):
                members.append(answer)
    return [number.get(answer, -1) for answer in answers]


def unreadable(responses: Sequence[str], choices: Choices = None) -> int:
    """How many responses have no final answer that can be read."""
    return sum(not extract(response, choices) for response in responses)


def unreadable_note(missing: int, total: int) -> str:
    """What tables of results say where answers are missing; "" where none is."""
    return f"{missing} of {total} candidates have no readable answer" if missing else ""


@lru_cache(maxsize=65_536)
def _same(predicted: str, true: str, choices: tuple[str, ...] | None) -> bool:
    if not predicted.strip() or not true.strip():
        return False
    if predicted.strip() == true.strip():
        return True
    _unknown.count = 0
    try:
        return _say_the_same_somehow(predicted, true, choices)
    except _TooManyUnknownError:
        return False


_unknown = threading.local()  # how many comparisons of the two answers in hand ran out of time


class _TooManyUnknownError(Exception):
    """Passes through the caches, which would keep a value."""


def _equal(left: str, right: str) -> bool:
    found = mathematics.equal(left, right)
    _unknown.count = getattr(_unknown, "count", 0) + (found is None)
    if _unknown.count > MAX_UNKNOWN:
        raise _TooManyUnknownError
    return bool(found)


def _say_the_same_somehow(predicted: str, true: str, choices: tuple[str, ...] | None) -> bool:
    predicted, true = (without_lead_in(clean(text)) for text in (predicted, true))
    if _say_the_same(predicted, true, choices):
        return True
    said = tuple(_PREDICATE.sub("", _REASON.sub("", text)) for text in (predicted, true))
    return said != (predicted, true) and _say_the_same(*said, choices)


# "C because the others are larger", "12 (since 3 × 4 = 12)", "0.75 (75%)"
_REASON = re.compile(
    r"(?:[\s,]+(?:because|since)|,\s+as)\b.*$|(?<=\S)\s+\((?=[^()]*(?:[A-Za-z]{3}|[=%°]))[^()]*\)$",
    re.I | re.S,
)
# "The area of the square is 12 cm²", "x is 5": what is said last.
_PREDICATE = re.compile(
    r"^(?!.*\b(?:not?|none|neither|never|nor|if|or|cannot|impossible|wrong|incorrect|false|half|twice"
    r"|whether|unsure|doubt)\b)(?!.*n't\b)(?:the\s.{1,200}|\w{1,2}\s+)\b(?:is|are|equals)\s+(?=\S)",
    re.I | re.S,
)


def _say_the_same(predicted: str, true: str, choices: tuple[str, ...] | None) -> bool:
    found, wanted = (_options(text, choices) for text in (predicted, true))
    if found and wanted:
        if choices is None and all(map(_TAIL.match, (predicted, true))):
            return _same_labelled(predicted, true)
        return found == wanted
    if found or wanted:
        lettered, other = (predicted, true) if found else (true, predicted)
        if not choices and (option := _TAIL.match(lettered)):
            # "(B) 45°" where nobody knows the options, against "45°"
            return same_value((option["tail"] or option["words"]).strip(), other)
        return _plain(predicted) == _plain(true)
    return same_value(predicted, true)


# ---- options

# "(a) 3; (b) 5": labels of options, or of parts of an answer
_LABEL = re.compile(
    r"(?:^|[\s,;]+(?:and\s+)?)(?:[(\[]([A-Za-z])[)\]][.:,]?|([A-Za-z])[.:)]|([A-Z])\s+-)(?:\s+|$)"
)


def _same_labelled(left: str, right: str) -> bool:
    """Whether the texts after labels agree, label by label; one without text agrees with any."""
    texts = []
    for text in (left, right):
        parts = _LABEL.split(f"{text} ")[1:]
        labels = ("".join(filter(None, parts[i : i + 3])).upper() for i in range(0, len(parts), 4))
        texts.append(dict(zip(labels, map(str.strip, parts[3::4]), strict=True)))
    return texts[0].keys() == texts[1].keys() and all(
        not text or not texts[1][label] or same_value(text, texts[1][label])
        for label, text in texts[0].items()
    )


_A = r"[(\[{]?\s*(?:option |choice )?(?P<letter>[A-Za-z])\s*[)\]}]?"
_ALONE = re.compile(rf"^{_A}[.:,]?$")
# "(B) 45°", "B. 45°", "B: red"; after a dash only words or numbers, as "A - B" is a difference.
_TAIL = re.compile(
    r"^(?:[(\[]\s*(?P<inside>[A-Za-z])\s*[)\]][.:,]?|(?P<before>[A-Za-z])\s*[.):])\s*(?P<tail>\S.*)$"
    r"|^(?P<dashed>[A-Z])\s+-\s+(?P<words>\w\w.*)$",
    re.S,
)
_CORRECT = re.compile(r"\s+(?:is|are)\s+(?:the\s+)?(?:correct|right|best|true)\b.*$", re.I | re.S)
_OPTION = re.compile(
    r"^(?:both|(?:the\s+)?(?:correct\s+)?(?:options?|choices?|answers?))\s+(?=\W?[A-Za-z]\b)", re.I
)
_SEPARATOR = re.compile(r"\s*(?:,\s*and\s|,|;|/|&|\.|\band\b|\s)\s*")
_ANOTHER = re.compile(r"[(\[]([A-Z])[)\]]|(?:[,;]|\band)\s+([A-Z])[.):](?=\s)")
# "B 45°", "B (45°)", "45° (B)": if the options say so
_SPACED = re.compile(
    r"^([A-Z])\s+(?:\((?=.*\)$))?(?P<text>\S.*?)\)?$|^(?P<first>.*\S)\s+\(([A-Z])\)$", re.S
)
_LAST = "J"  # letter of an option where nobody knows how many there are


@lru_cache(maxsize=16_384)
def _options(text: str, choices: tuple[str, ...] | None) -> frozenset[str] | None:
    """The options that a cleaned answer names, by letters or, where known, by their texts."""
    if choices and len(text) > 1 and (exact := _named(text, choices, _equally_plain)):
        return exact  # "A and B" may be the text of option C
    found = _letters(text, choices)
    if found or not choices:
        return found
    if (whole := _named(text, choices)) is not None:
        return whole
    parts = [part for part in re.split(r",\s*and\s|,\s|;\s*|\s+and\s+", text) if part.strip()]
    if 1 < len(parts) <= MAX_PARTS:
        each = [_letters(part, choices) or _named(part, choices) for part in parts]
        if all(each):
            return frozenset().union(*each)
    return None


def _letters(text: str, choices: tuple[str, ...] | None) -> frozenset[str] | None:
    last = chr(ord("A") + len(choices) - 1) if choices and len(choices) <= 26 else _LAST
    text = _OPTION.sub("", _CORRECT.sub("", text))

    def known(letter: str) -> bool:
        return "A" <= letter.upper() <= last

    if (match := _ALONE.match(text)) and known(match["letter"]):
        return frozenset(match["letter"].upper())
    tokens = [token for token in _SEPARATOR.split(text) if token]
    alone = [_ALONE.match(token) for token in tokens]
    if 1 < len(tokens) <= 26 and all(
        m and m["letter"].isupper() and known(m["letter"]) for m in alone
    ):
        several = frozenset(m["letter"] for m in alone)
        tail = _TAIL.match(text)  # "A. B" where B is the text of option A
        if choices and tail and tail["before"] and _is_text_of(tail[2], tail["tail"], choices):
            return frozenset(tail[2])
        return several if len(several) > 1 else None
    # "ABD": only where it is known that letters are wanted
    run = len(text) > 1 and list(text) == sorted(set(text))
    if choices and run and all(c in ascii_uppercase and known(c) for c in text):
        return frozenset(text)
    if match := _TAIL.match(text):
        letter = (match["inside"] or match["before"] or match["dashed"]).upper()
        rest = match["tail"] or match["words"]
        more = {m[1] or m[2] for m in _ANOTHER.finditer(rest)}
        if known(letter) and not (match["inside"] and re.match(r"[-+*/^=<>]", rest)):
            return frozenset({letter, *filter(known, more)})
    if choices and (match := _SPACED.match(text)):
        letter = match[1] or match[4]
        if _is_text_of(letter, match["text"] or match["first"], choices):
            return frozenset(letter)
    return None


def _is_text_of(letter: str, text: str, choices: tuple[str, ...]) -> bool:
    index = ord(letter.upper()) - ord("A")
    return index < len(choices) and same_value(text, clean(choices[index]))


def _named(
    text: str, choices: tuple[str, ...], alike: Callable[[str, str], bool] | None = None
) -> frozenset[str] | None:
    """The one option whose text this is, to the letter or else in value."""
    texts = [without_lead_in(clean(choice)) for choice in choices]
    texts = [_unlettered(choice, index) for index, choice in enumerate(texts)]
    for agree in [alike] if alike else [_equally_plain, same_value]:
        found = [index for index, choice in enumerate(texts) if agree(text, choice)]
        if found:
            return frozenset(chr(ord("A") + found[0])) if len(found) == 1 else None
    return None


def _unlettered(choice: str, index: int) -> str:
    """An option's text without its own letter, as in "A. red"."""
    match = _TAIL.match(choice)
    if match and (match["inside"] or match["before"] or "") == chr(ord("A") + index):
        return match["tail"]
    return choice


# ---- values

_ARTICLE = re.compile(r"\b(?:the|a|an)\s+(?=\w)")
_INDEX = re.compile(r"\s*_\s*\{?\s*(\w+)\s*\}?")  # "CO_2", "CO_{2}"
_SPACED_SIGN = re.compile(r"\s*([-,;/:])\s*")
_VERDICT = re.compile(r"^(yes|no|true|false)\b[,.;:!]\s", re.I)


def _plain(text: str) -> str:
    """Free text without case, articles before words, and spaces around punctuation."""
    folded = text if "\\" in text else text.casefold()
    folded = _INDEX.sub(r"\1", folded)
    return _SPACED_SIGN.sub(r"\1", " ".join(_ARTICLE.sub("", folded).split())) or text


def _equally_plain(left: str, right: str) -> bool:
    return _plain(left) == _plain(right)


@lru_cache(maxsize=65_536)
def same_value(left: str, right: str, depth: int = 0) -> bool:
    """Whether two cleaned answers that are no option letters say the same."""
    if not left or not right:
        return False
    left, right = without_about(left), without_about(right)
    if max(len(left), len(right)) > MAX_CHARACTERS or depth > MAX_DEPTH:
        return _plain(left) == _plain(right)
    mathematical = [_is_mathematics(text) for text in (left, right)]
    if any(mathematical):  # "xy" beside "x*y" is a product
        mathematical = [
            known or bool(_PRODUCT.fullmatch(text))
            for known, text in zip(mathematical, (left, right), strict=True)
        ]
    if "".join(left.split()) == "".join(right.split()) and all(mathematical):
        return True
    quantities = quantity(left), quantity(right)
    if all(quantities):
        return same_quantity(*quantities)
    if not all(mathematical):
        if _plain(left) == _plain(right):
            return True
        verdicts = [(m[1] if (m := _VERDICT.match(s)) else s).casefold() for s in (left, right)]
        if verdicts[0] == verdicts[1] and verdicts[0] in ("yes", "no", "true", "false"):
            return True
        if any(_list(text) for text in (left, right)):
            return _same_lists(left, right, depth)
        unwrapped = [_unassigned(text) for text in (left, right)]
        if sum(text is not None for text in unwrapped) == 1:
            return same_value(unwrapped[0] or left, unwrapped[1] or right, depth + 1)
        return False
    return _same_mathematics(left, right, quantities, depth)


_FUNCTIONS = words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi "
    "infty infinity inf alpha beta gamma delta theta lambda phi omega sigma det "
    "gcd lcm max min mod"
)
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+")
_PRODUCT = re.compile(r"[a-z]{2,3}")
_FUNCTION = re.compile("|".join(_FUNCTIONS))
_FORMULA = re.compile(r"[A-Za-z]\d")  # H2O, Q2
_SYMBOL = re.compile(r"\\?[A-Za-z]+")
_LETTERS = re.compile(r"[A-Za-z]+")
_CONTENT = re.compile(r"[A-Za-z\d]")
_SIGNS = re.compile(r"[\\\d^=+*/<>(\[{|-]")


@lru_cache(maxsize=16_384)
def _is_mathematics(text: str) -> bool:
    """Whether a cleaned answer is mathematics as a whole, which a word or a formula is not."""
    if quantity(text) or re.fullmatch("[A-Za-z]", text):
        return True
    body, _ = _without_unit(text)
    rest = _COMMAND.sub(" ", body)
    if not _SIGNS.search(text) or not rest.isascii() or not _CONTENT.search(text):
        return False
    words = [word for word in _LETTERS.findall(rest) if len(word) > 2]
    if any(word not in _FUNCTIONS for word in words) and _unassigned(text) is None:
        return _list(text) is not None and all(map(_is_mathematics, _list(text)[1]))
    return not _FORMULA.search(_FUNCTION.sub(" ", rest))


_WITH_UNIT = re.compile(
    r"^(.*(?:[\d})]|\\pi))\s*(?<=[\s})])(°[CF]?|%|[A-Za-zΩµ][A-Za-z/^ {}\d]*)$", re.S
)


def _without_unit(text: str) -> tuple[str, str]:
    """An expression and the unit after it, as in "2\\sqrt{3} cm"."""
    match = _WITH_UNIT.match(text)
    if match and len(match[2]) <= 40 and (measure := unit_of_expression(match[2].strip())):
        return match[1].strip(), str(measure)
    if match := re.match(r"^(.*\S)\s*°$", text):
        return match[1], str(unit("°"))
    return text, ""


def _same_mathematics(
    left: str, right: str, quantities: tuple[Quantity | None, ...], depth: int
) -> bool:
    relations = _relation(left), _relation(right)
    if any(relations):
        return _same_relations(left, right, relations, depth)
    if _list(left) or _list(right):
        return _same_lists(left, right, depth)
    (left, left_unit), (right, right_unit) = (
        (text, "") if number and not number.unit else _without_unit(text)
        for text, number in zip((left, right), quantities, strict=True)
    )
    if left_unit and right_unit and left_unit != right_unit:
        return False
    if left_unit or right_unit:
        return same_value(left, right, depth + 1)
    return _same_expressions(left, right)


def _same_expressions(left: str, right: str) -> bool:
    texts = [_latex(text) for text in (left, right)]
    if texts[0].replace(" ", "") == texts[1].replace(" ", ""):
        return True
    # math-verify knows no case in names, and takes a letter after a number for a unit.
    names = [set(_LETTERS.findall(_COMMAND.sub(" ", text))) for text in texts]
    names = [set("".join(found)) - set("ei") for found in names]
    symbols = [_SYMBOL.fullmatch(text.strip()) is not None and "pi" not in text for text in texts]
    return names[0] == names[1] and not all(symbols) and _equal(*texts)


_PLAIN_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS)})(?![a-z])")
_NUMBER_WITH_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)")


def _latex(text: str) -> str:
    """Plain mathematics as math-verify reads it."""
    text = _NUMBER_WITH_COMMAS.sub(lambda m: m.group().replace(",", ""), text)
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\b(infinity|inf)\b", "infty", text)
    text = re.sub(r"\bsqrt\s*\(", r"\\sqrt(", text)
    text = _PLAIN_FUNCTION.sub(r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text).replace("**", "^")
    text = (
        text.replace("°", r" \cdot \frac{\pi}{180} ")
        if re.search(r"\\(?:sin|cos|tan)", text)
        else text
    )
    return text.replace("<=", r" \leq ").replace(">=", r" \geq ").replace("!=", r" \neq ")


# ---- lists, tuples, intervals, unions

_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_CONNECTIVE = re.compile(r",\s*(?:and|or)\s+|\s+(?:and|or)\s+|[,;]|\\text\s*\{\s*(?:and|or)\s*\}")

# "20-30 years", "20 to 30", "12:30", "3/4/2010": quantities that are not calculated with.
_JOINED = (
    ("-", re.compile(r"(?<=[\w%°)}])(?:\s*-\s*|\s+to\s+)(?=[\d.A-Z\\])"), 2),
    (":", re.compile(r":"), 2),
    ("/", re.compile(r"/"), 3),
)
_DIFFERENCE = re.compile(r"[^-]+ - [^-]+")


@lru_cache(maxsize=16_384)
def _list(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The kind of a list and its parts.

    Kinds are the brackets (``()``, ``[]``, ``(]``, ``[)``, ``{}``), ``-`` (a range, a score, a
    date), ``:``, ``/`` (a date), ``union`` and, without brackets, "".
    """
    text = text.strip()
    if len(_SIGN.findall(text)) == 1:
        return "", tuple(_SIGN.sub(sign, text).lstrip("+ ") for sign in ("+", "-"))
    union = _split(text, re.compile(r"\\cup(?![A-Za-z])"))
    if len(union) > 1:
        return "union", union
    for kind, separator, least in _JOINED:
        joined = () if quantity(text) else _split(text, separator)
        if len(joined) >= least and all(quantity(p) or (_list(p) or " ")[0] == ":" for p in joined):
            return kind, joined
    braces = text.startswith("\\{") and text.endswith("\\}")
    inner = text[2:-2] if braces else text[1:-1]
    if braces or (text[:1] in "([{" and text[-1:] in ")]}" and _encloses(text)):
        parts = _split(inner, _CONNECTIVE)
        kind = "{}" if braces else text[0] + text[-1]
        if len(parts) > 1 or kind == "{}":
            return kind, parts
        return None
    parts = _split(text, _CONNECTIVE)
    return ("", parts) if 1 < len(parts) <= MAX_PARTS else None


def _encloses(text: str) -> bool:
    return closing(text, 0, "([{)]}") == len(text) - 1


def _split(text: str, separator: re.Pattern[str]) -> tuple[str, ...]:
    """Parts between separators that stand in no bracket; a comma within a number separates none."""
    level, depth = [], 0
    for character in text:
        depth -= character in ")]}"
        level.append(depth)
        depth += character in "([{"
    parts, start = [], 0
    for match in separator.finditer(text):
        if level[match.start()] == 0 and not _in_number(text, match):
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return tuple(part.strip() for part in parts if part.strip())


def _in_number(text: str, match: re.Match[str]) -> bool:
    if match.group() != ",":
        return False
    around = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 4]
    return bool(re.fullmatch(r"\d\d{3}(?!\d).?", around, re.S))


def _same_lists(left: str, right: str, depth: int) -> bool:
    lists = [_list(text) or ("one", (text,)) for text in (left, right)]
    (kind, parts), (other_kind, others) = lists
    if {kind, other_kind} == {"-", "one"}:
        # "10 - 3" is 7; "10-3" is a score, "10 - 20" a range.
        text, (first, second) = (left, parts[:2]) if kind == "-" else (right, others[:2])
        quantities = quantity(first), quantity(second)
        falls = all(quantities) and quantities[0].value > quantities[1].value
        return bool(falls and _DIFFERENCE.fullmatch(text)) and _same_expressions(left, right)
    if len(parts) != len(others) or len(parts) > MAX_PARTS:
        return False

    def ordered() -> bool:
        return all(same_value(a, b, depth + 1) for a, b in zip(parts, others, strict=True))

    kinds = {kind, other_kind}
    if kinds <= {"", "{}", "one"} or kinds == {"union"}:
        if kinds == {""} and not all(_is_mathematics(part) for part in (*parts, *others)):
            return ordered()
        return _same_in_any_order(parts, others, depth)
    if kinds == {"", "()"} or len(kinds) == 1:
        return ordered()
    return False


def _same_in_any_order(parts: tuple[str, ...], others: tuple[str, ...], depth: int) -> bool:
    left = list(others)
    for part in parts:
        index = next(
            (i for i, other in enumerate(left) if same_value(part, other, depth + 1)), None
        )
        if index is None:
            return False
        del left[index]
    return True


# ---- relations

_RELATION = re.compile(r"<=|>=|!=|\\in(?![A-Za-z])|\\approx(?![A-Za-z])|=|<|>")
# What a value may be given as: x, x_1, f(x), y', AB, (x, y), "area of the circle"
_NAME = re.compile(r"^\(?\\?[A-Za-z|][\w\\{}()|',. ]{0,50}$")
_REVERSED = {">": "<", ">=": "<="}


@lru_cache(maxsize=16_384)
def _relation(text: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The operators of an equation or inequality and what stands between them, < rather than >."""
    signs = _RELATION.findall(text)
    if not signs:
        return None
    parts = tuple(part.strip() for part in _RELATION.split(text))
    if all(sign in _REVERSED for sign in signs):
        return tuple(_REVERSED[sign] for sign in reversed(signs)), parts[::-1]
    return tuple(signs), parts


def _name_and_value(text: str) -> tuple[str, str] | None:
    """ "x = 5" or "AB = 2 + 3 = 5": what is given a value, and its last value."""
    relation = _relation(text)
    if relation is None or not all(sign in ("=", "\\approx", "\\in") for sign in relation[0]):
        return None
    if (
        len(relation[0]) > 1
        and (parts := _list(text))
        and sum(map(bool, map(_relation, parts[1]))) > 1
    ):
        return None  # "x = 1 or x = 2"
    name, value = relation[1][0], relation[1][-1]
    if value and (_NAME.match(name) or not _LETTERS.search(_COMMAND.sub("", name))) and name:
        return " ".join(name.split()), value
    return None


def _unassigned(text: str) -> str | None:
    """The value of an assignment, None if it is none."""
    found = _name_and_value(text)
    return found[1] if found else None


def _same_relations(left: str, right: str, relations: tuple, depth: int) -> bool:
    if not all(relations):
        assigned = _unassigned(left if relations[0] else right)
        if assigned is not None:
            other = right if relations[0] else left
            return same_value(assigned, other, depth + 1)
        lists = _list(left), _list(right)
        if any(lists) and not any(
            found and found[0] in ("()", "[]", "(]", "[)", "union") for found in lists
        ):
            return _same_lists(left, right, depth)
        # "x > 3" and "(3, ∞)": math-verify knows
        return any(lists) and _equal(_latex(left), _latex(right))
    if _list(left) or _list(right):
        return _same_lists(left, right, depth)
    (signs, parts), (other_signs, others) = relations
    if signs == other_signs:
        pairs = list(zip(parts, others, strict=True))
        if all(a == b or (a and b and same_value(a, b, depth + 1)) for a, b in pairs):
            return True
        if signs in (("=",), ("!=",)) and all(
            a and b and same_value(a, b, depth + 1)
            for a, b in zip(parts, others[::-1], strict=True)
        ):
            return True
    named = _name_and_value(left), _name_and_value(right)
    if all(named):
        if named[0][0] == named[1][0]:
            return same_value(named[0][1], named[1][1], depth + 1)
        # "y = 5" is not "x = 5"; "y = 2x" and "y - 2x = 0" is for math-verify
        return False
    return _same_expressions(left, right)
