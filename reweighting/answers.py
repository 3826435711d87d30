"""Is a response right? Final answers extracted and compared, without a judge model.

Letters of multiple-choice questions, numbers with units, free text, and LaTeX (by math-verify).
Benchmarks have official scorers of their own; for a number that is to be published, use those.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .steps import final_answer

_BOXED = re.compile(r"\\boxed\s*\{")
_ANSWER_LINE = re.compile(r"^\W*(?:answer|the (?:final )?answer is)\s*:?\s*(.+)$", re.I | re.M)
# "B", "(B)", "B.", "B) 45°", "option B", "the answer is (B)"; not the "A" of "A triangle".
_LETTER = re.compile(
    r"^\W*(?i:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is)?\W*)?"
    r"\(?([A-Ja-j])(?:[).:,]|\s*$|\s*[-–=]\s)"
)
_ARTICLES = re.compile(r"\b(?:the|a|an)\b")
_NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.I)


def extract(response: str) -> str:
    """The final answer of a response, as written; empty if there is none.

    What follows the last "Final answer", else the last ``\\boxed{…}``, else the last line that
    opens with "Answer:".
    """
    if answer := final_answer(response):
        return answer
    if boxes := list(_BOXED.finditer(response)):
        return _braced(response[boxes[-1].end() :])
    lines = _ANSWER_LINE.findall(response)
    return lines[-1].strip() if lines else ""


def _braced(text: str) -> str:
    """``text`` up to the brace that closes the one before it."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:index].strip()
    return text.strip()


def normalise(answer: str) -> str:
    """Free text without case, decoration, articles and final punctuation, for comparing."""
    text = answer.strip().strip("*_`\"'$ ").rstrip(".!;:,").casefold()
    return " ".join(_ARTICLES.sub(" ", text).split())


def letter(answer: str) -> str | None:
    """The option letter an answer opens with, in upper case."""
    match = _LETTER.match(answer.strip().strip("*_$ "))
    return match.group(1).upper() if match else None


def same(predicted: str, true: str, choices: Sequence[str] | None = None) -> bool:
    """Whether two final answers say the same.

    Args:
        choices: texts of the options A, B, …, of which either may be given instead of its letter.
    """
    if not predicted.strip():
        return False
    if normalise(predicted) == normalise(true):
        return True
    if re.fullmatch(r"\(?[A-Ja-j]\)?\.?", true.strip()):
        wanted = letter(true + " ") or true.strip("(). ").upper()
        if (found := letter(predicted)) is not None:
            return found == wanted
        index = ord(wanted) - ord("A")
        named = choices is not None and index < len(choices)
        return named and normalise(predicted) == normalise(choices[index])
    if choices is not None and (found := letter(predicted)) is not None:
        index = ord(found) - ord("A")
        return index < len(choices) and normalise(choices[index]) == normalise(true)
    numbers = _numbers(predicted), _numbers(true)
    if "\\" not in predicted + true and all(len(found) == 1 for found in numbers):
        # One number each, perhaps with a unit; a unit that only one of them has is no mistake.
        (left, unit), (right, true_unit) = numbers[0][0], numbers[1][0]
        units_fit = not unit or not true_unit or unit == true_unit
        return units_fit and abs(left - right) <= 1e-6 * max(1.0, abs(right))
    return _mathematically_equal(predicted, true)


def _numbers(text: str) -> list[tuple[float, str]]:
    """Every number of a text with what follows it."""
    found = []
    for match in _NUMBER.finditer(text):
        digits = match.group().replace(",", "").replace("−", "-")
        found.append((float(digits), normalise(text[match.end() :])))
    return found


def _mathematically_equal(predicted: str, true: str) -> bool:
    """By math-verify; only where either side looks like mathematics."""
    if not re.search(r"[\\\d^=+*/<>]", true):
        return False
    from math_verify import parse, verify  # slow to import, seldom needed

    def expression(text: str):
        return parse(text if "$" in text or "\\boxed" in text else f"${text}$")

    return bool(verify(expression(true), expression(predicted)))


def is_right(response: str, true: str, choices: Sequence[str] | None = None) -> bool:
    """Whether a response ends with the right final answer."""
    return same(extract(response), true, choices)
