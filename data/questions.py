"""The ten question types: how each draws a scene, what can go wrong, and how it is worded.

Every type answers in five stages, which are the five steps of a chain of thought:

    asked      what the question asks for           (restate; wrong: a misread question)
    evidence   what the picture shows               (wrong: a misperception)
    knowledge  what one must know                   (wrong: a false fact, where facts are needed)
    result     what follows                         (wrong: a wrong inference)
    concluded  the answer given                     (wrong: a slip in the conclusion)

A stage is a plain tuple or value, so a chain's state can be stored, compared and continued. There
are two wordings, "plain" (training) and "formal" (the third test set).
"""

from itertools import permutations, product

import numpy as np

from data.scenes import COLORS, DIRECTIONS, SHAPES, Scene, cell_name, neighbor

STYLES = ("plain", "formal")
COLOR_NAMES = tuple(COLORS)
OBJECTS = tuple(product(COLOR_NAMES, SHAPES))
CELLS = tuple(range(9))
CORNERS = {"circle": 0, "triangle": 3, "square": 4, "star": 10, "cross": 12}
MIXES = {
    frozenset(("red", "yellow")): "orange",
    frozenset(("red", "blue")): "purple",
    frozenset(("yellow", "blue")): "green",
}
BESIDE = {"left": "left of", "right": "right of", "up": "above", "down": "below"}


def pick(rng: np.random.Generator, options):
    """One of `options`, each as likely."""
    return options[int(rng.integers(len(options)))]


def draw_objects(rng: np.random.Generator, filled: int = 9) -> list:
    """Nine cells, `filled` of them holding objects no two of which are equal."""
    chosen = [OBJECTS[i] for i in rng.choice(len(OBJECTS), filled, replace=False)]
    items: list = [None] * 9
    for cell, item in zip(rng.permutation(9)[:filled], chosen, strict=True):
        items[cell] = item
    return items


def thing(item: tuple[str, str]) -> str:
    """("red", "star") as words."""
    return f"{item[0]} {item[1]}"


class Question:
    """One question type. `told` questions state the evidence in words (color-mix alone uses it)."""

    name = ""
    facts_matter = False  # whether the third step holds a fact that can be got wrong

    def draw(self, rng: np.random.Generator, filled: int = 9) -> tuple[Scene, tuple]:
        """A scene and what is asked about it."""
        raise NotImplementedError

    def other_asks(self, scene: Scene, asked: tuple) -> list[tuple]:
        """What a misreader may take the question for."""
        raise NotImplementedError

    def see(self, scene: Scene, asked: tuple) -> tuple:
        """The evidence a perfect eye finds."""
        raise NotImplementedError

    def missee(self, scene: Scene, asked: tuple, evidence: tuple) -> list[tuple]:
        """Wrong evidence that still allows an answer."""
        raise NotImplementedError

    def know(self, evidence: tuple) -> tuple:
        """The facts needed, true ones."""
        return ()

    def misknow(self, evidence: tuple) -> list[tuple]:
        """False facts in place of `know(evidence)`."""
        return []

    def infer(self, asked: tuple, evidence: tuple, knowledge: tuple) -> tuple:
        """What follows; its last entry is the answer."""
        raise NotImplementedError

    def misinfer(self, asked: tuple, evidence: tuple, result: tuple) -> list[tuple]:
        """Wrong results of the same form as `result`."""
        return [(answer,) for answer in self.answers if answer != result[-1]]

    def answer(self, scene: Scene, asked: tuple) -> object:
        """The right answer."""
        evidence = self.see(scene, asked)
        return self.infer(asked, evidence, self.know(evidence))[-1]

    def key(self, scene: Scene, asked: tuple) -> tuple:
        """The combination that is held out or not (asked thing and what it truly is)."""
        return (asked, self.see(scene, asked))

    def say(self, answer) -> str:
        """The answer as words."""
        return str(answer)

    def ask(self, asked: tuple, style: str) -> str:
        """The question as words."""
        raise NotImplementedError

    def step(self, number: int, style: str, asked, evidence, knowledge, result, concluded) -> str:
        """Sentence of step `number` 1..5, without its marker; later stages may be None."""
        raise NotImplementedError


