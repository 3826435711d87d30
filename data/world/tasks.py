"""The ten question types of the demo world, and questions drawn from them.

A chain of thought has five steps; each step's content is one *piece*: the query as read, the
evidence seen, nothing (a rule), the value inferred, the answer concluded. Pieces are tuples with
one entry for each part of a question, so that two-part questions need no code of their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.world.scenes import (
    COLOURS,
    DIRECTIONS,
    LEVELS,
    POLYGONS,
    ROWS,
    SHAPES,
    SIZES,
    SMALL_DIGITS,
    Cell,
    Scene,
    draw_scene,
    render,
    rgb,
)
from data.world.wording import WORDING

Part = tuple  # a query or some evidence: one value for each of the task's slots
Pieces = tuple[tuple, ...]
OPPOSITE = {"taller": "shorter", "shorter": "taller", "larger": "smaller", "smaller": "larger"}


@dataclass(frozen=True)
class Task:
    """One question type: how it is asked, looked up, inferred, and got wrong."""

    name: str
    scene: str
    slots: tuple[str, ...]
    wording: tuple[tuple[str, ...], ...]  # per style: question, steps 1 to 4
    ask: Callable[[random.Random, Scene], Part]
    look: Callable[[Scene, Part], Part]
    infer: Callable[[Scene, Part, Part], str]
    guess: Callable[[random.Random, Scene, Part], Part]
    options: Callable[[Scene, Part], list[str]]

    def misread(self, rng: random.Random, scene: Scene, query: Part) -> Part:
        """Another query than the one asked: the opposite comparison, or another place."""
        if query[0] in OPPOSITE:
            return (OPPOSITE[query[0]], *query[1:])
        return self.ask(rng, scene)

    def say(self, style: int, line: int, query: Part, evidence: Part = (), value: str = "") -> str:
        """Line 0 is the question, lines 1 to 4 are the steps."""
        words = dict(zip(self.slots, map(show, query), strict=True)) | dict(
            zip("ef", map(show, evidence), strict=False)
        )
        return self.wording[style][line].format(v=value, **words)


def show(thing: object) -> str:
    """A slot's value in words; the cell in the second row and third column is Bc, one token."""
    if isinstance(thing, tuple):
        return f"{ROWS[thing[0]]}{ROWS[thing[1]].lower()}"
    return str(thing)


def _one_cell(rng: random.Random, scene: Scene) -> Part:
    return (rng.choice(scene.cells()),)


def _two_cells(rng: random.Random, scene: Scene) -> Part:
    return tuple(rng.sample(scene.cells(), 2))


def _unique(rng: random.Random, scene: Scene) -> Part:
    """A shape and colour that occurs once (asked again with another scene if there is none)."""
    names = [f"{scene.colour(cell)} {scene.item(cell)}" for cell in scene.cells()]
    once = [name for name in names if names.count(name) == 1]
    return (rng.choice(once),) if once else (names[0],)


def _find(scene: Scene, query: Part) -> Part:
    """The cell of a coloured shape."""
    return next(
        (cell,) for cell in scene.cells() if f"{scene.colour(cell)} {scene.item(cell)}" == query[0]
    )


def _rank(words: tuple[str, str], order: tuple[str, ...]) -> dict[str, Callable]:
    """Comparing two cells by an ordered property: everything but the wording."""

    def ask(rng: random.Random, scene: Scene) -> Part:
        pairs = [
            (a, b) for a in scene.cells() for b in scene.cells() if scene.item(a) != scene.item(b)
        ]
        pair = rng.choice(pairs) if pairs else tuple(rng.sample(scene.cells(), 2))
        return (rng.choice(words), *pair)

    def infer(scene: Scene, query: Part, evidence: Part) -> str:
        first_is_more = order.index(evidence[0]) > order.index(evidence[1])
        return show(query[1] if first_is_more == (query[0] == words[0]) else query[2])

    return {
        "ask": ask,
        "look": lambda scene, query: (scene.item(query[1]), scene.item(query[2])),
        "infer": infer,
        "guess": lambda rng, scene, query: tuple(rng.sample(order, 2)),
        "options": lambda scene, query: [show(query[1]), show(query[2])],
    }


