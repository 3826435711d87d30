"""One notation for the many in which final answers are written: markup, LaTeX, numbers, units.

A new notation is a line in one of the tables. The patterns take time linear in the length of the
text: none repeats a repetition of the same characters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from string import ascii_lowercase

MAX_CHARACTERS = 500  # of an answer; longer ones are compared as plain text
MAX_EXPONENT = 400  # of ten, in a number


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
        (r"\\(?:triangle|angle|overline|vec|bar|hat)(?![A-Za-z])", " "),
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
_POWER = re.compile(r"(?<=[\w)])\*\*(?:([-+]?\d+)|(?=[\w(\\]))")
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
    text = _SUPERSCRIPT.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", plain)
    text = _SUBSCRIPT.sub(lambda m: "_" + unicodedata.normalize("NFKC", m.group()), text)
    text = _VULGAR.sub(lambda m: " " + m.group(), text).translate(_TABLE)
    text = unicodedata.normalize("NFKC", text).translate(_TABLE)
    text = _SQUARE_ROOT.sub(lambda m: rf"\sqrt{{{m[1]}}}" if m[1] else r"\sqrt", text)
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
        text = text.strip(" \"'*_`\t✅✔✓\ufe0f").lstrip("#").rstrip(".;,:?")
        if not re.search(r"[\d)a-z]!$", text) or re.search(r"[a-z]{2}!$", text):
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


# ---- units

# Names of a unit, then its size in terms of the first unit of its line.
_UNITS = """
m meter metre 米 | km kilometer kilometre 千米 公里 1000 |
    dm decimeter decimetre 1/10 | cm centimeter centimetre 厘米 1/100 |
    mm millimeter millimetre 毫米 1/1000 | µm micrometer micron 1e-6 |
    nm nanometer 1e-9
in inch inches | ft foot feet 12 | yd yard 36 | mi mile 63360
g gram gramme 克 | kg kilogram kilo 千克 公斤 1000 | mg milligram 1/1000 | t ton tonne 1000000
lb pound pounds lbs | oz ounce 1/16
s sec second 秒 | ms millisecond 1/1000 | min minute 分钟 60 | h hr hour 小时 3600 |
    day 天 86400 | week 604800
