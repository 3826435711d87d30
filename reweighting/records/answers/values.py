"""Whether two answers have the same value: quantities, expressions, lists, relations or words."""

from __future__ import annotations

import re
from functools import lru_cache

from .case import same_case
from .expressions import equal, latex, same_expressions, without_unit
from .notation import MAX_CHARACTERS, joined, words
from .quantities import Quantity, quantity, same_quantity, without_about
from .structure import (
    MAX_PARTS,
    assigned_value,
    is_mathematics,
    list_parts,
    name_and_value,
    relation_parts,
)
from .units import unit

MAX_DEPTH = 6  # of lists within tuples within unions …

# ---- words

_ARTICLE = re.compile(r"\bthe\s+(?=\w)|\b(?:a|an)\s+(?=[^\W\d])")
_INDEX = re.compile(r"(?<=[A-Za-z])\s*_\s*\{?\s*(\d+)\s*\}?")  # "CO_2", "CO_{2}"
_SPACED_SIGN = re.compile(r"\s*([-,;/:])\s*")
_INITIALS = re.compile(r"\b([a-z])\.(?=[a-z](?:\.|\b))")  # "U.S."
_HYPHEN = re.compile(r"(?<=[a-z]{2})-(?=[a-z]{2})")  # "top-left", "top left"
_ORDINALS = dict(
    zip(
        words("first second third fourth fifth sixth seventh eighth ninth tenth"),
        words("1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th"),
        strict=True,
    )
)
_ORDINAL = re.compile(rf"\b(?:{'|'.join(_ORDINALS)})\b")


def _plain(text: str) -> str:
    """Free text in lower case, without articles and without spaces around punctuation."""
    folded = text if "\\" in text else text.casefold()
    folded = _ORDINAL.sub(lambda match: _ORDINALS[match[0]], _INITIALS.sub(r"\1", folded))
    folded = _HYPHEN.sub(" ", folded)
    folded = _INDEX.sub(r"\1", folded)
    return _SPACED_SIGN.sub(r"\1", " ".join(_ARTICLE.sub("", folded).split())) or text


def equally_plain(left: str, right: str) -> bool:
    """Whether two texts are the same words, see :func:`_plain`."""
    return _plain(left) == _plain(right) and same_case(left, right)


# ---- any value

_PRODUCT = re.compile(r"[a-z]{2,3}")
_VERDICT = re.compile(
    r"^(?:(?=yes\b(?!.*\bno\b)|no\b(?!.*\byes\b)|true\b(?!.*\bfalse\b)|false\b(?!.*\btrue\b)))"
    r"(yes|no|true|false)\b[,.;:!]\s",
    re.I | re.S,
)


@lru_cache(maxsize=65_536)
def same_value(left: str, right: str, depth: int = 0) -> bool:
    """Whether two cleaned answers that are no option letters say the same.

    Args:
        depth: of the two within lists or relations that are being compared.
    """
    if not left or not right:
        return False
    left, right = without_about(left), without_about(right)
    if max(len(left), len(right)) > MAX_CHARACTERS or depth > MAX_DEPTH:
        return equally_plain(left, right)
    mathematical = [is_mathematics(text) for text in (left, right)]
    if any(mathematical):  # "xy" beside "x*y" is a product
        mathematical = [
            known or bool(_PRODUCT.fullmatch(text))
            for known, text in zip(mathematical, (left, right), strict=True)
        ]
    quantities = quantity(left), quantity(right)
    if all(quantities):
        return same_quantity(*quantities)
    if joined(left) == joined(right) and all(mathematical):
        return True
    if not all(mathematical):
        if equally_plain(left, right):
            return True
        verdicts = [(m[1] if (m := _VERDICT.match(s)) else s).casefold() for s in (left, right)]
        if verdicts[0] == verdicts[1] and verdicts[0] in ("yes", "no", "true", "false"):
            return True
        if any(list_parts(text) for text in (left, right)):
            return _same_lists(left, right, depth)
        unwrapped = [assigned_value(text) for text in (left, right)]
        if sum(text is not None for text in unwrapped) == 1:
            return same_value(unwrapped[0] or left, unwrapped[1] or right, depth + 1)
        return False
    return _same_mathematics(left, right, quantities, depth)


