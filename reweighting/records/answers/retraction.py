"""Whether the text after an answer takes it back, and whether the words beside it deny it.

A retraction opens a sentence or a line. It may stand anywhere after the answer; then a later
announcement counts, or the response has no readable answer. A check that confirms the answer is no
retraction. A new phrase is a line in one of the tables.
"""

from __future__ import annotations

import re

from .notation import clean

# ---- retractions

_PAUSE = r"(?:\s*[,.:;!?…—–-]|\s+(?:wait|no|it|that|the|this|I|let|there)\b|\s*$)"
_WRONG = (
    r"(?:wrong|incorrect|mistaken|false|impossible|invalid|off|an error|a mistake|absurd"
    r"|not (?:right|correct|possible|true|it|quite right))\b"
)
# What is said of an answer: "that", "this answer", "the result above"
_IT = (
    r"(?:that|this|it|(?:that|this|the|my)(?: \w+)? (?:answer|result|value|choice|option|solution"
    r"|calculation|reasoning|count|conclusion)(?: above)?)"
)
_BUT = r"(?:(?:but|however|yet|so|and|instead|rather|then|oh)\b,?\s+){0,2}"
_AGAIN = r"(?:again|over|more carefully|once more)"
_CHECKING = (
    r"(?:let me|let's|let us|I(?:'ll| will| should| must| need to| have to)|we should)\s+"
    r"(?:just |quickly |also ){0,2}"
    r"(?:re-?(?!call|mind|ply|port|view the|quest)\w{3,12}|double[- ]?check|check|verify|confirm"
    rf"|try {_AGAIN}|think {_AGAIN}|start over|correct|fix)\b"
)
_RETRACTIONS = (
    # "Wait, no more steps are needed" and "No further steps" take nothing back.
    rf"(?:wait|hmm+|oops|whoops|sorry|hold on|hang on|uh+|ah+|oh){_PAUSE}"
    r"(?!\s*no (?:more|further|other|need))",
    r"no\s*[,.:;!—–-](?!\s*(?:more|further|other|need))|no wait\b|nope\b|actually\b",
    r"(?:correction|corrected|revised|revision|update|updated|edit|edited|erratum)\b"
    r"(?: \w+)?\s*[:：—–-]",
    r"(?:on|upon) (?:second thoughts?|(?:\w+ )?(?:reflection|reconsideration|inspection|look))\b",
    r"I mean(?:t)?\b|or rather\b|make that\b|scratch that\b|er,",
    r"(?:I|we|there|here)\b(?!(?: \w+){0,4} no\b)(?: \w+|'\w+){0,4} (?:a|an|my|the|our)"
    r"(?: \w+)? (?:mistake|error|slip|typo)\b",
    r"I(?:'m| am| was)(?: \w+)? (?:wrong|mistaken|unsure|not sure)\b|I doubt\b",
    r"I (?:take (?:that|this|it) back|retract|withdraw|misread|mis\w+|forgot|overlooked"
    r"|should have)\b",
    rf"{_IT}(?:'s| is| was| are| seems| looks| must be| may be| might be)(?: \w+)? {_WRONG}",
    rf"{_IT} (?:can't|cannot|can not|couldn't|isn't|wasn't) (?:be )?"
    r"(?:right|correct|true|it|possible|the (?:right|correct))\b",
    rf"{_IT} (?:doesn't|does not|didn't|did not) (?:look|seem|sound|feel|make sense|add up|work"
    r"|hold|check out|satisfy)\b",
    rf"{_IT} (?:contradicts|fails|violates)\b",
    r"(?:ignore|disregard|discard|forget|strike|scratch) (?:that|this|it|the|my)\b",
    rf"{_CHECKING}",
    r"(?:it|the (?:\w+ )?(?:answer|value|result|number|total|option)) (?:should|ought to|has to) "
    r"(?:actually |really |instead )?(?:be|have been)\b(?! (?:noted|mentioned|clear|said|obvious))",
    r"the (?:correct|right|actual|true|real|proper) (?:\w+ )?(?:is|should|would|must)\b",
    r"(?:so|therefore|thus|hence),?\s+(?:it(?:'s| is)\s+)?[$]?[-+]?\d[\d.,]*[$]?[.]?\s*(?:\n|$)",
    r"(?:maybe|perhaps|or maybe|alternatively|possibly)\b",
)
_TAKES_BACK = rf"{_BUT}(?:{'|'.join(f'(?:{phrase})' for phrase in _RETRACTIONS)})"
_OPENING = r"[\s$)\]}*_#>\"'`•(\\-]{0,12}"
# A sentence opens after the end of another one, or of a line.
_LATER = re.compile(rf"(?:[.!?…。！？✓✅][*_\"')$\]]{{0,4}}\s+|\n){_OPENING}{_TAKES_BACK}", re.I)
_AT_ONCE = re.compile(rf"[\s$)\]}}*_.,;!?…\\—–-]{{0,10}}{_TAKES_BACK}", re.I)
# "But that", "5? Maybe 6": after the answer in its line
_IN_LINE = re.compile(
    r"\s{0,3}[?!.,;…–—-]{1,3}\s{0,3}\(?(?:but )?(?:"
    r"(?:no|wait|hmm+|actually|oops|sorry|scratch that|correction)"
    r"(?:\s*[,.:;!…—–-]|\s+(?:wait|no|it|that|the|this|I)\b)"
    r"|on second thoughts?\b|on reflection\b|I mean\b|or rather\b|make that\b|er,)"
    r"|\s{0,3}[?][?!]{0,2}\s{1,3}(?:I doubt|I'm not|I am not|maybe|perhaps|or|not sure|possibly"
    r"|probably|alternatively|that seems|no)\b"
    r"|\s{1,3}\((?:alternatively|or maybe|or perhaps|maybe|perhaps|possibly)\b",
    re.I,
)