year yr 年 | month 1/12
l L liter litre | ml mL milliliter millilitre 1/1000 | dl dL deciliter 1/10
° deg degree 度
rad radian
°C celsius | °F fahrenheit 0 | K kelvin 0
% percent pct percentage
USD dollar | cent ¢ 1/100
EUR euro
GBP
JPY yen
INR rupee Rs
CNY yuan RMB 元
N newton | kN kilonewton 1000
J joule | kJ kilojoule 1000 | MJ 1000000
cal calorie | kcal kilocalorie 1000
W watt | kW kilowatt 1000 | MW megawatt 1000000
V volt | mV millivolt 1/1000 | kV 1000
A amp ampere | mA milliampere 1/1000
Ω ohm Ohm | kΩ 1000
Pa pascal | kPa kilopascal 1000 | MPa 1000000 | atm 101325
Hz hertz | kHz 1000 | MHz 1000000 | GHz 1000000000
C coulomb | µC 1e-6
T tesla
F farad | µF 1e-6
mol mole | mmol 1/1000
bit | byte 8
mph
am AM
pm PM
unit units
"""
_SCALES: dict[str, int | Fraction] = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "万": 10**4, "亿": 10**8, "dozen": 12, "lakh": 10**5, "crore": 10**7, "mn": 10**6, "bn": 10**9,
    **{
        name + ending: Fraction(1, size)
        for size, name in enumerate(
            words("hal third quarter fifth sixth seventh eighth ninth tenth"), 2
        )
        for ending in (("f", "ves") if size == 2 else ("", "s"))
    },
}  # fmt: skip
# Words after a number that are no unit: they make it another number, or a sentence.
_NO_UNIT = frozenset(
    words(
        "and or not no to of than times plus minus over under below above more less least most "
        "squared cubed factorial is are was were if when where per x y z by versus vs divided "
        "root sqrt alpha beta gamma delta epsilon theta lambda sigma omega phi rho tau infinity "
        "right wrong correct incorrect true false fewer larger smaller higher lower greater "
        "before after past until january february march april may june july august september "
        "october november december"
    )
)


def _unit_table() -> dict[str, tuple[str, Fraction]]:
    table: dict[str, tuple[str, Fraction]] = {}
    for line in re.sub(r"\|\s+", "| ", _UNITS).strip().splitlines():
        base = line.split()[0]
        for entry in line.split("|"):
            *names, last = entry.split()
            if last[0].isdigit():
                size = Fraction(last)
            else:
                names, size = [*names, last], Fraction(1)
            # Size 0: no multiple of the base (temperatures), a unit of its own.
            for name in names:
                table[name] = (base, size) if size else (names[0], Fraction(1))
                if len(name) > 2 and name.islower():
                    table[name + "s"] = table[name]
    return table


_UNIT = _unit_table()
# Units whose case does not matter, as in "12 Cm": words but not symbols ("mW", "MW").
_FOLDED = {
    name.casefold(): entry
    for name, entry in _UNIT.items()
    if (len(name) > 2 and name.islower()) or name in words("cm km kg in ft lb oz Hz kHz")
}
# One letter after a root, a bracket or a fraction is a variable, as in "\\sqrt{2} h".
_NO_VARIABLE = re.compile(r"[^\W\d_]{2}|[°%]|.*/", re.S)
# "12 cm long", "5 apples in total": words after a unit that are no part of it.
_SAID_OF_UNIT = re.compile(
    r"\s+(?:long|wide|tall|high|deep|old|away|each|altogether|left|remaining|"
    r"in (?:total|all|length|width|height|area|volume))$",
    re.I,
)
_PART = re.compile(
    r"(?P<power>square|cubic|sq\.?|cu\.?)?\s*(?P<name>°[CF]?|%|[A-Za-zΩµ¢\u4e00-\u9fff]+)"
    r"(?:\s*\^?\s*\{?\s*(?P<exponent>-?[1-6])\s*\}?|\s+(?P<word>squared|cubed))?"
)
_DEGREES = re.compile(r"^(?:°|deg(?:ree)?s?)\s*(?:\\?\s*)?(C|F|celsius|fahrenheit)$", re.I)
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


@dataclass(frozen=True)
class Unit:
    """A unit as a product of powers of base units (name, exponent), and its size in these."""

    powers: tuple[tuple[str, int], ...]
    size: Fraction


@lru_cache(maxsize=4096)
def unit(text: str) -> Unit | None:
    """The unit that a text names, or None.

    It consists of units of the table with powers, products and quotients, or else of up to three
    words, as in "12 red apples".
    """
    text = _SAID_OF_UNIT.sub("", text)
    if temperature := _DEGREES.match(text):
        return Unit((("°" + temperature[1][0].upper(), 1),), Fraction(1))
    return _known_unit(text) or _counted(text)


def _known_unit(text: str) -> Unit | None:
    text = re.sub(r"\s+per\s+", "/", text)
    powers: dict[str, int] = {}
    size = Fraction(1)
    for index, factor in enumerate(text.split("/")):
        factor = factor.replace(r"\cdot", " ").replace("*", " ").strip()
        if not factor:
            return None
        position = 0
        while position < len(factor):
            match = _PART.match(factor, position)
            if not match:
                return None
            name, exponent = match["name"], int(match["exponent"] or 1)
            word = (match["power"] or match["word"] or "").rstrip(".")
            exponent *= _POWERS.get(word, 1) * (-1 if index else 1)
            entry = _UNIT.get(name) or _FOLDED.get(name.casefold())
            if entry is None:
                return None
            powers[entry[0]] = powers.get(entry[0], 0) + exponent
            size *= entry[1] ** exponent
            position = match.end()
            while position < len(factor) and factor[position] in " .-":
                position += 1
    return Unit(tuple(sorted((k, v) for k, v in powers.items() if v)), size)


def unit_of_expression(text: str) -> Unit | None:
    """The unit after a root, a bracket or a fraction, where a single letter is a variable."""
    return unit(text) if _NO_VARIABLE.match(text) else None


def _counted(text: str) -> Unit | None:
    # "MeV" is not "meV", but "Apples" are "apples"; "AC" and "abc" are products.
    words = [w if any(c.isupper() for c in w[1:]) else w.casefold() for w in text.split()]
    if not 1 <= len(words) <= 3 or not all(w.isalpha() and _is_word(w) for w in words):
        return None
    if _NO_UNIT.intersection(words) or _SCALES.keys() & set(words):
        return None
    *words, last = words
    if len(last) > 3 and last[-1] == "s" and last[-2] != "s":
        last = last[:-1]
    return Unit(((" ".join([*words, last]), 1),), Fraction(1))


def _is_word(text: str) -> bool:
    return len(text) > 2 and not text.isupper() and text not in ascii_lowercase


# ---- numbers

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FORMS = [
    re.compile(pattern)
    for pattern in (
        r"(?P<sign>[-+]?)\s*(?P<whole>\d+)\s*\\frac\s*\{\s*(?P<a>\d+)\s*\}\s*\{\s*(?P<b>\d+)\s*\}",
        r"(?P<sign>[-+]?)\s*(?P<whole>\d+)(?: and | |-)(?P<a>\d+) ?/ ?(?P<b>\d+)(?![\d.])",
        rf"(?P<sign>[-+]?)\s*\\frac\s*\{{\s*(?P<a>-?(?:{_DIGITS}))\s*\}}\s*"
        rf"\{{\s*(?P<b>-?(?:{_DIGITS}))\s*\}}",
        r"(?P<sign>[-+]?)\s*\\frac\s*(?P<a>\d)\s*(?P<b>\d)(?!\d)",
        rf"(?P<sign>[-+]?)\s*(?P<a>{_DIGITS}) ?/ ?(?P<b>{_DIGITS})(?![\d.])",
        rf"(?P<sign>[-+]?)\s*(?P<a>{_DIGITS})\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*"
        r"(?:\{\s*(?P<e1>[-+]?\d+)\s*\}|\(\s*(?P<e3>[-+]?\d+)\s*\)|(?P<e2>[-+]?\d+))",
        r"(?P<sign>[-+]?)\s*10\s*\^\s*(?:\{\s*(?P<e1>[-+]?\d+)\s*\}|(?P<e2>[-+]?\d+))",
        rf"(?P<sign>[-+]?)\s*(?P<a>{_DIGITS})(?:[eE](?P<e1>[-+]?\d+))?(?![\d])",
    )
]
_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {
    **{word: index for index, word in enumerate(_WORDS)},
    **{w: 10 * i for i, w in enumerate(words("thirty forty fifty sixty seventy eighty ninety"), 3)},
}
_CURRENCY = re.compile(r"^([-+]?)\s*(USD|EUR|GBP|JPY|INR|CNY|Rs\.?)\s*(?=[\d.])")
# "$3m" is money, not a length.
_OF_MONEY = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_ABOUT = re.compile(
    r"^(?:\\approx|\\sim|~|about|approximately|approx\.?|roughly|around|exactly|precisely|only|just"
    r"|equals|equal to)\s+",
    re.I,
)
ROUNDED = 6  # significant digits from which on a decimal may be a rounded value


@dataclass(frozen=True)
class Quantity:
    """A number with a unit or without.

    Args:
        value: the number.
        unit: what it counts, if it says so.
        ulp: one unit of the last decimal place, if there are :data:`ROUNDED` digits; else 0.
    """

    value: Fraction
    unit: Unit | None
    ulp: Fraction


def without_about(text: str) -> str:
    """``text`` without "about", "≈" and the like before it."""
    return _ABOUT.sub("", text, count=1)


@lru_cache(maxsize=4096)
def quantity(text: str) -> Quantity | None:
    """A cleaned answer as a number with or without a unit; None if it is anything else."""
    if len(text) > MAX_CHARACTERS:
        return None
    currency = _CURRENCY.match(text)
    if currency:
        text = currency[1] + text[currency.end() :]
    found = _number(text)
    if found is None:
        return None
    value, ulp, end = found
    rest = text[end:]
    glued = not rest[:1].isspace()
    rest = rest.strip().lstrip("-").strip() if re.match(r"\s*-[a-z]{3}", rest) else rest.strip()
    first, _, others = rest.partition(" ")
    scales = {**_SCALES, **_OF_MONEY} if currency else _SCALES
    if scale := scales.get(first.casefold()):
        value, ulp, rest, glued = value * scale, ulp * scale, others.strip(), False
    if rest and glued and not _known_unit(rest) and not _DEGREES.match(rest):
        return None  # "2nd", "3x"
    measure = (unit_of_expression if text[:end].endswith("}") else unit)(rest) if rest else None
    if rest and measure is None:
        return None
    if currency:
        measure = measure or unit(currency[2].rstrip("."))
    return Quantity(value, measure, ulp)


def _number(text: str) -> tuple[Fraction, Fraction, int] | None:
    """Value, ulp and end index of the number that ``text`` begins with."""
    for form in _FORMS:
        match = form.match(text)
        if match and (value := _value(match.groupdict())) is not None:
            digits = match.groupdict().get("a") or ""
            point = digits.rfind(".")
            ulp = Fraction(0)
            significant = len(re.sub("[., ]", "", digits).lstrip("0"))
            if match.groupdict().get("b") is None and point >= 0 and significant >= ROUNDED:
                exponent = int(_exponent(match.groupdict()))
                ulp = Fraction(10) ** (exponent - (len(digits) - point - 1))
            return value, ulp, match.end()
    word = re.match(r"([A-Za-z]+)(?:[- ]([A-Za-z]+))?", text)
    if word and (first := _NUMBER_WORDS.get(word[1].lower())) is not None:
        second = _NUMBER_WORDS.get((word[2] or "").lower(), 0)
        if first >= 20 and 0 < second < 10:  # "twenty-five"
            return Fraction(first + second), Fraction(0), word.end()
        return Fraction(first), Fraction(0), word.end(1)
    return None


def _exponent(groups: dict[str, str | None]) -> str:
    return next((groups[name] for name in ("e1", "e2", "e3") if groups.get(name)), "0")


def _value(groups: dict[str, str | None]) -> Fraction | None:
    exponent = _exponent(groups)
    if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
        return None

    def number(name: str, missing: int) -> Fraction:
        text = groups.get(name)
        return Fraction(text.replace(",", "").replace(" ", "")) if text else Fraction(missing)

    divisor = number("b", 1)
    if divisor == 0:
        return None
    value = number("whole", 0) + number("a", 1) / divisor
    return (-value if groups["sign"] == "-" else value) * Fraction(10) ** int(exponent)


def same_quantity(left: Quantity, right: Quantity) -> bool:
    """Whether two quantities are equal.

    A unit may be missing in one of them; 5 % is also equal to 0.05.
    """
    ulp = max(left.ulp, right.ulp)

    def close(a: Fraction, b: Fraction) -> bool:
        return a == b or abs(a - b) * 2 <= ulp

    if left.unit is None or right.unit is None:
        if close(left.value, right.value):
            return True
        hundredth = [
            q.value / 100 if q.unit and q.unit.powers == (("%", 1),) else q.value
            for q in (left, right)
        ]
        return left.unit != right.unit and close(*hundredth)
    if left.unit.powers != right.unit.powers:
        return False
    ulp *= max(left.unit.size, right.unit.size)
    return close(left.value * left.unit.size, right.value * right.unit.size)