class ColorLookup(Question):
    name = "color-lookup"
    answers = COLOR_NAMES

    def draw(self, rng, filled=9):
        items = draw_objects(rng, filled)
        return Scene("objects", tuple(items)), (pick(rng, [c for c in CELLS if items[c]]),)

    def other_asks(self, scene, asked):
        return [(c,) for c in CELLS if scene.items[c] and c != asked[0]]

    def see(self, scene, asked):
        return scene.items[asked[0]]

    def missee(self, scene, asked, evidence):
        return [(color, evidence[1]) for color in COLOR_NAMES if color != evidence[0]]

    def infer(self, asked, evidence, knowledge):
        return (evidence[0],)

    def key(self, scene, asked):
        return (asked, self.see(scene, asked)[0])

    def ask(self, asked, style):
        cell = cell_name(asked[0])
        if style == "plain":
            return f"What color is the object in {cell}?"
        return f"Name the color that appears at {cell}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        cell = cell_name(asked[0])
        if number == 1:
            plain, formal = f"Find the color in {cell}.", f"The task is the color at {cell}."
        elif number == 2:
            plain = f"{cell} shows a {thing(evidence)}."
            formal = f"At {cell} there is a {thing(evidence)}."
        elif number == 3:
            plain, formal = "Each cell has one object.", "No cell holds more than one object."
        elif number == 4:
            plain = f"The object in {cell} is {result[0]}."
            formal = f"Hence {cell} holds something {result[0]}."
        else:
            plain, formal = f"So the color is {concluded}.", f"The final color is {concluded}."
        return plain if style == "plain" else formal


class Locate(Question):
    name = "locate"
    answers = CELLS

    def draw(self, rng, filled=9):
        items = draw_objects(rng, filled)
        return Scene("objects", tuple(items)), pick(rng, [i for i in items if i])

    def other_asks(self, scene, asked):
        return [item for item in scene.items if item and item != asked]

    def see(self, scene, asked):
        return divmod(scene.items.index(asked), 3)

    def missee(self, scene, asked, evidence):
        return [place for place in product(range(3), range(3)) if place != evidence]

    def infer(self, asked, evidence, knowledge):
        return (evidence[0] * 3 + evidence[1],)

    def say(self, answer):
        return cell_name(answer)

    def ask(self, asked, style):
        if style == "plain":
            return f"Where is the {thing(asked)}?"
        return f"Name the cell that holds the {thing(asked)}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        if number == 1:
            plain = f"Find the cell with the {thing(asked)}."
            formal = f"The task is the place of the {thing(asked)}."
        elif number == 2:
            row, column = evidence[0] + 1, "ABC"[evidence[1]]
            plain = f"The {thing(asked)} is in row {row}, column {column}."
            formal = f"There is a {thing(asked)} at column {column}, row {row}."
        elif number == 3:
            plain = "A cell is named by column and row."
            formal = "A name holds the column, then the row."
        elif number == 4:
            plain = f"Column and row give {cell_name(result[0])}."
            formal = f"Hence the name is {cell_name(result[0])}."
        else:
            plain = f"So the cell is {cell_name(concluded)}."
            formal = f"The final cell is {cell_name(concluded)}."
        return plain if style == "plain" else formal


class _Bars(Question):
    def _bars(self, rng):
        colors = [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))[:3]]
        heights = rng.integers(1, 7, 3)
        return tuple((color, int(h)) for color, h in zip(colors, heights, strict=True))


class BarHeight(_Bars):
    name = "bar-height"
    answers = tuple(range(1, 7))

    def draw(self, rng, filled=9):
        bars = self._bars(rng)
        return Scene("bars", bars), (pick(rng, bars)[0],)

    def other_asks(self, scene, asked):
        return [(color,) for color, _ in scene.items if color != asked[0]]

    def see(self, scene, asked):
        return (dict(scene.items)[asked[0]],)

    def missee(self, scene, asked, evidence):
        return [(h,) for h in self.answers if h != evidence[0]]

    def infer(self, asked, evidence, knowledge):
        return evidence

    def key(self, scene, asked):
        return (asked, self.see(scene, asked), [c for c, _ in scene.items].index(asked[0]))

    def ask(self, asked, style):
        if style == "plain":
            return f"How tall is the {asked[0]} bar?"
        return f"Name the height of the {asked[0]} bar."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        color = asked[0]
        if number == 1:
            plain = f"Find the height of the {color} bar."
            formal = f"The task is how high the {color} bar is."
        elif number == 2:
            plain = f"The {color} bar reaches line {evidence[0]}."
            formal = f"There is a {color} bar that ends at line {evidence[0]}."
        elif number == 3:
            plain, formal = "Each line is one unit.", "A unit is one line."
        elif number == 4:
            plain = f"The {color} bar is {result[0]} units tall."
            formal = f"Hence its height is {result[0]} units."
        else:
            plain, formal = f"So the height is {concluded}.", f"The final height is {concluded}."
        return plain if style == "plain" else formal


