"""Hand-made rows of published sets, exactly in their layouts, and the command that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reweighting.exchange import __main__ as exchange
from reweighting.system.record_files import read_records

PROMPT = "Give step by step reasoning, and end with 'Final answer: ..'.\n\nQuestion: {}"
STEPS = ["Step 1: The bar ends at 4.", "Step 2: Twice 4 is 8.", "Final answer: 8"]


def write_lines(path: Path, *rows: Any) -> Path:
    """Write JSON Lines; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def convert(direction: str, source: Path, output: Path, *flags: str) -> list[dict]:
    """Run the command; returns the records that it wrote."""
    argv = [direction, "--source", str(source), "--output", str(output), *flags]
    assert exchange.main(argv) == 0
    return read_records(output)


def refusals(capsys) -> list[str]:
    """The warnings about refused rows, without what they have in common."""
    return capsys.readouterr().err.removeprefix("warning: ").splitlines()


def visualprm_raw(question: str = "How much?", right=(16, 12, 16), steps=STEPS, **other) -> dict:
    """A row of VisualPRM400K-v1.1-Raw with 16 continuations a step."""
    scored = [
        {"step": step, "score": count / 16, "num_mc_correct": count, "num_mc_total": 16}
        for step, count in zip(steps, right, strict=True)
    ]
    row = {
        "image": "VisualPRM400K-v1.1-Raw/chartqa/7.png",
        "question": "<image>\n" + PROMPT.format(question),
        "question_orig": "<image>\n" + question,
        "answer": "8",
        "response": "\n\n".join(steps),
        "num_mc_sequences": 16,
        "steps_with_score": scored,
    }
    return row | other


def visualprm_chat(labels: str = "+-", steps=STEPS[:2], question: str = "How much?") -> dict:
    """A row of VisualPRM400K."""
    first = f"### Question:\n<image>\n{question}\n\n### Solution Process:\n{steps[0]}"
    turns = [{"from": "system", "value": "You are a judge."}]
    for step, label in zip([first, *steps[1:]], labels, strict=True):
        turns += [{"from": "human", "value": step}, {"from": "gpt", "value": label}]
    return {"id": -1, "image": "chartqa/7.png", "conversations": turns}


def mm_prm(labels=(0.75, 0.0), steps=STEPS[:2]) -> dict:
    """A row of MM-PRM."""
    process = "\n\n".join(step + "<prm>" for step in steps)
    turns = [
        {"from": "human", "value": f"Question: How much?\nProcess: {process}"},
        {"from": "gpt", "value": list(labels)},
    ]
    return {"id": 3, "image": "images/7.png", "conversations": turns}


def vl_prm300k(first: str | None, right=(16, 8, 0, 0)) -> dict:
    """A row of VL-PRM300K: two steps of visual elements, then two of reasoning."""
    steps = ["A bar is shown.", "It ends at 4.", "Twice 4 is 8.", "So it is 9."]
    asked = "### Question:\nHow much?\n\n### Solution Process:\n[Visual Elements]\n<step_1>\n"
    texts = [asked + steps[0], steps[1], "[Reasoning]\n<step_1>\n" + steps[2], steps[3]]
    turns = [{"role": "system", "content": [{"type": "text", "text": "Judge."}]}]
    for text in texts:
        turns.append({"role": "user", "content": [{"type": "text", "text": text}]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": "+"}]})
    return {
        "id": "698d978c",
        "conversations": turns,
        "first_incorrect_step": first,
        "steps_with_score": visualprm_raw(steps=steps, right=right)["steps_with_score"],
        "rollout_ground_truth_answer": "8",
        "image": "images/RAVEN/7.png",
        "source": "RAVEN",
        "question": "How much?",
    }


def mmpr(chosen="Step 1: 4.\nFinal answer: 8", rejected="Step 1: 3.\nFinal answer: 6") -> dict:
    """A row of MMPR."""
    return {
        "image": "images/7.png",
        "question": "<image>\nHow much?",
        "chosen": chosen,
        "rejected": rejected,
    }


def prm800k(*steps: dict, finish: str = "solution") -> dict:
    """A row of PRM800K."""
    label = {"steps": list(steps), "total_time": 9, "finish_reason": finish}
    question = {"problem": "What is 2 + 2?", "ground_truth_answer": "4"}
    return {"labeler": "a", "question": question, "label": label}


def prm800k_step(*rated: tuple[str, int | None], chosen: int | None = 0, human=None) -> dict:
    completions = [{"text": text, "rating": rating, "flagged": None} for text, rating in rated]
    return {
        "completions": completions,
        "human_completion": human,
        "chosen_completion": chosen,
    }


def math_shepherd(labels: str = "+-", steps=("Step 1: 2 + 2 is 4.", "Step 2: The answer is: 5")):
    """A row of Math-Shepherd."""
    question = "What is 2 + 2? "
    marked = [f"{step} {label}" for step, label in zip(steps, labels, strict=True)]
    return {
        "input": question + "\n".join(f"{step} ки" for step in steps),
        "label": question + "\n".join(marked),
        "task": "GSM8K",
    }


def published_rows() -> dict[str, list[dict]]:
    """Good rows of every set, by the direction that reads them."""
    step = prm800k_step(("Add 2 to 2.", 1), ("Take 2.", -1))
    vl_prm = [vl_prm300k("['Reasoning', 1]"), vl_prm300k(None, (16, 16, 16, 16))]
    return {
        "from-visualprm-raw": [visualprm_raw(), visualprm_raw(right=(16, 0, 0))],
        "from-visualprm": [visualprm_chat(), visualprm_chat("++")],
        "from-mm-prm": [mm_prm(), mm_prm((1.0, 1.0))],
        "from-vl-prm300k": vl_prm,
        "from-vl-prm300k-judged": vl_prm,
        "from-mmpr": [mmpr()],
        "from-prm800k": [prm800k(step, prm800k_step(("It is 5.", -1), chosen=None))],
        "from-math-shepherd": [math_shepherd(), math_shepherd("++")],
    }
