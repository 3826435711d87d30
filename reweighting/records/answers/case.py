"""Where the case of letters carries meaning: chemical formulas (CO, Co) and genotypes (Aa, AA)."""

from __future__ import annotations

import re

from .notation import words

_ELEMENTS = words(
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm "
    "Bk Cf Es Fm Md No Lr"
)
_SYMBOL = "|".join(sorted(_ELEMENTS, key=len, reverse=True))
_FORMULA = re.compile(rf"(?:(?:{_SYMBOL})\d{{0,4}}){{1,20}}")
_GENOTYPE = re.compile(r"(?:([a-z])\1){1,6}")  # in lower case: "AaBb" is "aabb"
_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_INDEX = re.compile(r"[_{}\s]+(?=\d)|(?<=\d)\}")
# Words whose letters happen to be symbols; "NO" is more often a verdict than nitrogen monoxide.
_WORDS = frozenset(words("no in as at he be i us am pm up on ok is it or of cos sin nan"))


def same_case(left: str, right: str) -> bool:
    """Whether two texts that differ at most in case agree where case carries meaning."""
    tokens = [_TOKEN.findall(_INDEX.sub("", text)) for text in (left, right)]
    if tokens[0] == tokens[1]:
        return True
    pairs = zip(*tokens, strict=False)
    return not any(
        a != b and a.casefold() == b.casefold() and (_carries(a, b) or _carries(b, a))
        for a, b in pairs
    )


def _carries(token: str, other: str) -> bool:
    """Whether the case of a token tells it from another one of the same letters."""
    folded = token.casefold()
    if folded in _WORDS:
        return False
    if _GENOTYPE.fullmatch(folded) and token not in (folded, token.upper()):
        return True
    mixed = any(c.islower() for c in token) and _FORMULA.fullmatch(token) is not None
    several = sum(c.isupper() for c in token) > 1
    return mixed and (several or not other.islower())
