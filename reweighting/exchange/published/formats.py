"""Sets with images: what a row of each of them says."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from ...records.steps import LABELS
from ...records.texts import shown, without_image_tags
from ...system.files import is_number
from .chains import GAP, Chain, Label, ended_right, ends_of, prefixes_of
from .rows import Row

_STEPS = "steps_with_score"
_TURNS = "conversations"
_QUESTION, _SOLUTION = "### Question:\n", "\n\n### Solution Process:\n"
_MARKER = "<prm>"
_SECTIONS = ("Visual Elements", "Reasoning")
_SCORES_AGREE = 1e-3  # between a score and the counts that it is the quotient of


def labelled_chain(
    row: Row,
    name: str,
    steps: Sequence[str],
    labels: Sequence[Label],
    *,
    domain: str,
    question: str,
    response: str | None = None,
    truth: str | None = None,
) -> Chain:
    """A chain of steps that all have a label.

    Args:
        name: the field that the steps come from.
        response: the text that the steps were cut from, as :meth:`~.rows.Row.clean` returns it;
            :data:`~.chains.GAP` joins the steps without it.
    """
    # Tags for images are left out before offsets are counted.
    steps = [without_image_tags(step) for step in steps]
    ends = ends_of(steps, response) if response is not None else None
    if ends is None:
        response = row.clean(GAP.join(steps), name)
        ends = ends_of(steps, response)
    response, prefixes = prefixes_of(row, name, response, ends, labels)
    return Chain(domain, question, row.images(), response, prefixes, ended_right(labels), truth)


def _scored_steps(row: Row) -> tuple[list[str], list[Label]]:
    """The steps of VisualPRM's raw files and of VL-PRM300K, and their Monte-Carlo labels.

    After a step that no continuation got right none were sampled: ``num_mc_total`` is 0 then, and
    the score too, which is kept as the label.
    """
    steps, labels = [], []
    for number, step in enumerate(row.objects(row.value.get(_STEPS), _STEPS), start=1):
        text, right, total = step.get("step"), step.get("num_mc_correct"), step.get("num_mc_total")
        if not isinstance(text, str):
            row.refuse(_STEPS, "step {} must have text, has {}", number, shown(text))
        score = row.share(step.get("score"), _STEPS)
        if not (is_number(right) and is_number(total) and 0 <= right <= total):
            told = f"{shown(right)} of {shown(total)}"
            row.refuse(_STEPS, "step {} has no counts of continuations: {}", number, told)
        if abs(score - right / max(1, total)) > _SCORES_AGREE:
            told = f"{score:g} for {right} of {total}"
            row.refuse(_STEPS, "step {} has a score other than its counts say: {}", number, told)
        steps.append(text)
        labels.append(Label(score, int(right), int(total)))  # a column with gaps holds floats
    return steps, labels


def from_visualprm_raw(row: Row) -> list[Chain]:
    """VisualPRM400K-Raw and -v1.1-Raw: every step with its Monte-Carlo accuracy.

    ``question_orig`` is the question without the instruction that the reasoner was given.
    """
    steps, labels = _scored_steps(row)
    chain = labelled_chain(
        row,
        _STEPS,
        steps,
        labels,
        domain=row.source.domain,
        question=row.text("question_orig", "question"),
        response=row.optional_text("response"),
        truth=row.optional_text("answer"),
    )
    return [chain]


def from_visualprm(row: Row) -> list[Chain]:
    """VisualPRM400K and -v1.1: conversations with ``+`` or ``-`` after every step."""
    turns = row.objects(row.value.get(_TURNS), _TURNS)
    turns = turns[turns[0].get("from") == "system" :]
    steps, labels = [], []
    for index, turn in enumerate(turns):
        role, value = turn.get("from"), turn.get("value")
        if role != ("human", "gpt")[index % 2] or not isinstance(value, str):
            row.refuse(_TURNS, "turn {} is not what human or gpt says in turn", index + 1)
        if role == "human":
            steps.append(value)
        elif value.strip() in LABELS:
            labels.append(Label(float(value.strip() == LABELS[0])))
        else:
            row.refuse(_TURNS, "turn {} must be + or -, is {}", index + 1, shown(value))
    if not labels or len(labels) != len(steps):
        row.refuse(_TURNS, "must end with the label of a step")
    question, solution, first = steps[0].partition(_SOLUTION)
    if not solution or not question.startswith(_QUESTION):
        row.refuse(_TURNS, "does not open with a question and its solution process")
    question = row.clean(question.removeprefix(_QUESTION), _TURNS)
    domain = row.source.domain
    steps = [first, *steps[1:]]
    return [labelled_chain(row, _TURNS, steps, labels, domain=domain, question=question)]


def from_mm_prm(row: Row) -> list[Chain]:
    """MM-PRM: one turn with a ``<prm>`` after every step, one with the list of their labels."""
    turns = row.objects(row.value.get(_TURNS), _TURNS)
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        row.refuse(_TURNS, "must be one turn from human and one from gpt")
    text, values = turns[0].get("value"), turns[1].get("value")
    if not isinstance(text, str) or not isinstance(values, list):
        row.refuse(_TURNS, "must be a text and the list of its labels")
    question, process, solution = row.clean(text, _TURNS).partition("\nProcess: ")
    if not process or not question.startswith("Question: "):
        row.refuse(_TURNS, "does not open with a question and its process")
    *steps, rest = solution.split(_MARKER)
    if len(steps) != len(values) or not steps:
        told = f"{len(values)} for {len(steps)}"
        row.refuse(_TURNS, "must have a label for each step, has {}", told)
    labels = [Label(row.share(value, _TURNS)) for value in values]
    chain = labelled_chain(
        row,
        _TURNS,
        steps,
        labels,
        domain=row.source.domain,
        question=row.clean(question.removeprefix("Question: "), _TURNS),
        response="".join([*steps, rest]),
    )
    return [chain]


def from_vl_prm300k(row: Row) -> list[Chain]:
    """VL-PRM300K with its Monte-Carlo accuracies."""
    steps, labels = _scored_steps(row)
    return [_vl_prm_chain(row, steps, labels)]


def from_vl_prm300k_judged(row: Row) -> list[Chain]:
    """VL-PRM300K with its judge's labels: 1 before the first incorrect step and 0 from there on."""
    steps, _ = _scored_steps(row)
    first = _first_incorrect(row, len(steps))
    labels = [Label(float(index < first)) for index in range(len(steps))]
    return [_vl_prm_chain(row, steps, labels)]