def _same_mathematics(
    left: str, right: str, quantities: tuple[Quantity | None, ...], depth: int
) -> bool:
    relations = relation_parts(left), relation_parts(right)
    if any(relations):
        return _same_relations(left, right, relations, depth)
    if list_parts(left) or list_parts(right):
        return _same_lists(left, right, depth)
    (left, left_unit), (right, right_unit) = (
        (text, "") if number and not number.unit else without_unit(text)
        for text, number in zip((left, right), quantities, strict=True)
    )
    if left_unit and right_unit and left_unit != right_unit:
        return False
    if {left_unit, right_unit} == {"", str(unit("°"))}:
        degrees, radians = (left, right) if left_unit else (right, left)
        if "\\pi" in radians and quantity(degrees):
            return same_expressions(f"\\frac{{{degrees} \\pi}}{{180}}", radians)
    if left_unit or right_unit:
        return same_value(left, right, depth + 1)
    return same_expressions(left, right)


# ---- lists

_DIFFERENCE = re.compile(r"[^-]+ - [^-]+")


def _same_lists(left: str, right: str, depth: int) -> bool:
    lists = [list_parts(text) or ("one", (text,)) for text in (left, right)]
    (kind, parts), (other_kind, others) = lists
    if {kind, other_kind} == {"-", "one"}:
        # "10 - 3" is 7; "10-3" is a score, "10 - 20" a range.
        text, (first, second) = (left, parts[:2]) if kind == "-" else (right, others[:2])
        quantities = quantity(first), quantity(second)
        falls = all(quantities) and quantities[0].value > quantities[1].value
        return bool(falls and _DIFFERENCE.fullmatch(text)) and same_expressions(left, right)
    if len(parts) != len(others) or len(parts) > MAX_PARTS:
        return False

    def ordered() -> bool:
        return all(same_value(a, b, depth + 1) for a, b in zip(parts, others, strict=True))

    kinds = {kind, other_kind}
    names = [_names(parts), _names(others)]
    if any(names) and not all(names):  # "x = 1, y = 2" beside "1, 2" or "(1, 2)"
        return (
            kinds <= {"", "()"}
            and sorted(names[0] or names[1]) == (names[0] or names[1])
            and ordered()
        )
    if kinds <= {"", "{}", "one"} or kinds == {"union"}:
        if kinds == {""} and not all(is_mathematics(part) for part in (*parts, *others)):
            return ordered()
        return _same_in_any_order(parts, others, depth)
    if kinds == {"", "()"} or len(kinds) == 1:
        return ordered()
    return False


def _names(parts: tuple[str, ...]) -> list[str]:
    """The names that the parts of a list assign values, if they are several; roots have one."""
    found = [assigned[0] for part in parts if (assigned := name_and_value(part))]
    several = len({re.split(r"[_\d]", name)[0] for name in found}) > 1
    return found if several and len(found) == len(parts) else []


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

_JOINT = re.compile(r"\b(?:and|or)\b")


def _same_relations(left: str, right: str, relations: tuple, depth: int) -> bool:
    if not all(relations):
        assigned = assigned_value(left if relations[0] else right)
        if assigned is not None:
            other = right if relations[0] else left
            return same_value(assigned, other, depth + 1)
        lists = list_parts(left), list_parts(right)
        if all(lists) and any(_names(found[1]) for found in lists):
            return _same_lists(left, right, depth)
        if any(lists) and not any(
            found and found[0] in ("()", "[]", "(]", "[)", "union") for found in lists
        ):
            return _same_lists(left, right, depth)
        # "x > 3" and "(3, ∞)" are for math-verify.
        return any(lists) and equal(latex(left), latex(right))
    if list_parts(left) or list_parts(right):
        joints = [set(_JOINT.findall(text)) for text in (left, right)]
        if all(joints) and joints[0] != joints[1] and re.search("[<>]", left):
            return False  # "x > 3 and x < 5" is not "x > 3 or x < 5"
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
    named = name_and_value(left), name_and_value(right)
    if all(named):
        if named[0][0] == named[1][0]:
            return same_value(named[0][1], named[1][1], depth + 1)
        return False  # "y = 5" is not "x = 5"
    return same_expressions(left, right)