# ---- confirmations

_CHECK = re.compile(rf"{_BUT}(?:(?:wait|hmm+|actually|ok(?:ay)?)\b[,.…]*\s+)?{_CHECKING}", re.I)
_CONFIRMED = re.compile(
    r"[✓✔✅]|\b(?:correct|checks out|confirmed|confirms|verified|consistent|as expected|matches"
    r"|is right|holds|works|yes|good)\b",
    re.I,
)
_NOT_CONFIRMED = re.compile(
    rf"[✗✘❌≠]|\b(?:not|never|no|un\w+ed|inconsistent)\b|n't\b|\bbut\b|\bhowever\b|{_WRONG}", re.I
)


def retraction_in_line(line: str) -> re.Match[str] | None:
    """Where a line that begins with an answer takes it back; None if it does not."""
    return _IN_LINE.search(line, 1)


def is_taken_back(text: str, end: int, value: str, at_once: bool = False) -> bool:
    """Whether what follows an answer takes it back.

    Args:
        end: of the answer in ``text``.
        at_once: whether a retraction may directly follow, as after a box.
    """
    rest = text[end:]
    first = _AT_ONCE.match(rest) if at_once else None
    found = [first] if first else []
    found += [match for match in _LATER.finditer(rest)]
    for index, match in enumerate(found):
        following = found[index + 1].start() if index + 1 < len(found) else len(rest)
        said = re.sub(rf"^[.!?…。！？✓✅]?{_OPENING}", "", rest[match.start() : following])
        if not _repeats(said, value) and not (
            _CHECK.match(said) and _is_confirmed(said[:1_000], value)
        ):
            return True
    return False


def _is_confirmed(said: str, value: str) -> bool:
    """Whether a check ends with a word of confirmation, or with the answer once more."""
    if _NOT_CONFIRMED.search(said):
        return False
    plain = clean(value)
    return (
        bool(_CONFIRMED.search(said))
        or re.search(rf"=\s*[$]?{re.escape(plain)}[$.\s]*$", said) is not None
    )


def _repeats(said: str, value: str) -> bool:
    """Whether a conclusion says the answer once more: "Therefore 5"."""
    match = re.match(r"(?:so|therefore|thus|hence),?\s+(?:it(?:'s| is)\s+)?(\S+)\s*(?:\n|$)", said,
                     re.I)  # fmt: skip
    return match is not None and clean(match[1]) == clean(value)


# ---- words beside an answer that deny it

_WITHIN = r"(?:(?!\b(?:but|so|hence|thus|therefore)\b)[^.;!?\n]){0,120}"
# "It is not \boxed{5}", "the wrong answer is \boxed{5}", "discard \boxed{5}", "if x were \boxed{5}"
DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|rather than|instead of)|n't)\s"
    r"(?:(?:be|equal|to|the|answer|option|is|it|believe|think|=)\s){0,4}[\s$\\(\[*_\"'{]{0,10}$"
    r"|\b(?:wrong|incorrect|false) (?:answer|option|choice|value|result)\b[^.,;:!?\n]{0,20}$"
    r"|\b(?:reject|discard|eliminate|rule out|exclude|excluding|avoid)(?:s|ing|ed)?\b"
    r"[^.,;:!?\n\d]{0,20}$"
    r"|\b(?:common|usual|typical) (?:mistake|error|trap)\b[^.;!?\n]{0,20}$"
    rf"|\b(?:suppose|assume|imagine)\b{_WITHIN}$|\bif\b[^,.;:!?\n]{{0,60}}$"
    rf"|\bif\b{_WITHIN}\b(?:were|was|had|would)\b{_WITHIN}$"
    r"|\bit is (?:false|impossible|untrue|wrong)\b[^.,;!?\n]{0,40}$",
    re.I,
)
_NOT_IT = (
    r"(?:not|wrong|incorrect|false|impossible|extraneous|reject\w*|ruled out|eliminated|discarded"
    r"|excluded|invalid|inadmissible|too (?:small|large|big|low|high|few|many)|out\b|close but"
    r"|a (?:trap|distractor|decoy|mistake))\b"
)
DENIED_AFTER = re.compile(
    r"\s*[✗✘❌]|\s*\((?:wrong|incorrect|false|not|rejected|extraneous|invalid|impossible)\b"
    rf"|\s+(?:(?:is|was|are|would be|seems|can be|must be|should be|were) {_NOT_IT}"
    r"|isn't|wasn't|cannot be|can't be|fails\b|(?:does not|doesn't|did not|didn't) )",
    re.I,
)