def _vl_prm_chain(row: Row, steps: Sequence[str], labels: Sequence[Label]) -> Chain:
    return labelled_chain(
        row,
        _STEPS,
        steps,
        labels,
        domain=row.text("source"),
        question=row.text("question"),
        truth=row.optional_text("rollout_ground_truth_answer"),
    )


def _first_incorrect(row: Row, steps: int) -> int:
    """Index of the first incorrect step among all steps; their number if none is incorrect.

    The field holds a section and an index from 0 within it, written as Python writes a list. The
    steps of both sections stand in one list without their headings, so that an index within
    "Reasoning" has to be moved by the number of steps of "Visual Elements".
    """
    name = "first_incorrect_step"
    value = row.value.get(name)
    if value is None or (isinstance(value, str) and value in ("", "None", "[]")):
        return steps
    if isinstance(value, str) and len(value) < 100:
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):  # a list as a key, for one
            row.refuse(name, "must be a section and an index, is {}", shown(value))
    if not isinstance(value, (list, tuple)) or len(value) != 2 or value[0] not in _SECTIONS:
        row.refuse(name, "must be a section and an index, is {}", shown(row.value[name]))
    section, index = value
    if isinstance(index, str) and index.isdecimal():
        index = int(index[:6])
    before = _visual_steps(row, name) if section == _SECTIONS[1] else 0
    if type(index) is not int or not 0 <= before + index < steps:
        told = f"{shown(row.value[name])} after {before} of {steps} steps"
        row.refuse(name, "is the index of no step: {}", told)
    return before + index


def _visual_steps(row: Row, name: str) -> int:
    """How many steps stand before the heading "[Reasoning]" in the row's conversation."""
    count = 0
    for turn in row.objects(row.value.get(_TURNS), _TURNS):
        if turn.get("role", turn.get("from")) not in ("user", "human"):
            continue
        text = _content(turn.get("content", turn.get("value")))
        # The first turn opens with the question.
        if text.rpartition(_SOLUTION)[2].lstrip().startswith(f"[{_SECTIONS[1]}]"):
            return count
        count += 1
    row.refuse(name, "is in Reasoning, where the conversation has no such heading")


def _content(value: Any) -> str:
    """The text of a turn, which may be a list of parts such as ``{"type": "text", "text": …}``."""
    parts = value if isinstance(value, list) else [{"text": value}]
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


def from_mmpr(row: Row) -> list[Chain]:
    """MMPR: the chosen response counts as right and the rejected one as wrong."""
    question, images = row.text("question"), row.images()
    chains = []
    for name, right in (("chosen", True), ("rejected", False)):
        response = row.text(name)
        chains.append(Chain(row.source.domain, question, images, response, [], right))
    if chains[0].response == chains[1].response:
        row.refuse("rejected", "is the same as the chosen response")
    return chains
