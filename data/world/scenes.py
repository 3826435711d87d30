"""Scenes of the demo world: what is drawn, how it becomes pixels and PNG bytes.

A scene is a grid of 28-pixel cells, so that one cell is one visual token of Qwen2-VL. Marks on a
cell's left and upper edge say its row and column: Qwen2-VL has no absolute position embedding, and
the demo's tiny model was still guessing at cells after a thousand steps on plain paper. Pixels are
set with numpy masks and the PNG is packed here: image libraries and zlib builds differ in the bytes
they write, and the data must come out the same on every machine.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

CELL = 28
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross")
POLYGONS = ("triangle", "square", "pentagon", "hexagon")
SIZES = ("small", "large")
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
LEVELS = 5
SMALL_DIGITS = "1234"  # their sums have one digit
ROWS = "ABCD"
# Shape and colour pairs that only the combination set draws.
HELD_OUT = {("circle", "purple"), ("square", "yellow"), ("triangle", "black"), ("cross", "green")}

PALETTE = np.array(
    [
        (255, 255, 255),
        (220, 40, 40),
        (30, 160, 60),
        (40, 80, 220),
        (235, 190, 20),
        (150, 50, 180),
        (20, 20, 20),
        (130, 130, 130),
    ],
    dtype=np.uint8,
)
GREY = 7

Cell = tuple[int, int]

_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


@dataclass(frozen=True)
class Scene:
    """A grid of marks: `kind` says what the items are, every cell has an item and a colour."""

    kind: str
    items: tuple[tuple[str, ...], ...]
    colours: tuple[tuple[str, ...], ...]
    shifts: tuple[Cell, ...]
    form: str = "circle"

    @property
    def grid(self) -> int:
        """Cells along one side."""
        return len(self.items)

    def cells(self) -> list[Cell]:
        """All (row, column) pairs, counted from 0."""
        return [(r, c) for r in range(self.grid) for c in range(self.grid)]

    def item(self, cell: Cell) -> str:
        """What stands in a cell."""
        return self.items[cell[0]][cell[1]]

    def colour(self, cell: Cell) -> str:
        """The colour of what stands in a cell."""
        return self.colours[cell[0]][cell[1]]

    def inside(self, cell: Cell) -> bool:
        """Whether a cell lies on the grid."""
        return 0 <= cell[0] < self.grid and 0 <= cell[1] < self.grid


def draw_scene(rng: random.Random, kind: str, grid: int = 3, novel: bool = False) -> Scene:
    """Draw a scene; `novel` prefers the shape and colour pairs held out everywhere else."""
    items, colours = [], []
    for r in range(grid):
        row = [_draw_item(rng, kind, (r, c), grid) for c in range(grid)]
        items.append(tuple(row))
        colours.append(tuple(_draw_colour(rng, kind, item, novel) for item in row))
    reach = 1 if kind in ("bars", "arrows") else 2
    shifts = tuple(
        (0 if kind == "bars" else rng.randint(-reach, reach), rng.randint(-reach, reach))
        for _ in range(grid * grid)
    )
    return Scene(kind, tuple(items), tuple(colours), shifts, rng.choice(SHAPES[:3]))


def _draw_item(rng: random.Random, kind: str, cell: Cell, grid: int) -> str:
    """One item; arrows never point off the grid, so that every path has an end."""
    if kind == "shapes":
        return rng.choice(SHAPES)
    if kind == "polygons":
        return rng.choice(POLYGONS)
    if kind == "sizes":
        return rng.choice(SIZES)
    if kind == "bars":
        return str(rng.randint(1, LEVELS))
    if kind == "digits":
        return str(rng.randint(0, 9))
    if kind == "small digits":
        return rng.choice(SMALL_DIGITS)
    if kind == "arrows":
        ways = [
            name
            for name, (dr, dc) in DIRECTIONS.items()
            if 0 <= cell[0] + dr < grid and 0 <= cell[1] + dc < grid
        ]
        return rng.choice(ways)
    raise ValueError(f"no such kind of scene: {kind}")


def _draw_colour(rng: random.Random, kind: str, item: str, novel: bool) -> str:
    """A colour for an item, respecting the held-out pairs of shapes."""
    if kind != "shapes":
        return rng.choice(COLOURS)
    held = [colour for colour in COLOURS if (item, colour) in HELD_OUT]
    if novel and rng.random() < 0.5:
        return held[0]
    return rng.choice([colour for colour in COLOURS if colour not in held])


@cache
def _mask(name: str, radius: float = 10.0) -> np.ndarray:
    """The 28 x 28 mask of a figure, centred."""
    y, x = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
    if name == "circle":
        return x * x + y * y < radius**2 + 0.3
    if name == "cross":
        arm = radius / 3
        return ((abs(x) < arm) & (abs(y) < radius)) | ((abs(y) < arm) & (abs(x) < radius))
    if name == "square":
        side = 0.86 * radius + 0.01
        return (abs(x) < side) & (abs(y) < side)
    if name in DIRECTIONS:
        dr, dc = DIRECTIONS[name]
        along, across = x * dc + y * dr, abs(x * dr + y * dc)
        return ((along < 1) & (along > -11) & (across < 3)) | (
            (along >= 1) & (along < 11) & (across < 11.2 - along)
        )
    sides = {"triangle": 3, "pentagon": 5, "hexagon": 6}[name]
    tip = radius * (1.25 if sides == 3 else 1.1)
    if sides == 3:
        y = y - 2
    turns = [2 * np.pi * (i + 0.5) / sides - np.pi / 2 for i in range(sides)]
    edge = tip * np.cos(np.pi / sides) + 0.013
    return np.all([x * np.cos(t) + y * np.sin(t) < edge for t in turns], axis=0)


@cache
def _digit_mask(digit: str) -> np.ndarray:
    """A digit of a 5 x 7 dot font, three pixels a dot, centred."""
    rows = [[int(bit) for bit in row] for row in _DIGITS[int(digit)].split()]
    dots = np.kron(np.array(rows, dtype=bool), np.ones((3, 3), dtype=bool))
    mask = np.zeros((CELL, CELL), dtype=bool)
    mask[3 : 3 + dots.shape[0], 6 : 6 + dots.shape[1]] = dots
    return mask


def _stamp(scene: Scene, item: str) -> np.ndarray:
    """The mask that shows an item of this kind of scene."""
    if scene.kind == "bars":
        mask = np.zeros((CELL, CELL), dtype=bool)
        mask[26 - 5 * int(item) : 26, 8:20] = True
        return mask
    if "digits" in scene.kind:
        return _digit_mask(item)
    if scene.kind == "sizes":
        return _mask(scene.form, 5.5 if item == "small" else 10.5)
    return _mask(item)


def render(scene: Scene) -> np.ndarray:
    """Palette indices (height, width) of a scene; `rgb` gives the colours."""
    side = scene.grid * CELL
    image = np.zeros((side, side), dtype=np.uint8)
    mark = CELL // len(ROWS)
    for cell, (dy, dx) in zip(scene.cells(), scene.shifts, strict=True):
        top, left = cell[0] * CELL, cell[1] * CELL
        view = image[top : top + CELL, left : left + CELL]
        mask = np.roll(_stamp(scene, scene.item(cell)), (dy, dx), axis=(0, 1))
        view[mask] = 1 + COLOURS.index(scene.colour(cell))
        view[mark * cell[0] : mark * (cell[0] + 1), :2] = GREY
        view[:2, mark * cell[1] : mark * (cell[1] + 1)] = GREY
    return image


def rgb(image: np.ndarray) -> np.ndarray:
    """Palette indices to uint8 RGB, as an image processor expects."""
    return PALETTE[image]


def _symbol(value: int) -> str:
    """Deflate's fixed Huffman code of a literal or length symbol, as a bit string."""
    if value < 144:
        return f"{0x30 + value:08b}"
    if value < 256:
        return f"{0x190 + value - 144:09b}"
    return f"{value - 256:07b}" if value < 280 else f"{0xC0 + value - 280:08b}"


