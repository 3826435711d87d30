"""Sets without images: what a row of each of them says."""

from __future__ import annotations

from typing import NamedTuple

from ...records.texts import shown, without_image_tags
from ...system.files import is_number
from .chains import Chain, Label, ended_right, ends_of, prefixes_of
from .rows import Row

_GAP = "\n"  # between steps of PRM800K, which have no line ends of their own but the last
_ACCURACY = {1: 1.0, 0: 1.0, -1: 0.0}  # of PRM800K's ratings
# Where the answer of a chain was judged; the other reasons leave it open.
_JUDGED = ("solution", "found_error")
_MARKER = "ки"
_FIRST = "Step 1:"


class _Completion(NamedTuple):
    text: str
    rating: int


def from_prm800k(row: Row) -> list[Chain]:
    """PRM800K: the chain of the chosen completions, and the other completions that branch off it.

    A neutral rating counts as right, as it leads astray nowhere. A branch has one record, that of
    its last step, and no verdict of its own.
    """
    question = row.value.get("question")
    label = row.value.get("label")
    if not isinstance(question, dict) or not isinstance(label, dict):
        row.refuse("label", "must be an object, and so must be 'question'")
    problem = row.clean(question.get("problem"), "question.problem")
    chosen: list[_Completion] = []
    found: list[Chain] = []

    def chain(completions: list[_Completion], branch: bool) -> Chain:
        texts = [completion.text for completion in completions]
        labels = [Label(_ACCURACY[completion.rating]) for completion in completions]
        response = row.clean(_GAP.join(texts), "label.steps")
        shown_labels = [None] * (len(labels) - 1) + labels[-1:] if branch else labels
        ends = ends_of(texts, response)
        response, prefixes = prefixes_of(row, "label.steps", response, ends, shown_labels)
        judged = not branch and label.get("finish_reason") in _JUDGED
        right = ended_right(labels) if judged else None
        return Chain(row.source.domain, problem, (), response, prefixes, right)

    for number, step in enumerate(row.objects(label.get("steps"), "label.steps"), start=1):
        main, others = _completions(row, step, number)
        found += [chain([*chosen, other], branch=True) for other in others]
        if main is None:
            break
        chosen.append(main)
    if not chosen:
        row.refuse("label.steps", "holds no chosen completion")
    return [chain(chosen, branch=False), *found]


def _completions(row: Row, step: dict, number: int) -> tuple[_Completion | None, list[_Completion]]:
    """The completion of a step that the chain goes on with, and the others with a rating.

    A labeller who found all completions wrong may have written one, which counts as right. Where
    the chain ends with an error, none is chosen: the first wrong one is its last step then.
    """
    name = "label.steps"
    rated: list[_Completion] = []
    index = step.get("chosen_completion")
    main = None
    for place, value in enumerate(row.objects(step.get("completions"), name)):
        text, rating = value.get("text"), value.get("rating")
        if not isinstance(text, str) or not without_image_tags(text).strip():
            row.refuse(name, "step {} has a completion without text", number)
        if rating is None and place != index:
            continue  # not rated
        if not is_number(rating) or rating not in _ACCURACY:
            row.refuse(name, "step {} has a rating of {}, not -1, 0 or 1", number, shown(rating))
        completion = _Completion(row.clean(text, name).strip(), rating)
        if place == index:
            main = completion
        else:
            rated.append(completion)
    human = step.get("human_completion")
    if index is not None and main is None:
        row.refuse(name, "step {} chooses no completion of its own: {}", number, shown(index))
    if main is None and isinstance(human, dict) and isinstance(human.get("text"), str):
        main = _Completion(row.clean(human["text"], name).strip(), 1)
    if main is None:
        main = next((completion for completion in rated if completion.rating < 0), None)
        if main:
            rated.remove(main)
    return main, rated


def from_math_shepherd(row: Row) -> list[Chain]:
    """Math-Shepherd: ``ки`` ends every step of ``input``, and in ``label`` a + or - is there."""
    text, marked = row.text("input"), row.text("label")
    pieces = text.split(_MARKER)
    labels, position = [], 0
    for number, piece in enumerate(pieces[:-1], start=1):
        position += len(piece)
        sign = marked[position : position + 1]
        if not marked.startswith(piece, position - len(piece)) or sign not in ("+", "-"):
            row.refuse("label", "differs from 'input' in step {} by more than its label", number)
        labels.append(Label(float(sign == "+")))
        position += 1
    question, first, step = pieces[0].rpartition(_FIRST)
    if not labels or not first:
        row.refuse("input", "holds no step with its label")
    steps = [piece.strip() for piece in (first + step, *pieces[1:-1])]
    response = "".join(piece.rstrip(" ") for piece in (first + step, *pieces[1:])).strip()
    ends = ends_of(steps, response)
    if ends is None or not all(steps):
        row.refuse("input", "holds an empty step")
    response, prefixes = prefixes_of(row, "input", response, ends, labels)
    question = row.clean(question.strip(), "input")
    domain = row.text("task")
    return [Chain(domain, question, (), response, prefixes, ended_right(labels))]
