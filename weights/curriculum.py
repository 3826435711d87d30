"""What the tiny base model is taught: sheets of questions, claims and chains about one image.

A *sheet* is one scene with several things to say about it. All of them begin with the same image,
and the step prefixes of a chain begin with each other, so a sheet is a token trie
(`reweighting/reward_model/prefix_tree.py`): one forward pass sees the image once and gives every
verdict. Prompts are token for token those of `reweighting.reward_model.encoder.PromptEncoder`,
since a verifier that was taught in another layout would have to begin again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data.world.scenes import CELL, COLOURS, DIRECTIONS, PALETTE, Scene, draw_scene, render
from data.world.simulated_reasoner import (
    MIXED,
    SEEING,
    THINKING,
    Chain,
    Profile,
    sample_chain,
    set_trap,
)
from data.world.tasks import TASKS, Pieces, Question, Task, askable, show
from reweighting.records.steps import join
from reweighting.reward_model.prefix_tree import ancestors, build_trie

PATCH = CELL // 2  # two by two patches of 14 pixels make one visual token
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
VERDICTS = {True: "yes", False: "no"}
SPOKEN = ("caption", "check", "find", "walk")
KINDS = ("misread", "misperceived", "wrong inference", "slip")

# Every kind of mistake is equally frequent and half of all prefixes are wrong: this is what a
# verifier has to learn, not what a reasoner does.
TEACHING = Profile(alone=(0.15, 0.25, 0.22, 0.30), trapped=0.0)
FAULTLESS = Profile((0.0,) * 4, trapped=0.0)

# Tasks that can be asked about one scene together; the combination questions of the data are some
# of these pairs.
PARTNERS: dict[str, tuple[str, ...]] = {
    name: tuple(
        other
        for other in TASKS
        if TASKS[other].scene == TASKS[name].scene or (other == "colour_cell")
    )
    for name in TASKS
}


@dataclass
class Item:
    """One prompt, the tokens to be predicted after it, and what it counts for in reports."""

    text: str
    answer: str
    kind: str  # lookup, claim or prefix
    task: str
    weight: float
    right: bool = True
    step: int = 0
    mistake: str = ""  # of a wrong prefix: the first mistake's kind


@dataclass
class Spoken:
    """Text after the image as pieces, each to be predicted or given; `weight` is a token's."""

    pieces: list[tuple[str, bool]]
    weight: float
    kind: str = ""  # caption or check: counted in reports


@dataclass
class Sheet:
    """A scene and what is said about it."""

    scene: Scene
    items: list[Item] = field(default_factory=list)
    spoken: list[Spoken] = field(default_factory=list)


@dataclass(frozen=True)
class Mix:
    """How many things of each sort a sheet holds, and from which tasks.

    Without ``verdicts`` chains are faultless and said aloud, and nothing is judged.
    """

    lookups: int
    claims: int
    chains: int
    captions: int = 0
    checks: int = 0
    finds: int = 0
    verdicts: bool = True
    tasks: tuple[str, ...] = tuple(TASKS)
    grids: tuple[int, ...] = (3, 3, 3, 4)
    pairs: float = 0.15


# The curriculum. Captions name every cell and what it shows: nine look-ups for forty tokens, and
# the place to be looked up is the last token read. Checks judge short statements about a cell.
CAPTIONS = Mix(lookups=0, claims=0, chains=0, captions=1, grids=(2, 3, 3, 4))
LOOKUPS = Mix(lookups=3, claims=0, chains=0, captions=1, checks=8, finds=2)
CLAIMS = Mix(lookups=2, claims=4, chains=0, checks=8, finds=2)
CHAINS = Mix(lookups=1, claims=2, chains=1, checks=4, finds=1)
# For a base that sees and thinks aloud and hardly judges: chains are said, then statements are
# judged as well, and verdicts on chains come last and are few.
SILENT_LOOKUPS = replace(LOOKUPS, checks=0, finds=8)
SILENT_CHAINS = Mix(lookups=2, claims=0, chains=2, captions=1, finds=8, verdicts=False)
SILENT_CLAIMS = Mix(lookups=2, claims=4, chains=1, checks=8, finds=3, verdicts=False)


def ask(rng: random.Random, scene: Scene, tasks: tuple[Task, ...], style: int) -> Question | None:
    """A question about a given scene, with its faultless chain; None if nothing fits."""
    for _ in range(8):
        queries = tuple(task.ask(rng, scene) for task in tasks)
        if all(askable(task, scene, query) for task, query in zip(tasks, queries, strict=True)):
            pieces: Pieces = (queries,)
            question = Question(tasks, scene, pieces, style, False)
            while len(pieces) < 5:
                pieces += (question.follow(pieces),)
            return replace(question, truth=pieces)
    return None


