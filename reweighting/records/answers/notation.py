"""One notation for the many in which final answers are written: characters, markup, LaTeX.

A new notation is a line in one of the tables. The patterns take time linear in the length of the
text: none repeats a repetition of the same characters.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 500  # of an answer; longer ones are compared as plain text


def words(text: str) -> tuple[str, ...]:
    """The words of a table."""
    return tuple(text.split())


# ---- decoration

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_CHARACTERS = {
    **dict.fromkeys("−–—‐‑‒﹣", "-"),
    **dict.fromkeys("‘’‚′`", "'"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **dict.fromkeys("。．", "."),
    **dict.fromkeys("、", ","),
    **{"×": r" \times ", "·": r" \cdot ", "∙": r" \cdot ", "⋅": r" \cdot ", "÷": "/", "⁄": "/"},
    **{"≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": "!=", "≈": r" \approx ", "±": r" \pm "},
    **{
        "π": r" \pi ",
        "∞": r" \infty ",
        "∅": r" \emptyset ",
        "∪": r" \cup ",
        "∩": r" \cap ",
        "∈": r" \in ",
    },
    **{"º": "°", "˚": "°", "θ": r" \theta ", "α": r" \alpha ", "β": r" \beta ", "∠": r" \angle "},
    **{"μ": "µ", "€": " EUR ", "£": " GBP ", "¥": " JPY ", "₹": " INR ", "℃": "°C", "℉": "°F"},
}
_TABLE = str.maketrans(_CHARACTERS)
# LaTeX that can be written in more than one way; applied in this order.
_LATEX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", "\ue000"),  # an amount of money, no delimiter
        (r"(?<![A-Za-z])US ?\$(?= ?\d)", "\ue000"),
        (r"\bper cent\b", "percent"),
        (r"\\left\.|\\right\.|\\!", ""),
        (r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,;: ]|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|~|&nbsp;", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", "°"),
        (r"\\%", "%"),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\\leq?(?:slant)?(?![A-Za-z])", "<="),
        (r"\\geq?(?:slant)?(?![A-Za-z])", ">="),
        (r"\\neq?(?![A-Za-z])", "!="),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:triangle|angle)(?![A-Za-z])", " "),
        (r"\\(?:overline|vec|bar|hat)\s*\{\s*([A-Z]{2,})\s*\}", r" \1 "),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
    )
]
# Commands around words; only the words count.
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|operatorname|mbox|"
    r"boxed|fbox|underline|emph|bm|boldsymbol|bf|rm)\s*(?=\{)"
)
_TAG = re.compile(r"</?[A-Za-z|][A-Za-z0-9_|\- ]{0,40}>")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[A-Za-z]*[ \t]*$|```", re.M)
# "**5**" is bold, "2**3" a power, and what is left of "**" is the half of a bold text.
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)([^*]+)(?<=\S)\*\*")
_POWER = re.compile(r"(?:(?<=[\w)])|(?<=[\d)]) +(?=\*\* ))\*\* *(?:([-+]?\d+)|(?=[\w(\\]))")
# "5'6\"", "5'", "1'000'000"; quotes in pairs enclose a word.
_FEET = re.compile(r"^([-+]?\d+)(?:'|\s*(?:ft|feet)\.?) ?(\d+(?:\.\d+)?)(?:\"|'')$")
_FOOT_OR_INCH = re.compile(r"^([-+]?\d[\d.,/]*)(''|\"|')$")
_APOSTROPHES = re.compile(r"(?<![\d'])\d{1,3}(?:'\d{3})+(?![\d'\"])")
_ELLIPSIS = re.compile(r"\.\d{1,4}\.{2,}$")  # "0.3..." is a third
_STRUCK = re.compile(r"~~[^~\n]+~~|<(s|del|strike)>[^<]*</\1>", re.I)
_RAISED = re.compile(r"<(sup|sub)>([^<]{1,40})</\1>", re.I)
_MONEY = re.compile(r"^[-+]?\s*\$\s*(?=[\d.])")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_SQUARE_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|(?=[({]))")


def clean(answer: str) -> str:
    """An answer without markup, delimiters and final punctuation, with operators in one notation.

    An answer that consists of these alone is left as it is; only blank text becomes empty.
    """
    plain = answer.strip()
    if len(plain) > MAX_CHARACTERS:
        return " ".join(plain.split())
    text = _RAISED.sub(
        lambda m: f"{'^' if m[1][2] in 'pP' else '_'}{{{m[2]}}}", _STRUCK.sub(" ", plain)
    )
    text = _SUPERSCRIPT.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT.sub(lambda m: "_" + unicodedata.normalize("NFKC", m.group()), text)
    text = _VULGAR.sub(lambda m: " " + m.group(), text).translate(_TABLE)
    text = unicodedata.normalize("NFKC", text).translate(_TABLE)
    text = _SQUARE_ROOT.sub(lambda m: rf"\sqrt{{{m[1]}}}" if m[1] else r"\sqrt", text)
    text = _APOSTROPHES.sub(lambda m: m[0].replace("'", ""), text)
    text = unbold(_TAG.sub(" ", _FENCE.sub(" ", text))).replace("__", "")
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _unwrapped(text)
    if text.count("$") % 2 and _MONEY.match(text.strip()):
        text = text.replace("$", "\ue000", 1)
    text = text.replace("$", " ").replace("\ue000", " USD ")
    text = _strip(" ".join(text.split()))
    return text or plain


def unbold(text: str) -> str:
    """A text without Markdown's bold, and with "^" for the "**" of a power."""
    text = _POWER.sub(lambda m: f"^{{{m[1]}}}" if m[1] else "^", _BOLD.sub(r"\1", text))
    return text.replace("**", "")


def joined(text: str) -> str:
    """A text without the spaces that mean nothing; those between digits part two numbers."""
    return _SPACE.sub("", text)


def _unwrapped(text: str) -> str:
    """A text without the commands around words, as in ``\\boxed{\\textbf{(\\text{B})}}``."""
    position = 0
    while match := _WRAPPER.search(text, position):
        position = match.start()
        if (end := closing(text, match.end())) < 0:
            end = len(text)
        text = f"{text[:position]} {text[match.end() + 1 : end]} {text[end + 1 :]}"
    return text


def _strip(text: str) -> str:
    while True:
        before = text
        text = _FEET.sub(r"\1 ft \2 in", text.strip(" *_\t"))
        text = _FOOT_OR_INCH.sub(lambda m: f"{m[1]} {'ft' if m[2] == chr(39) else 'in'}", text)
        if text[-1:] != "'" or text[:1] == "'" or re.search(r"[a-z.]{2}'$", text):
            text = text.strip("'`")  # neither "x'" nor "A'" is quoted
        text = text.strip(' "*_\t✅✔✓\ufe0f').lstrip("#")
        text = text if _ELLIPSIS.search(text) else text.rstrip(".;,:?")
        if not re.search(r"[\d)a-z]!+$", text) or re.search(r"[a-z]{2}!$", text):
            text = text.rstrip("!")  # "5!" and "n!" are no exclamations
        # Braces that enclose the whole, as "{B}"
        if text[:1] == "{" and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text == before:
            return text


def closing(text: str, start: int, brackets: str = "{}") -> int:
    """Index of the bracket that closes the one at ``start``; -1 if there is none.

    Args:
        brackets: the opening ones, then as many closing ones; any of these closes any of those.
    """
    opening, ending = brackets[: len(brackets) // 2], brackets[len(brackets) // 2 :]
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] in opening) - (text[index] in ending)
        if depth == 0:
            return index
    return -1
