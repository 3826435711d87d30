"""Pre-train the tiny Qwen2-VL from scratch: to see, to look up, and to judge chains of thought.

    python weights/make_tiny_model.py
    python weights/pretrain.py

Every batch is drawn afresh from a random stream named after its step, so a run that was stopped
goes on from its state file as if it had not been, and none of its scenes comes from the streams of
the demo data. `weights/evaluate_tiny_model.py` says what the result can do.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
)

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from weights.curriculum import (  # noqa: E402
    CAPTIONS,
    CHAINS,
    CLAIMS,
    LOOKUPS,
    SILENT_CHAINS,
    SILENT_CLAIMS,
    SILENT_LOOKUPS,
    SPOKEN,
    Batch,
    Layout,
    Mix,
    draw_sheet,
)
from weights.make_tiny_model import make_model  # noqa: E402


def see(model: Qwen2VLForConditionalGeneration, patches: Tensor, grid: int) -> Tensor:
    """Visual tokens `[B, cells, hidden]` of images of one size.

    The model's own vision tower gives the same numbers (tests/world/test_tiny_model.py), but it
    attends image by image and convolves in three dimensions, which is slow on a CPU.
    """
    tower = model.model.visual
    batch, count, _ = patches.shape
    weight = tower.patch_embed.proj.weight
    hidden = F.linear(patches, weight.view(len(weight), -1))
    index = torch.arange(count)
    cell, inner = index // 4, index % 4
    where = torch.stack((cell // grid * 2 + inner // 2, cell % grid * 2 + inner % 2), dim=-1)
    cos, sin = tower.rotary_pos_emb(hidden, where)
    for block in tower.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden))
        qkv = qkv.view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key = (_rotate(qkv[i], cos, sin) for i in range(2))
        mixed = F.scaled_dot_product_attention(query, key, qkv[2])
        hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden.flatten(0, 1)).view(batch, grid * grid, -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def forward(model: Qwen2VLForConditionalGeneration, batch: Batch) -> Tensor:
    """Vocabulary logits `[K, vocabulary]` at the nodes where something is predicted."""
    text = model.model.language_model
    embedded = text.embed_tokens(batch.input_ids)
    image = batch.input_ids == model.config.image_token_id
    visual = see(model, batch.patches, batch.grid)
    embedded = embedded.masked_scatter(image[..., None], visual)
    hidden = text(
        inputs_embeds=embedded,
        position_ids=batch.positions,
        attention_mask={"full_attention": batch.mask},
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch.nodes])


# Where in the run a level begins at the latest, and the accuracies that let it begin earlier.
Levels = tuple[tuple[Mix, float, dict[str, float]], ...]
JUDGING: Levels = (
    (CAPTIONS, 0.0, {}),
    (LOOKUPS, 0.15, {"caption": 0.97}),
    (CLAIMS, 0.3, {"lookup": 0.72, "check": 0.95}),
    (CHAINS, 0.4, {"claim": 0.85}),
)
SEEING: Levels = (
    (CAPTIONS, 0.0, {}),
    (SILENT_LOOKUPS, 0.15, {"caption": 0.97}),
    (SILENT_CHAINS, 0.3, {"lookup": 0.72}),
)
STATEMENTS: Levels = ((SILENT_CLAIMS, 0.0, {}),)
VERDICTS: Levels = ((CHAINS, 0.0, {}),)
CURRICULA = {
    "judging": JUDGING,
    "seeing": SEEING,
    "statements": STATEMENTS,
    "verdicts": VERDICTS,
}


def next_level(levels: Levels, level: int, step: int, steps: int, recent: dict[str, float]) -> int:
    """The curriculum's level: captions, then questions, then (claims and) chains.

    A level begins when the one before is mastered: begun too early, it stalls.
    """
    if level + 1 == len(levels):
        return level
    _, latest, wanted = levels[level + 1]
    ready = all(recent.get(kind, 0.0) >= bar for kind, bar in wanted.items())
    return level + 1 if ready or step >= latest * steps else level


def draw_batch(layout: Layout, seed: int, step: int, mix: Mix, size: int) -> Batch:
    """The batch of a step, from a random stream that no data set uses."""
    rng = random.Random(f"pretrain/{seed}/{step}")
    grid = rng.choice(mix.grids)
    return layout.collate([draw_sheet(rng, mix, grid) for _ in range(size)])


def rate(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """Learning rate: warm-up, flat for the first half, then a cosine to 2 % of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    late = max(0.0, (step / steps - 0.5) / 0.5)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late)))


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