class BarDifference(_Bars):
    name = "bar-difference"
    answers = tuple(range(1, 6))

    def draw(self, rng, filled=9):
        while True:
            bars = self._bars(rng)
            pairs = self._pairs(bars)
            if pairs:
                return Scene("bars", bars), pick(rng, pairs)

    def _pairs(self, bars):
        return [(a[0], b[0]) for a, b in permutations(bars, 2) if a[1] > b[1]]

    def other_asks(self, scene, asked):
        return [pair for pair in self._pairs(scene.items) if pair != asked]

    def see(self, scene, asked):
        heights = dict(scene.items)
        return (heights[asked[0]], heights[asked[1]])

    def missee(self, scene, asked, evidence):
        high, low = evidence
        options = [(h, low) for h in range(low + 1, 7)] + [(high, h) for h in range(1, high)]
        return [option for option in options if option != evidence]

    def infer(self, asked, evidence, knowledge):
        return (evidence[0] - evidence[1],)

    def ask(self, asked, style):
        a, b = asked
        if style == "plain":
            return f"How much taller is the {a} bar than the {b} bar?"
        return f"Name the height of the {a} bar over the {b} bar."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        a, b = asked
        if number == 1:
            plain = f"Compare the {a} bar with the {b} bar."
            formal = f"The task is how far the {a} bar is above the {b} bar."
        elif number == 2:
            high, low = evidence
            plain = f"The {a} bar reaches line {high}, the {b} bar line {low}."
            formal = f"There is a {a} bar at line {high} and a {b} bar at line {low}."
        elif number == 3:
            plain = "Take the smaller from the larger."
            formal = "A difference is the larger without the smaller."
        elif number == 4:
            plain = f"{evidence[0]} minus {evidence[1]} is {result[0]}."
            formal = f"Hence {evidence[0]} less {evidence[1]} gives {result[0]}."
        else:
            plain = f"So the difference is {concluded}."
            formal = f"The final difference is {concluded}."
        return plain if style == "plain" else formal


class _TwoCells(Question):
    """Asks about two cells; each type says what a cell's content may be mistaken for."""

    def _draw_cells(self, rng, items):
        first, second = rng.permutation([c for c in CELLS if items[c]])[:2]
        return int(first), int(second)

    def other_asks(self, scene, asked):
        first, second = asked
        free = [c for c in CELLS if scene.items[c] and c not in asked]
        return [(c, second) for c in free] + [(first, c) for c in free]

    def content(self, item):
        return item

    def see(self, scene, asked):
        return tuple(self.content(scene.items[cell]) for cell in asked)

    def missee(self, scene, asked, evidence):
        first, second = evidence
        options = [(o, second) for o in self.contents if o != first]
        options += [(first, o) for o in self.contents if o != second]
        return options

    def key(self, scene, asked):
        return self.see(scene, asked) + (asked[0],)


class TableSum(_TwoCells):
    name = "table-sum"
    answers = tuple(range(2, 13))
    contents = tuple(range(1, 7))

    def draw(self, rng, filled=9):
        items = tuple(int(d) for d in rng.integers(1, 7, 9))
        return Scene("digits", items), self._draw_cells(rng, items)

    def infer(self, asked, evidence, knowledge):
        return (sum(evidence),)

    def ask(self, asked, style):
        a, b = map(cell_name, asked)
        if style == "plain":
            return f"What is the sum of {a} and {b}?"
        return f"Name the total of the numbers at {a} and {b}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        a, b = map(cell_name, asked)
        if number == 1:
            plain = f"Add the numbers in {a} and {b}."
            formal = f"The task is the total of {a} and {b}."
        elif number == 2:
            plain = f"{a} shows {evidence[0]}, {b} shows {evidence[1]}."
            formal = f"At {a} there is {evidence[0]} and at {b} there is {evidence[1]}."
        elif number == 3:
            plain, formal = "A sum takes both numbers.", "A total holds both numbers."
        elif number == 4:
            plain = f"{evidence[0]} plus {evidence[1]} is {result[0]}."
            formal = f"Hence {evidence[0]} and {evidence[1]} give {result[0]}."
        else:
            plain, formal = f"So the sum is {concluded}.", f"The final total is {concluded}."
        return plain if style == "plain" else formal


