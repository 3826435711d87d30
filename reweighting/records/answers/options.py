"""Which of the options A, B, … an answer names, by letters or by their texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from string import ascii_uppercase

from .extraction import without_lead_in
from .notation import clean
from .quantities import quantity
from .structure import MAX_PARTS
from .values import equally_plain, same_value

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
# "B 45°", "B (45°)", "45° (B)": counts if 45° is the text of option B.
_SPACED = re.compile(
    r"^([A-Z])\s+(?:\((?=.*\)$))?(?P<text>\S.*?)\)?$|^(?P<first>.*\S)\s+\(([A-Z])\)$", re.S
)
_EQUATED = re.compile(r"^(?P<letter>[A-Z])\s*=\s*(?P<text>\S.*)$", re.S)  # "A = 6"
_LAST = "J"  # the last letter of an option where their number is unknown


@lru_cache(maxsize=16_384)
def named_options(text: str, choices: tuple[str, ...] | None) -> frozenset[str] | None:
    """The options that a cleaned answer names, by letters or, where known, by their texts.

    None if it names none, and the empty set if it contradicts itself: a letter with the text of
    another option.
    """
    if choices and len(text) > 1 and (exact := _named(text, choices, equally_plain)):
        return exact  # "A and B" may be the text of option C
    found = _letters(text, choices)
    if found is not None or not choices:
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
    """The options that an answer names by letters; see :func:`named_options`."""
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
    # "ABD": only where the options are known
    run = len(text) > 1 and list(text) == sorted(set(text))
    if choices and run and all(c in ascii_uppercase and known(c) for c in text):
        return frozenset(text)
    if match := _TAIL.match(text):
        letter = (match["inside"] or match["before"] or match["dashed"]).upper()
        rest = match["tail"] or match["words"]
        more = {m[1] or m[2] for m in _ANOTHER.finditer(rest)}
        if known(letter) and not (match["inside"] and re.match(r"[-+*/^=<>]", rest)):
            if not more and choices and _contradicts(letter, rest, choices):
                return frozenset()
            return frozenset({letter, *filter(known, more)})
    if choices and (match := _EQUATED.match(text)) and known(match["letter"]):
        agrees = _is_text_of(match["letter"], match["text"], choices)
        return frozenset(match["letter"] if agrees else ())
    if choices and (match := _SPACED.match(text)):
        letter = match[1] or match[4]
        said = match["text"] or match["first"]
        if _is_text_of(letter, said, choices):
            return frozenset(letter)
        # "A red" may be "a red one".
        article = match[1] == "A" and said[0].isalpha() and not text.endswith(")")
        if known(letter) and not article and _is_text_of_another(letter, said, choices):
            return frozenset()
    # "B because it is red"
    remark = choices and re.match(r"(?P<letter>[A-J])\W{0,3}\s(?=because|since|as|which)", text)
    if remark and _contradicts(remark["letter"], text[remark.end() :], choices):
        return frozenset()
    return None


# Where the text of an option ends and a remark on it begins, or an announcement of that text.
_REMARK = re.compile(
    r"(?:^|[,;(]?\s+|[,;(:])(?:because|since|as|which|that|this|is|are|has|have|it|so|if|where|with|by|from"
    r"|for|in|on|at|matches|i\.e\.|namely)\b|[,;(]",
    re.I,
)
_SAID = re.compile(
    r"^.*(?:(?<![A-J] )\b(?:is|are|be|namely|the)|i\.e\.|=)[\s,:]+(?P<text>[^,;]{1,60})$",
    re.I | re.S,
)
_NOT_ITS_VALUE = re.compile(r"(?:[-+<>≤≥≠=~]|not\b|no\b|or\b|and\b)\s*\S", re.I)
# What is no text of an option beside its letter
_AGREES = re.compile(
    r"(?:correct|right|true|yes|the (?:correct|right|only|best|others?)|option|choice|I\b|no other"
    r"|explanation|reason|note|done|final|here)\b",
    re.I,
)
MAX_WORDS = 4  # beside a letter that are a text of an option rather than a remark


def _contradicts(letter: str, rest: str, choices: tuple[str, ...]) -> bool:
    """Whether what stands beside an option's letter is a text that this option does not have.

    That is the text of another option, a number that is not its own, or a few words that are no
    remark and no part of its own text.
    """
    index = ord(letter.upper()) - ord("A")
    if index >= len(choices):
        return False
    own = _unlettered(clean(choices[index]), index)
    rest = re.sub(r"^(?:i\.e\.|namely|which is|that is)[\s,:]*", "", rest, flags=re.I)
    if _is_text_of(letter, rest, choices):
        return False
    if _is_text_of_another(letter, rest, choices):
        return True
    said = _SAID.search(rest)
    if said and _is_text_of_another(letter, said["text"], choices):
        return True
    head = _REMARK.split(rest, maxsplit=1)[0].strip()
    if not head or _AGREES.match(head) or _is_text_of(letter, head, choices):
        return False
    if _is_text_of_another(letter, head, choices):
        return True
    words, owned = (set(re.findall(r"\w+", text.casefold())) for text in (head, own))
    if _NOT_ITS_VALUE.match(head) or quantity(head):
        return bool(quantity(own) or not (words <= owned or quantity(head)))
    return len(head.split()) <= MAX_WORDS and not words <= owned


def _is_text_of(letter: str, text: str, choices: tuple[str, ...]) -> bool:
    """Whether an option, by its letter, has this text."""
    index = ord(letter.upper()) - ord("A")
    if index >= len(choices):
        return False
    own = _unlettered(clean(choices[index]), index)
    # "B) 6%" is not "6", although a unit may be missing elsewhere.
    return ("%" in own or "%" not in text) and same_value(text, own)


def _is_text_of_another(letter: str, text: str, choices: tuple[str, ...]) -> bool:
    """Whether a text is that of an option, but not of the one with this letter."""
    others = ascii_uppercase[: len(choices)].replace(letter, "")
    return not _is_text_of(letter, text, choices) and any(
        _is_text_of(other, text, choices) for other in others
    )


def _named(
    text: str, choices: tuple[str, ...], alike: Callable[[str, str], bool] | None = None
) -> frozenset[str] | None:
    """The one option whose text this is: the same words or, if there is none, the same value."""
    texts = [without_lead_in(clean(choice)) for choice in choices]
    texts = [_unlettered(choice, index) for index, choice in enumerate(texts)]
    ways: list[Callable[[str, str], bool]] = [alike] if alike else [equally_plain, same_value]
    for agree in ways:
        found = [index for index, choice in enumerate(texts) if agree(text, choice)]
        if found:
            return frozenset(chr(ord("A") + found[0])) if len(found) == 1 else None
    return None


def text_after_letter(text: str) -> str | None:
    """What follows the letter of an option, as in "(B) 45°"; None if there is no such letter."""
    match = _TAIL.match(text)
    return (match["tail"] or match["words"]).strip() if match else None


def _unlettered(choice: str, index: int) -> str:
    """An option's text without its own letter, as in "A. red"."""
    match = _TAIL.match(choice)
    if match and (match["inside"] or match["before"] or "") == chr(ord("A") + index):
        return match["tail"]
    return choice


# "(a) 3; (b) 5": labels of options, or of parts of an answer
_LABEL = re.compile(
    r"(?:^|[\s,;]+(?:and\s+)?)(?:[(\[]([A-Za-z])[)\]][.:,]?|([A-Za-z])[.:)]|([A-Z])\s+-)(?=[\s,;]|$)"
)

_CONNECTIVE = re.compile(r"^[\s,;&]*(?:and|or)?[\s,;&]*$")


def same_labelled(left: str, right: str) -> bool:
    """Whether the texts after labels agree, label by label; a missing text agrees with any."""
    texts = []
    for text in (left, right):
        parts = _LABEL.split(f"{text} ")[1:]
        labels = ("".join(filter(None, parts[i : i + 3])).upper() for i in range(0, len(parts), 4))
        said = (_CONNECTIVE.sub("", part).strip() for part in parts[3::4])
        texts.append(dict(zip(labels, said, strict=True)))
    return texts[0].keys() == texts[1].keys() and all(
        not text or not texts[1][label] or same_value(text, texts[1][label])
        for label, text in texts[0].items()
    )
