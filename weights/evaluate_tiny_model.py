"""What the tiny base model can do on scenes it has never seen, as Markdown tables.

    python weights/evaluate_tiny_model.py --model weights/tiny-qwen2-vl

A look-up is step 2 of a chain, given the question and step 1; an answer is the reply to the bare
question. Both count when every token is the likeliest one; claims and chain prefixes when the
likelier of "yes" and "no" is the true one. AUROC ranks by the difference of the two logits.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
)

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from data.world.scenes import draw_scene  # noqa: E402
from data.world.simulated_reasoner import MIXED, SEEING, THINKING, Profile  # noqa: E402
from data.world.tasks import TASKS, Task  # noqa: E402
from reweighting.evaluate import metrics  # noqa: E402
from weights.curriculum import KINDS, Item, Layout, Mix, Sheet, draw_sheet, evidence  # noqa: E402
from weights.pretrain import forward  # noqa: E402

BATCH = 16
Found = list[tuple[Item, float, bool]]  # the item, log-odds of "yes", whether it is right


@torch.no_grad()
def judge(model: Qwen2VLForConditionalGeneration, layout: Layout, sheets: list[Sheet]) -> Found:
    """Everything on the sheets, which must have one grid size: is it predicted, is it judged?"""
    yes, no = (layout.tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
    found: Found = []
    for begin in range(0, len(sheets), BATCH):
        batch = layout.collate(sheets[begin : begin + BATCH])
        logits = forward(model, batch)
        hits = logits.argmax(-1) == batch.targets
        for item, at, end in zip(batch.items, batch.counted.tolist(), batch.ends, strict=True):
            margin = (logits[at, yes] - logits[at, no]).item()
            judged = item.kind in ("claim", "prefix")
            right = (margin > 0) == item.right if judged else bool(hits[at:end].all())
            found.append((item, margin, right))
    return found


def draw_sheets(key: str, count: int, mix: Mix, profile: Profile | None = None) -> list[Sheet]:
    """Fresh sheets of one grid size, from a random stream of their own."""
    rng = random.Random(f"evaluate/{key}")
    return [draw_sheet(rng, mix, mix.grids[0], profile) for _ in range(count)]


def draw_evidence(key: str, count: int, task: Task, grid: int) -> list[Sheet]:
    """Scenes with one look-up each, in the words of a chain's second step."""
    rng, sheets = random.Random(f"evaluate/{key}"), []
    while len(sheets) < count:
        scene = draw_scene(rng, task.scene, grid)
        if spoken := evidence(rng, scene, task, rng.randrange(2)):
            sheets.append(Sheet(scene, [], [spoken]))
    return sheets


def share(found: Found) -> str:
    """Per cent right."""
    return f"{100 * sum(right for *_, right in found) / len(found):.1f}" if found else "–"


def auroc(found: Found) -> float:
    """Chance that a right item's log-odds exceed a wrong one's."""
    margins, right = zip(*((margin, item.right) for item, margin, _ in found), strict=True)
    return metrics.auroc(metrics.Counts.of(np.array(margins), np.array(right)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = REPOSITORY / "weights" / "tiny-qwen2-vl"
    parser.add_argument("--model", type=Path, default=default, help="folder of the checkpoint")
    parser.add_argument("--count", type=int, default=200, help="scenes per task and table")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layout = Layout(AutoTokenizer.from_pretrained(arguments.model))
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32).eval()
    count = arguments.count

    print("| task | look-ups | claims | look-ups 4 × 4 | claims 4 × 4 | answers | prefix AUROC |")
    print("|---|---|---|---|---|---|---|")
    columns: dict[str, Found] = defaultdict(list)
    for name, task in TASKS.items():
        row: dict[str, Found] = {}
        for grid in (3, 4):
            sheets = draw_evidence(f"evidence/{name}/{grid}", count, task, grid)
            row[f"look-ups {grid}"] = judge(model, layout, sheets)
            mix = Mix(2, 2, 0, tasks=(name,), grids=(grid,))
            found = judge(model, layout, draw_sheets(f"single/{name}/{grid}", count, mix))
            found = [entry for entry in found if entry[0].task == name]
            row[f"claims {grid}"] = [entry for entry in found if entry[0].kind == "claim"]
            row.setdefault("answers", [e for e in found if e[0].kind == "lookup"])
        mix = Mix(0, 0, 1, tasks=(name,), grids=(3,), pairs=0.0)
        row["prefixes"] = judge(model, layout, draw_sheets(f"prefix/{name}", count, mix, MIXED))
        for column, found in row.items():
            columns[column] += found
        print(_row(f"`{name}`", row))
    print(_row("**all**", columns))

    print("\n| chain prefixes of | accuracy | AUROC | sound ones kept |", end="")
    print(" " + " | ".join(f"{kind} found" for kind in KINDS) + " |")
    print("|---|---|---|---|" + "---|" * len(KINDS))
    plain = Mix(0, 0, 1, grids=(3,), pairs=0.0)
    for title, mix, profile in (
        ("mixed profile", plain, MIXED),
        ("seeing profile", plain, SEEING),
        ("thinking profile", plain, THINKING),
        ("two-part questions, seeing", replace(plain, pairs=1.0), SEEING),
        ("4 × 4 scenes, seeing", replace(plain, grids=(4,)), SEEING),
    ):
        found = judge(model, layout, draw_sheets(f"chains/{title}", 4 * count, mix, profile))
        cells = [title, share(found), f"{auroc(found):.3f}"]
        cells.append(share([entry for entry in found if entry[0].right]))
        cells += [share([entry for entry in found if entry[0].mistake == kind]) for kind in KINDS]
        print("| " + " | ".join(cells) + " |")


def _row(title: str, row: dict[str, Found]) -> str:
    cells = [share(row[c]) for c in ("look-ups 3", "claims 3", "look-ups 4", "claims 4", "answers")]
    return "| " + " | ".join([title, *cells, f"{auroc(row['prefixes']):.3f}"]) + " |"


if __name__ == "__main__":
    main()