class CornerSum(_TwoCells):
    name = "corner-sum"
    facts_matter = True
    contents = SHAPES
    answers = tuple(sorted({a + b for a, b in product(CORNERS.values(), repeat=2)}))

    def draw(self, rng, filled=9):
        items = tuple(draw_objects(rng, filled))
        return Scene("objects", items), self._draw_cells(rng, items)

    def content(self, item):
        return item[1]

    def know(self, evidence):
        return tuple(CORNERS[shape] for shape in evidence)

    def misknow(self, evidence):
        first, second = self.know(evidence)
        counts = sorted(CORNERS.values())
        return [(c, second) for c in counts if c != first] + [
            (first, c) for c in counts if c != second
        ]

    def infer(self, asked, evidence, knowledge):
        return (sum(knowledge),)

    def ask(self, asked, style):
        a, b = map(cell_name, asked)
        if style == "plain":
            return f"How many corners do {a} and {b} have together?"
        return f"Name the total of the corners at {a} and {b}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        a, b = map(cell_name, asked)
        if number == 1:
            plain = f"Add the corners in {a} and {b}."
            formal = f"The task is the corner total of {a} and {b}."
        elif number == 2:
            plain = f"{a} shows a {evidence[0]}, {b} shows a {evidence[1]}."
            formal = f"At {a} there is a {evidence[0]} and at {b} there is a {evidence[1]}."
        elif number == 3:
            plain = f"They have {knowledge[0]} and {knowledge[1]} corners."
            formal = f"Their corners are {knowledge[0]} and {knowledge[1]}."
        elif number == 4:
            plain = f"{knowledge[0]} plus {knowledge[1]} is {result[0]}."
            formal = f"Hence {knowledge[0]} and {knowledge[1]} give {result[0]}."
        else:
            plain = f"So there are {concluded} corners."
            formal = f"The final total is {concluded}."
        return plain if style == "plain" else formal


class ColorMix(_TwoCells):
    name = "color-mix"
    facts_matter = True
    contents = ("red", "yellow", "blue")
    answers = COLOR_NAMES

    def draw(self, rng, filled=9):
        items = [None] * 9
        for cell in rng.permutation(9)[:filled]:
            items[cell] = (pick(rng, self.contents), pick(rng, SHAPES))
        return Scene("objects", tuple(items)), self._draw_cells(rng, items)

    def content(self, item):
        return item[0]

    def key(self, scene, asked):
        return self.see(scene, asked) + asked

    def know(self, evidence):
        return (MIXES.get(frozenset(evidence), evidence[0]),)

    def misknow(self, evidence):
        return [(color,) for color in COLOR_NAMES if color != self.know(evidence)[0]]

    def infer(self, asked, evidence, knowledge):
        return knowledge

    def ask(self, asked, style):
        a, b = map(cell_name, asked)
        if style == "plain":
            return f"Which color do {a} and {b} mix to?"
        return f"Name the mixture of the colors at {a} and {b}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        a, b = map(cell_name, asked)
        if number == 1:
            plain = f"Mix the colors in {a} and {b}."
            formal = f"The task is the mixture of {a} and {b}."
        elif number == 2:
            plain = f"{a} shows {evidence[0]}, {b} shows {evidence[1]}."
            formal = f"At {a} there is {evidence[0]} and at {b} there is {evidence[1]}."
        elif number == 3:
            plain = f"{evidence[0].capitalize()} with {evidence[1]} makes {knowledge[0]}."
            formal = f"The mixture of {evidence[0]} and {evidence[1]} is {knowledge[0]}."
        elif number == 4:
            plain = f"{a} and {b} mix to {result[0]}."
            formal = f"Hence {a} and {b} give {result[0]}."
        else:
            plain, formal = f"So the color is {concluded}.", f"The final color is {concluded}."
        return plain if style == "plain" else formal