def _walk(scene: Scene, query: Part) -> Part:
    """The directions met when following the arrows for the stated number of moves."""
    cell, ways = query[0], []
    for _ in range(int(query[1][0])):
        ways.append(scene.item(cell))
        cell = _moved(cell, ways[-1])
    return (" then ".join(ways),)


def _moved(cell: Cell, way: str) -> Cell:
    return cell[0] + DIRECTIONS[way][0], cell[1] + DIRECTIONS[way][1]


def _stray(rng: random.Random, scene: Scene, query: Part) -> Part:
    """Directions as someone sees them who misreads an arrow; they stay on the grid."""
    cell, ways = query[0], []
    for _ in range(int(query[1][0])):
        ways.append(rng.choice([way for way in DIRECTIONS if scene.inside(_moved(cell, way))]))
        cell = _moved(cell, ways[-1])
    return (" then ".join(ways),)


def _path_end(scene: Scene, query: Part, evidence: Part) -> str:
    cell = query[0]
    for way in evidence[0].split(" then "):
        cell = _moved(cell, way)
    return scene.colour(cell)


def _seen_here(scene: Scene, order: tuple[str, ...]) -> tuple[str, ...]:
    """Only what such a scene can show: its words alone must not betray a mistake."""
    return tuple(SMALL_DIGITS) if scene.kind == "small digits" else order


def _plain(order: tuple[str, ...], colour: bool = False) -> dict[str, Callable]:
    """Reading one cell's item (or colour) and answering with it."""
    return {
        "ask": _one_cell,
        "look": lambda scene, q: (scene.colour(q[0]) if colour else scene.item(q[0]),),
        "infer": lambda scene, q, e: e[0],
        "guess": lambda rng, scene, q: (rng.choice(_seen_here(scene, order)),),
        "options": lambda scene, q: list(_seen_here(scene, order)),
    }


_LEVELS = tuple(str(level) for level in range(1, LEVELS + 1))
_SIDES = dict(zip(POLYGONS, "3456", strict=True))

TASKS = {
    task.name: task
    for task in (
        Task(
            "colour_cell",
            "shapes",
            ("c",),
            WORDING["colour_cell"],
            **_plain(COLOURS, colour=True),
        ),
        Task(
            "shape_cell",
            "shapes",
            ("c",),
            WORDING["shape_cell"],
            **_plain(SHAPES),
        ),
        Task(
            "row_of",
            "shapes",
            ("x",),
            WORDING["row_of"],
            ask=_unique,
            look=_find,
            infer=lambda scene, q, e: ROWS[e[0][0]],
            guess=lambda rng, scene, q: _one_cell(rng, scene),
            options=lambda scene, q: list(ROWS[: scene.grid]),
        ),
        Task(
            "taller_bar",
            "bars",
            ("w", "c", "d"),
            WORDING["taller_bar"],
            **_rank(("taller", "shorter"), _LEVELS),
        ),
        Task(
            "bar_height",
            "bars",
            ("c",),
            WORDING["bar_height"],
            **_plain(_LEVELS),
        ),
        Task(
            "table_digit",
            "digits",
            ("c",),
            WORDING["table_digit"],
            **_plain(tuple("0123456789")),
        ),
        Task(
            "digit_sum",
            "small digits",
            ("c", "d"),
            WORDING["digit_sum"],
            ask=_two_cells,
            look=lambda scene, q: (scene.item(q[0]), scene.item(q[1])),
            infer=lambda scene, q, e: str(int(e[0]) + int(e[1])),
            guess=lambda rng, scene, q: (rng.choice(SMALL_DIGITS), rng.choice(SMALL_DIGITS)),
            options=lambda scene, q: [str(total) for total in range(2, 9)],
        ),
        Task(
            "polygon_sides",
            "polygons",
            ("c",),
            WORDING["polygon_sides"],
            ask=_one_cell,
            look=lambda scene, q: (scene.item(q[0]),),
            infer=lambda scene, q, e: _SIDES[e[0]],
            guess=lambda rng, scene, q: (rng.choice(POLYGONS),),
            options=lambda scene, q: list(_SIDES.values()),
        ),
        Task(
            "arrow_end",
            "arrows",
            ("c", "m"),
            WORDING["arrow_end"],
            ask=lambda rng, scene: (*_one_cell(rng, scene), rng.choice(("1 move", "2 moves"))),
            look=_walk,
            infer=_path_end,
            guess=_stray,
            options=lambda scene, q: list(COLOURS),
        ),
        Task(
            "larger_cell",
            "sizes",
            ("w", "c", "d"),
            WORDING["larger_cell"],
            **_rank(("larger", "smaller"), SIZES),
        ),
    )
}