def claim(rng: random.Random, scene: Scene, task: Task, style: int) -> tuple[str, bool] | None:
    """A statement about the scene in the words of a chain's second step, and its truth."""
    for _ in range(8):
        query = task.ask(rng, scene)
        if task.name == "row_of" and not askable(task, scene, query):
            continue
        seen = task.look(scene, query)
        if rng.random() < 0.5:
            return task.say(style, 2, query, seen), True
        wrong = task.guess(rng, scene, query)
        if wrong != seen:
            return task.say(style, 2, query, wrong), False
    return None


def first_mistake(chain: Chain) -> str:
    """The kind of a chain's first mistake; empty for a sound one."""
    for step, sound in enumerate(chain.step_correct):
        if not sound:
            return {0: KINDS[0], 1: KINDS[1], 3: KINDS[2], 4: KINDS[3]}[step]
    return ""


def caption(rng: random.Random, scene: Scene) -> Spoken:
    """Every cell in random order: its name is given, what it shows is to be predicted."""
    heading = rng.choice(("colour", "shape", "cell"))  # colours, items, or both of them
    pieces = [(heading, False)]
    for cell in rng.sample(scene.cells(), scene.grid**2):
        pieces.append((f" {show(cell)}", False))
        if heading != "shape":
            pieces.append((f" {scene.colour(cell)}", True))
        if heading != "colour":
            pieces.append((f" {scene.item(cell)}", True))
    return Spoken(pieces, 0.3, "caption")


def checks(rng: random.Random, scene: Scene, count: int) -> list[Spoken]:
    """Short statements about a cell's colour or item, each followed by its verdict.

    Each is a branch of its own: with one cell named before it, the verdict is learned early.
    """
    spoken = []
    for _ in range(count):
        cell, look = rng.choice(scene.cells()), rng.choice((scene.colour, scene.item))
        said = look(cell) if rng.random() < 0.5 else look(rng.choice(scene.cells()))
        pieces = [(f" {show(cell)} {said}", False), (VERDICTS[said == look(cell)], True)]
        spoken.append(Spoken(pieces, 0.3, "check"))
    return spoken


def finds(rng: random.Random, scene: Scene, count: int) -> list[Spoken]:
    """The other way round: what occurs once is given, its cell is to be predicted."""
    names = {cell: f" {scene.colour(cell)} {scene.item(cell)}" for cell in scene.cells()}
    once = [cell for cell in names if list(names.values()).count(names[cell]) == 1]
    return [
        Spoken([(names[cell], False), (f" {show(cell)}", True)], 0.3, "find")
        for cell in rng.sample(once, min(count, len(once)))
    ]


def walk(rng: random.Random, scene: Scene) -> list[Spoken]:
    """Along two arrows from a random cell: each arrow, and the cell it leads to."""
    cell = rng.choice(scene.cells())
    pieces = [(f" {show(cell)}", False)]
    for _ in range(2):
        way = scene.item(cell)
        cell = (cell[0] + DIRECTIONS[way][0], cell[1] + DIRECTIONS[way][1])
        pieces += [(f" {way}", True), (f" {show(cell)}", True)]
    return [Spoken(pieces, 0.3, "walk")]


def continued(question: Question, given: str, whole: str, weight: float, kind: str = "") -> Spoken:
    """A response whose beginning is given and whose rest, up to ``whole``, is predicted."""
    before = join(question.text, given)
    return Spoken(
        [(before, False), (join(question.text, whole)[len(before) :], True)], weight, kind
    )


def evidence(rng: random.Random, scene: Scene, task: Task, style: int) -> Spoken | None:
    """A look-up where a chain has it: the question and step 1 are given, step 2 is predicted."""
    question = ask(rng, scene, (task,), style)
    if question is None:
        return None
    chain = sample_chain(rng, question, FAULTLESS)
    return continued(question, f"{chain.prefix(1)}\nStep 2:", chain.prefix(2), 0.0, "evidence")