class Tally:
    """Loss and accuracy of everything seen since the last report."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, batch: Batch, logits: Tensor, losses: Tensor) -> dict[str, float]:
        """Count every item; returns the batch's accuracy by kind."""
        kinds: dict[str, list[bool]] = defaultdict(list)
        right = (logits.argmax(-1) == batch.targets)[batch.counted].tolist()
        for item, good, loss in zip(
            batch.items, right, losses[batch.counted].tolist(), strict=True
        ):
            kinds[item.kind].append(good)
            names = [item.kind]
            if "+" not in item.task:
                names.append(f"{item.kind[:2]}.{item.task}")
            if item.mistake and item.step == 5:
                names.append(item.mistake)
            for name in names:
                entry = self.sums[name]
                entry[0] += 1
                entry[1] += good
                entry[2] += loss
        return {kind: sum(good) / len(good) for kind, good in kinds.items()}

    def __str__(self) -> str:
        main = [n for n in (*SPOKEN, "lookup", "claim", "prefix") if n in self.sums]
        said = [
            f"{n} {self.sums[n][1] / self.sums[n][0]:.3f} ({self.sums[n][2] / self.sums[n][0]:.3f})"
            for n in main
        ]
        rest = sorted(n for n in self.sums if n not in main)
        return (
            " ".join(said)
            + " | "
            + " ".join(f"{n} {self.sums[n][1] / self.sums[n][0]:.2f}" for n in rest)
        )


def save(model: nn.Module, source: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the checkpoint folder with its processor."""
    copy.deepcopy(model).to(dtype).save_pretrained(out)
    if source != out:
        AutoProcessor.from_pretrained(source).save_pretrained(out)


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = REPOSITORY / "weights" / "tiny-qwen2-vl"
    parser.add_argument("--base", type=Path, default=default, help="folder with the tokenizer")
    parser.add_argument(
        "--out", type=Path, help=f"folder to write (default, for judging only: {default.name})"
    )
    parser.add_argument(
        "--state", type=Path, help="file to resume from, if it exists (default: OUT_state.pt)"
    )
    parser.add_argument("--curriculum", choices=list(CURRICULA), default="judging")
    parser.add_argument("--init_from", type=Path, help="checkpoint to begin with, not at random")
    parser.add_argument("--bfloat16", action="store_true", help="write half the bytes")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch_size", type=int, default=24, help="sheets (images) per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=100, help="steps between two lines")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop after so many, to be resumed"
    )
    arguments = parser.parse_args()
    if arguments.out is None and arguments.curriculum != "judging":
        parser.error("--out is needed: the shipped checkpoint is of the curriculum judging")
    arguments.out = arguments.out or default
    arguments.state = arguments.state or arguments.out.with_name(f"{arguments.out.name}_state.pt")
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    layout = Layout(tokenizer)
    if arguments.init_from:
        model = AutoModelForImageTextToText.from_pretrained(
            arguments.init_from, dtype=torch.float32
        )
    else:
        model = make_model(tokenizer, arguments.seed)
    model.train()
    optimizer = make_optimizer(model, arguments.lr)
    levels = CURRICULA[arguments.curriculum]
    begin, level, recent = 0, 0, {}
    if arguments.state.exists():
        state = torch.load(arguments.state, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin, level, recent = state["step"], state["level"], state["recent"]
    tally, start, drawing = Tally(), time.time(), 0.0
    for step in range(begin, arguments.steps):
        tick = time.time()
        batch = draw_batch(layout, arguments.seed, step, levels[level][0], arguments.batch_size)
        drawing += time.time() - tick
        for group in optimizer.param_groups:
            group["lr"] = rate(step, arguments.steps, arguments.lr)
        logits = forward(model, batch)
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        ((losses * batch.weights).sum() / batch.weights.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for kind, accuracy in tally.add(batch, logits.detach(), losses.detach()).items():
            recent[kind] = 0.97 * recent.get(kind, 0.0) + 0.03 * accuracy
        reached = next_level(levels, level, step, arguments.steps, recent)
        if reached > level:
            level, recent = reached, {}
            print(f"{step + 1} level {level}", flush=True)
        done = step + 1
        late = arguments.minutes and time.time() - start > 60 * arguments.minutes
        if done % arguments.report == 0:
            took = time.time() - start
            share = drawing / took
            speed = took / (done - begin)
            print(f"{done} {took:.0f}s {speed:.3f}s/step draw {share:.2f} {tally}", flush=True)
            tally = Tally()
        if done % 500 == 0 or done == arguments.steps or late:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            state |= {"level": level, "recent": recent}
            torch.save(state, arguments.state.with_suffix(".new"))
            arguments.state.with_suffix(".new").replace(arguments.state)
            dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
            save(model, arguments.base, arguments.out, dtype)
        if late:
            break


if __name__ == "__main__":
    main()