class TableMax(Question):
    name = "table-max"
    answers = tuple(range(2, 7))

    def draw(self, rng, filled=9):
        return Scene("digits", tuple(int(d) for d in rng.integers(1, 7, 9))), (
            pick(rng, ("row", "column")),
            int(rng.integers(3)),
        )

    def _line(self, asked):
        kind, index = asked
        return [3 * index + i if kind == "row" else 3 * i + index for i in range(3)]

    def _name(self, asked):
        return f"{asked[0]} {'123'[asked[1]] if asked[0] == 'row' else 'ABC'[asked[1]]}"

    def other_asks(self, scene, asked):
        return [a for a in product(("row", "column"), range(3)) if a != asked]

    def see(self, scene, asked):
        return tuple(scene.items[cell] for cell in self._line(asked))

    def missee(self, scene, asked, evidence):
        options = []
        for place, digit in product(range(3), range(1, 7)):
            changed = list(evidence)
            changed[place] = digit
            options.append(tuple(changed))
        return [option for option in options if option != evidence]

    def infer(self, asked, evidence, knowledge):
        return (max(evidence),)

    def misinfer(self, asked, evidence, result):
        return [(digit,) for digit in sorted(set(evidence)) if digit != result[0]]

    def key(self, scene, asked):
        return self.see(scene, asked)

    def ask(self, asked, style):
        if style == "plain":
            return f"What is the largest number in {self._name(asked)}?"
        return f"Name the top number along {self._name(asked)}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        line = self._name(asked)
        if number == 1:
            plain = f"Find the largest number in {line}."
            formal = f"The task is the top number of {line}."
        elif number == 2:
            a, b, c = evidence
            plain = f"{line.capitalize()} shows {a}, {b}, {c}."
            formal = f"Along {line} there is {a}, {b} and {c}."
        elif number == 3:
            plain, formal = "The largest beats all others.", "No number is above the top one."
        elif number == 4:
            plain = f"The largest of them is {result[0]}."
            formal = f"Hence the top one is {result[0]}."
        else:
            plain = f"So the largest number is {concluded}."
            formal = f"The final number is {concluded}."
        return plain if style == "plain" else formal


class ArrowPath(Question):
    name = "arrow-path"
    answers = CELLS

    def draw(self, rng, filled=9):
        while True:
            directions = tuple(DIRECTIONS)
            scene = Scene("arrows", tuple(directions[i] for i in rng.integers(0, 4, 9)))
            starts = self._starts(scene)
            if starts:
                return scene, pick(rng, starts)

    def _starts(self, scene):
        return [(c,) for c in CELLS if self._walk(c, self.see(scene, (c,)))]

    def _walk(self, start, arrows):
        """The two cells reached from `start`, or None when the path leaves the grid."""
        if len(arrows) < 2:
            return None
        middle = neighbor(start, arrows[0])
        end = None if middle is None else neighbor(middle, arrows[1])
        return None if end is None else (middle, end)

    def other_asks(self, scene, asked):
        return [start for start in self._starts(scene) if start != asked]

    def see(self, scene, asked):
        middle = neighbor(asked[0], scene.items[asked[0]])
        return (scene.items[asked[0]],) + (() if middle is None else (scene.items[middle],))

    def missee(self, scene, asked, evidence):
        options = [(evidence[0], second) for second in DIRECTIONS if second != evidence[1]]
        for first in DIRECTIONS:
            middle = neighbor(asked[0], first)
            if first != evidence[0] and middle is not None:
                options.append((first, scene.items[middle]))
        return [option for option in options if self._walk(asked[0], option)]

    def infer(self, asked, evidence, knowledge):
        return self._walk(asked[0], evidence)

    def misinfer(self, asked, evidence, result):
        middle, end = result
        ends = {neighbor(middle, direction) for direction in DIRECTIONS} - {None, end}
        return [(middle, other) for other in sorted(ends)]

    def say(self, answer):
        return cell_name(answer)

    def ask(self, asked, style):
        cell = cell_name(asked[0])
        if style == "plain":
            return f"Follow two arrows from {cell}. Where do you end?"
        return f"Name the cell reached by two moves that begin at {cell}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        start = asked[0]
        if number == 1:
            plain = f"Start in {cell_name(start)} and follow two arrows."
            formal = f"The task is two moves that begin at {cell_name(start)}."
        elif number == 2:
            a, b = cell_name(start), cell_name(neighbor(start, evidence[0]))
            plain = f"{a} points {evidence[0]}, then {b} points {evidence[1]}."
            formal = f"At {a} there is an arrow {evidence[0]} and at {b} an arrow {evidence[1]}."
        elif number == 3:
            plain, formal = "Each arrow moves one cell.", "A move goes to the next cell."
        elif number == 4:
            a, b, c = map(cell_name, (start, *result))
            plain = f"{a} leads to {b}, and {b} leads to {c}."
            formal = f"Hence the moves go from {a} over {b} to {c}."
        else:
            plain = f"So the end is {cell_name(concluded)}."
            formal = f"The final cell is {cell_name(concluded)}."
        return plain if style == "plain" else formal