def draw_sheet(rng: random.Random, mix: Mix, grid: int, profile: Profile | None = None) -> Sheet:
    """A fresh scene with everything `mix` wants said about it.

    The pairs of shape and colour that the combination set keeps to itself are never drawn.
    """
    while True:
        name = rng.choice(mix.tasks)
        sheet = Sheet(draw_scene(rng, TASKS[name].scene, grid))
        here = [t for t in mix.tasks if TASKS[t].scene == sheet.scene.kind]
        here = [name, name, *here, *(("colour_cell",) if sheet.scene.kind != "shapes" else ())]
        for _ in range(mix.lookups):
            task = TASKS[rng.choice(here)]
            question = ask(rng, sheet.scene, (task,), rng.randrange(2))
            if question:
                sheet.items.append(Item(question.text, question.answer, "lookup", task.name, 1.0))
        for _ in range(mix.claims):
            task = TASKS[rng.choice(here)]
            said = claim(rng, sheet.scene, task, rng.randrange(2))
            if said:
                sheet.items.append(
                    Item(said[0], VERDICTS[said[1]], "claim", task.name, 1.0, said[1])
                )
        sheet.spoken += [caption(rng, sheet.scene) for _ in range(mix.captions)]
        sheet.spoken += checks(rng, sheet.scene, mix.checks)
        sheet.spoken += finds(rng, sheet.scene, mix.finds)
        if mix.finds and sheet.scene.kind == "arrows":
            sheet.spoken += walk(rng, sheet.scene)
        for _ in range(mix.chains):
            tasks = [TASKS[name]]
            if rng.random() < mix.pairs:
                tasks.append(TASKS[rng.choice(PARTNERS[name])])
                rng.shuffle(tasks)
            add = _add_chain if mix.verdicts else _say_chain
            add(rng, sheet, tuple(tasks), profile)
        if sheet.items or sheet.spoken:
            return sheet


def _add_chain(
    rng: random.Random, sheet: Sheet, tasks: tuple[Task, ...], profile: Profile | None
) -> None:
    """One chain's five prefixes with their verdicts, and its sound steps as text to predict."""
    question = ask(rng, sheet.scene, tasks, rng.randrange(2))
    if question is None:
        return
    question = replace(question, hint=profile is None and rng.random() < 0.08)
    manner = profile or rng.choice((TEACHING, TEACHING, MIXED, SEEING, THINKING))
    chain = sample_chain(rng, question, manner, set_trap(rng, question, manner))
    mistake = first_mistake(chain)
    for step, sound in enumerate(chain.step_correct):
        sheet.items.append(
            Item(
                join(question.text, chain.prefix(step + 1)),
                VERDICTS[sound],
                "prefix",
                question.dataset,
                0.5,
                sound,
                step + 1,
                "" if sound else mistake,
            )
        )
    if any(chain.step_correct):
        sound = chain.prefix(sum(chain.step_correct))
        sheet.spoken.append(continued(question, "Step 1:", sound, 0.05))


def _say_chain(
    rng: random.Random, sheet: Sheet, tasks: tuple[Task, ...], profile: Profile | None
) -> None:
    """A faultless chain as text to predict."""
    question = ask(rng, sheet.scene, tasks, rng.randrange(2))
    if question is None:
        return
    chain = sample_chain(rng, question, profile or FAULTLESS)
    sheet.spoken.append(continued(question, "Step 1:", chain.text, 0.3))