@dataclass(frozen=True)
class Question:
    """A scene, what is asked of it, and the pieces of a faultless chain."""

    tasks: tuple[Task, ...]
    scene: Scene
    truth: Pieces
    style: int
    hint: bool

    @property
    def dataset(self) -> str:
        """The question type, joined with + for two parts."""
        return "+".join(task.name for task in self.tasks)

    @property
    def answer(self) -> str:
        """The right final answer."""
        return " and ".join(self.truth[4])

    @property
    def text(self) -> str:
        """The question; with a hint it states the evidence, so that no image is needed."""
        asked = [t.say(self.style, 0, q) for t, q in zip(self.tasks, self.truth[0], strict=True)]
        if self.hint:
            asked = [
                t.say(self.style, 2, q, e)
                for t, q, e in zip(self.tasks, self.truth[0], self.truth[1], strict=True)
            ] + asked
        return " ".join(asked)

    @property
    def pixels(self) -> np.ndarray:
        """The image as palette indices."""
        return render(self.scene)

    @property
    def image(self) -> np.ndarray:
        """The image as uint8 RGB, height x width x 3."""
        return rgb(self.pixels)

    def follow(self, pieces: Pieces) -> tuple:
        """The next piece if no new mistake is made: what follows from the pieces so far."""
        if not pieces:
            return self.truth[0]
        parts = range(len(self.tasks))
        if len(pieces) == 1:
            return tuple(self.tasks[i].look(self.scene, pieces[0][i]) for i in parts)
        if len(pieces) == 2:
            return ()
        if len(pieces) == 3:
            return tuple(self.tasks[i].infer(self.scene, pieces[0][i], pieces[1][i]) for i in parts)
        return pieces[3]

    def claim(self, rng: random.Random) -> tuple[str, bool]:
        """One statement about the image, right or wrong with even odds, and its truth."""
        task = rng.choice(self.tasks)
        while True:
            query = task.ask(rng, self.scene)
            seen = task.look(self.scene, query)
            if rng.random() < 0.5:
                return task.say(self.style, 2, query, seen), True
            wrong = task.guess(rng, self.scene, query)
            if wrong != seen:
                return task.say(self.style, 2, query, wrong), False


def draw_question(
    rng: random.Random,
    *names: str,
    grid: int = 3,
    style: int = 0,
    novel: bool = False,
    hint: bool = False,
) -> Question:
    """Draw a scene and a question of one type, or of several that share a kind of scene."""
    tasks = tuple(TASKS[name] for name in names)
    while True:
        scene = draw_scene(rng, tasks[0].scene, grid, novel)
        queries = tuple(task.ask(rng, scene) for task in tasks)
        question = Question(tasks, scene, (queries,), style, hint)
        pieces: Pieces = (queries,)
        while len(pieces) < 5:
            pieces += (question.follow(pieces),)
        question = Question(tasks, scene, pieces, style, hint)
        if all(askable(task, scene, query) for task, query in zip(tasks, queries, strict=True)):
            return question


def askable(task: Task, scene: Scene, query: Part) -> bool:
    """Whether the query has exactly one answer, and the scene shows others to confuse it with."""
    if task.name == "row_of":
        names = [f"{scene.colour(cell)} {scene.item(cell)}" for cell in scene.cells()]
        rows = {i // scene.grid for i, name in enumerate(names) if names.count(name) == 1}
        return names.count(query[0]) == 1 and len(rows) > 1
    if query[0] in OPPOSITE:
        return scene.item(query[1]) != scene.item(query[2])
    seen = scene.colours if task.name in ("colour_cell", "arrow_end") else scene.items
    return len({thing for row in seen for thing in row}) > 1
