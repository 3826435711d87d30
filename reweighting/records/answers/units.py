"""The units of a number: names, prefixes, powers, products, and words for what is counted.

A new unit is a line in the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from string import ascii_lowercase

from .notation import words
from .number_words import NUMBER_WORDS

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
bit | byte 8 | kB KB kilobyte 8e3 | MB megabyte 8e6 | GB gigabyte 8e9 | TB terabyte 8e12
mph
am AM
pm PM
unit units
"""
# Words that make a number another one; those that end in a letter of ours may be plural.
_POWERS_OF_TEN = words("ten hundred thousand million billion trillion quadrillion quintillion")
_PARTS = words("half third quarter fifth sixth seventh eighth ninth")
SCALES: dict[str, int | Fraction] = {
    **dict(zip(_POWERS_OF_TEN, (10, 100, *(1000**n for n in range(1, 7))), strict=True)),
    **{f"{name}th": Fraction(1, 10**n) for n, name in enumerate(_POWERS_OF_TEN[:3], 1)},
    **{f"{name}th": Fraction(1, 1000**n) for n, name in enumerate(_POWERS_OF_TEN[3:], 2)},
    **{name: Fraction(1, size) for size, name in enumerate(_PARTS, 2)},
    **{"dozen": 12, "lakh": 10**5, "crore": 10**7},
    **{"mn": 10**6, "bn": 10**9, "tn": 10**12},
    **{"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8},
    **{"百万": 10**6, "千万": 10**7},
}
# Other languages and abbreviations. "Mil" and "billones" are not the same everywhere: no number.
_ABROAD = {
    10**3: "tausend tsd thous thsd mille тысяча тысяч тысячи тыс",
    10**6: "millón millon millones milhão milhões milione milioni millionen mio mln миллион "
    "миллиона миллионов млн",
    10**9: "milliard milliards milliarde milliarden mrd mld miliardo miliardi bln миллиард "
    "миллиарда миллиардов млрд",
    10**12: "trn",
}
SCALES.update({f"{name}s": size for name, size in SCALES.items() if name.isascii()})
SCALES["halves"] = SCALES["half"]
SCALES.update({name: size for size, names in _ABROAD.items() for name in words(names)})


def _fractions() -> frozenset[str]:
    """Names of fractions such as "sixteenths" that are no scale of the table."""
    irregular = {"five": "fif", "eight": "eigh", "nine": "nin", "twelve": "twelf"}
    stems = (irregular.get(n) or re.sub("y$", "ie", n) for n in NUMBER_WORDS)
    return frozenset(f"{stem}th{end}" for stem in stems for end in ("", "s"))


# Multiples and parts of a number, which are no counted things
_MULTIPLES = frozenset(
    words(
        "pair couple trio quartet quintet twin triplet octave ream decade century centurie "
        "fortnight googol zillion doubled tripled halved quadrupled double triple halve "
        "score scores grosse kilo mega giga micro milli nano pico mil milla billone billones "
        "millió bilhões bilhão ppm ppb ppt bps permille permil promille choose div nil"
    )
)
# The same as the last of the words: "5 lost" is a loss, but "3 negative integers" are three.
_NO_LAST = frozenset(
    words(
        "reciprocal inverse negative positive opposite loss losse losses lost deficit debt short "
        "shortage decrease decreased reduction drop down up extra few many off ago remaining"
    )
)
CHANGING = _MULTIPLES | _NO_LAST  # after a number, they belong to it
# Words after a number that are no unit: they make it another number, or a sentence.
_NO_UNIT = frozenset(
    words(
        "and or not no to of than times plus minus over under below above more less least most "
        "squared cubed factorial is are was were if when where per x y z by versus vs divided "
        "root sqrt alpha beta gamma delta epsilon theta lambda sigma omega phi rho tau infinity "
        "right wrong correct incorrect true false fewer larger smaller higher lower greater "
        "before after past until january february march april may june july august september "
        "october november december point dot comma decimal score gross grand modulo mod "
        "fold which that who because since so as this these those they there here then thus hence "
        "therefore also still only"
    )
) | {*NUMBER_WORDS, *SCALES, *_MULTIPLES, *_fractions()}


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
    r"in (?:length|width|height|area|volume))$",
    re.I,
)
_PART = re.compile(
    r"(?P<power>square|cubic|sq\.?|cu\.?)?\s*(?P<name>°[CF]?|%|[A-Za-zΩµ¢\u4e00-\u9fff]+)"
    r"(?:(?:\s*\^\s*\{?\s*)?(?P<exponent>-?[1-6])\s*\}?|\s+(?P<word>squared|cubed))?"
)
DEGREES = re.compile(r"^(?:°|deg(?:ree)?s?)\s*(?:\\?\s*)?(C|F|celsius|fahrenheit)$", re.I)
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
    if temperature := DEGREES.match(text):
        return Unit((("°" + temperature[1][0].upper(), 1),), Fraction(1))
    return known_unit(text) or _counted(text)


def known_unit(text: str) -> Unit | None:
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
    if _NO_UNIT.intersection([*words, *(word.rstrip("s") for word in words)]):
        return None
    *words, last = words
    if {last, last.rstrip("s")} & _NO_LAST:
        return None
    if len(last) > 3 and last[-1] == "s" and last[-2] != "s":
        last = last[:-1]
    return Unit(((" ".join([*words, last]), 1),), Fraction(1))


def _is_word(text: str) -> bool:
    return len(text) > 2 and not text.isupper() and text not in ascii_lowercase