def patches(images: np.ndarray) -> torch.Tensor:
    """Palette images `[B, side, side]` to what Qwen2-VL's processor makes: `[B, patches, 1176]`.

    The processor works image by image with Pillow; a palette of eight colours is normalised once
    and the reshaping is done for the whole batch.
    """
    palette = torch.from_numpy(PALETTE.astype(np.float32))
    palette = (palette / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    batch, side = len(images), images.shape[1]
    cells = side // CELL
    pixels = palette[torch.from_numpy(images.astype(np.int64))]  # [B, side, side, 3]
    pixels = pixels.view(batch, cells, 2, PATCH, cells, 2, PATCH, 3)
    pixels = pixels.permute(0, 1, 4, 2, 5, 7, 3, 6)  # B, row, column, row in it, column, rgb, y, x
    pixels = pixels.reshape(batch, cells * cells * 4, 3, 1, PATCH * PATCH)
    return pixels.expand(-1, -1, -1, 2, -1).reshape(batch, cells * cells * 4, -1)


@dataclass
class Batch:
    """Sheets of one image size as padded tries."""

    grid: int
    patches: torch.Tensor  # [B, patches, 1176]
    input_ids: torch.Tensor  # [B, T]
    positions: torch.Tensor  # [3, B, T]
    mask: torch.Tensor  # bool [B, 1, T, T], row sees column
    nodes: torch.Tensor  # [K], flat node at which something is predicted
    targets: torch.Tensor  # [K]
    weights: torch.Tensor  # [K]
    counted: torch.Tensor  # [I], number of the prediction that reports count for an item
    ends: list[int]  # [I], one past the number of its last prediction
    items: list[Item]


class Layout:
    """The chat layout around a user's text, as token ids.

    Special tokens are boundaries for the tokenizer, so the text between them can be encoded alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\0"}]}
        chat = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        before, after = chat.split("\0")
        before = before.split("<|image_pad|>")
        self.head, self.middle, self.tail = (
            tokenizer(text)["input_ids"] for text in (before[0], before[1], after)
        )
        self.image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.colour_ids = {ids[0] for ids in tokenizer([f" {c}" for c in COLOURS])["input_ids"]}
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def prompt(self, text: list[int], grid: int, tail: bool = True) -> list[int]:
        """The whole prompt around an encoded text."""
        image = [self.image_token] * grid**2
        return [*self.head, *image, *self.middle, *text, *(self.tail if tail else ())]

    def positions(self, grid: int, length: int) -> torch.Tensor:
        """M-RoPE positions `[3, length]` by depth; they depend on nothing but the image's size."""
        start, cells = len(self.head), grid * grid
        depth = torch.arange(length).expand(3, -1).clone()
        depth[:, start + cells :] -= cells - grid
        index = torch.arange(cells)
        depth[:, start : start + cells] = start + torch.stack(
            (torch.zeros_like(index), index // grid, index % grid)
        )
        return depth

    def collate(self, sheets: list[Sheet]) -> Batch:
        """Pack sheets of one grid size."""
        grid = sheets[0].scene.grid
        texts = [item.text for sheet in sheets for item in sheet.items]
        answers = [item.answer for sheet in sheets for item in sheet.items]
        spoken = [piece for sheet in sheets for said in sheet.spoken for piece, _ in said.pieces]
        encoded = iter(self.tokenizer(texts + answers + spoken)["input_ids"])
        prompts = [self.prompt(next(encoded), grid) for _ in texts]
        answer_ids = iter([next(encoded) for _ in answers])
        spoken_ids = iter([next(encoded) for _ in spoken])
        prompt_ids = iter(prompts)
        rows, nodes, targets, weights, counted, ends, items = [], [], [], [], [], [], []
        for number, sheet in enumerate(sheets):
            sequences, predict = [], []
            for item in sheet.items:
                prompt, answer = next(prompt_ids), next(answer_ids)
                wanted = [*answer, self.end] if item.kind == "lookup" else answer
                sequences.append(prompt + wanted[:-1])
                weight = item.weight / len(wanted)
                predict.append((len(sequences) - 1, len(prompt) - 1, wanted, weight, item))
            for said in sheet.spoken:
                sequence = self.prompt([], grid, tail=False)
                for _, predicted in said.pieces:
                    ids = next(spoken_ids)
                    if predicted:
                        item = None
                        if said.kind:
                            what = "colour" if ids[0] in self.colour_ids else sheet.scene.kind
                            item = Item("", "", said.kind, what, said.weight)
                        predict.append((len(sequences), len(sequence) - 1, ids, said.weight, item))
                    sequence = sequence + ids
                sequences.append(sequence)
            row = build_trie(sequences)
            rows.append(row)
            for sequence_number, start, wanted, weight, item in predict:
                path = row[2][sequence_number]
                if item is not None:
                    last = item.kind in SPOKEN  # a digit follows its blank
                    counted.append(len(nodes) + (len(wanted) - 1 if last else 0))
                    ends.append(len(nodes) + len(wanted))
                    items.append(item)
                nodes += [(number, node) for node in path[start : start + len(wanted)]]
                targets += wanted
                weights += [weight] * len(wanted)
        longest = max(len(row[0]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.end)
        depths = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)
        for number, (ids, depth, _, branches) in enumerate(rows):
            length = len(ids)
            input_ids[number, :length] = torch.tensor(ids)
            depths[number, :length] = torch.tensor(depth)
            mask[number, :length, :length] = ancestors(branches)
        return Batch(
            grid,
            patches(np.stack([render(sheet.scene) for sheet in sheets])),
            input_ids,
            self.positions(grid, longest)[:, depths],
            mask[:, None],
            torch.tensor([row * longest + node for row, node in nodes]),
            torch.tensor(targets),
            torch.tensor(weights),
            torch.tensor(counted),
            ends,
            items,
        )