class Neighbor(Question):
    name = "neighbor"
    answers = OBJECTS

    def draw(self, rng, filled=9):
        while True:
            scene = Scene("objects", tuple(draw_objects(rng, filled)))
            asks = self._asks(scene)
            if asks:
                return scene, pick(rng, asks)

    def _beside(self, scene, cell, direction):
        other = neighbor(cell, direction)
        return None if other is None else scene.items[other]

    def _asks(self, scene):
        return [
            (direction, scene.items[cell])
            for direction, cell in product(DIRECTIONS, CELLS)
            if scene.items[cell] and self._beside(scene, cell, direction)
        ]

    def other_asks(self, scene, asked):
        return [
            a for a in self._asks(scene) if a != asked and (a[0] == asked[0]) != (a[1] == asked[1])
        ]

    def see(self, scene, asked):
        cell = scene.items.index(asked[1])
        return (cell, *self._beside(scene, cell, asked[0]))

    def missee(self, scene, asked, evidence):
        cell, color, shape = evidence
        options = [(cell, other, shape) for other in COLOR_NAMES if other != color]
        options += [(cell, color, other) for other in SHAPES if other != shape]
        for other in CELLS:
            item = self._beside(scene, other, asked[0])
            if other != cell and item and item != asked[1]:
                options.append((other, *item))
        return options

    def infer(self, asked, evidence, knowledge):
        return (evidence[1:],)

    def misinfer(self, asked, evidence, result):
        color, shape = result[0]
        options = [(other, shape) for other in COLOR_NAMES if other != color]
        options += [(color, other) for other in SHAPES if other != shape]
        return [(option,) for option in options]

    def key(self, scene, asked):
        return (asked[0], self.see(scene, asked)[1:])

    def say(self, answer):
        return thing(answer)

    def ask(self, asked, style):
        if style == "plain":
            return f"What is {BESIDE[asked[0]]} the {thing(asked[1])}?"
        return f"Name the object {BESIDE[asked[0]]} the {thing(asked[1])}."

    def step(self, number, style, asked, evidence, knowledge, result, concluded):
        direction, item = asked
        if number == 1:
            plain = f"Find the object {BESIDE[direction]} the {thing(item)}."
            formal = f"The task is what is {BESIDE[direction]} the {thing(item)}."
        elif number == 2:
            cell, seen = evidence[0], evidence[1:]
            a, b = cell_name(cell), cell_name(neighbor(cell, direction))
            plain = f"The {thing(item)} is in {a}, and {b} shows a {thing(seen)}."
            formal = f"At {a} there is the {thing(item)} and at {b} a {thing(seen)}."
        elif number == 3:
            plain, formal = "Each cell has one object.", "No cell holds more than one object."
        elif number == 4:
            a = cell_name(evidence[0])
            plain = f"{BESIDE[direction].capitalize()} {a} is the {thing(result[0])}."
            formal = f"Hence the cell {BESIDE[direction]} {a} holds the {thing(result[0])}."
        else:
            plain = f"So it is the {thing(concluded)}."
            formal = f"The final object is the {thing(concluded)}."
        return plain if style == "plain" else formal


QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        ArrowPath(),
        ColorLookup(),
        BarDifference(),
        ColorMix(),
        Locate(),
        TableSum(),
        BarHeight(),
        Neighbor(),
        TableMax(),
        CornerSum(),
    )
}