@cache
def _runs() -> dict[int, str]:
    """Bits that encode "the last byte again, n times", for n from 3 to 257."""
    bits, length = {}, 3
    for code in range(257, 285):
        extra = max(0, (code - 261) // 4)
        for offset in range(1 << extra):
            tail = f"{offset:0{extra}b}"[::-1] if extra else ""
            bits[length] = _symbol(code) + tail + "00000"
            length += 1
    return bits


def _deflate(raw: bytes) -> bytes:
    """A zlib stream of literals and runs only: the same bytes with every version of zlib."""
    runs, bits, at = _runs(), ["110"], 0
    while at < len(raw):
        bits.append(_symbol(raw[at]))
        end = at + 1
        while end < len(raw) and raw[end] == raw[at] and end - at <= 256:
            end += 1
        again = end - at - 1
        bits.append(runs[again] if again >= 3 else _symbol(raw[at]) * again)
        at = end
    stream = "".join(bits) + _symbol(256)
    packed = int(stream[::-1], 2).to_bytes((len(stream) + 7) // 8, "little")
    return b"\x78\x01" + packed + struct.pack(">I", zlib.adler32(raw))


def png(image: np.ndarray) -> bytes:
    """Palette indices as the bytes of a 4-bit PNG."""
    packed = (image[:, 0::2] << 4) | image[:, 1::2]
    up = packed.copy()
    up[1:] -= packed[:-1]
    rows = np.concatenate([np.full((len(up), 1), 2, dtype=np.uint8), up], axis=1)

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 4, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", PALETTE.tobytes())
        + chunk(b"IDAT", _deflate(rows.tobytes()))
        + chunk(b"IEND", b"")
    )
