"""Scenes of the small world and their pictures: 84 x 84 px, 3 x 3 cells of 28 px.

A cell of 28 px is one visual token of Qwen2-VL (patches of 14 px, merged 2 x 2), so a picture is
nine visual tokens. Cells are numbered row by row from 0 to 8 and named like a spreadsheet's: column
letter, row number ("A1" is the top left cell, "C3" the bottom right one).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

CELL_PX = 28
SIDE_PX = 3 * CELL_PX
UNIT_PX = 14  # one unit of a bar's height: a bar of 6 fills the picture
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 215),
    "yellow": (240, 205, 40),
    "purple": (145, 60, 170),
    "orange": (245, 135, 30),
}
SHAPES = ("circle", "triangle", "square", "star", "cross")
DIRECTIONS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
INK = (45, 45, 55)
GLYPHS = {  # 5 x 7 dots: drawn here, so that no font file decides a picture's bytes
    1: ("..#..", ".##..", "..#..", "..#..", "..#..", "..#..", ".###."),
    2: (".###.", "#...#", "....#", "...#.", "..#..", ".#...", "#####"),
    3: (".###.", "#...#", "....#", "..##.", "....#", "#...#", ".###."),
    4: ("...#.", "..##.", ".#.#.", "#..#.", "#####", "...#.", "...#."),
    5: ("#####", "#....", "####.", "....#", "....#", "#...#", ".###."),
    6: (".###.", "#....", "#....", "####.", "#...#", "#...#", ".###."),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    kind "objects": nine entries (color, shape) or None; "digits": nine numbers 1..6; "arrows": nine
    names of directions; "bars": three entries (color, height in units 1..6), left to right.
    """

    kind: str
    items: tuple


def cell_name(cell: int) -> str:
    """Name of cell 0..8: 0 is "A1", 1 is "B1", 3 is "A2"."""
    return "ABC"[cell % 3] + "123"[cell // 3]


def neighbor(cell: int, direction: str) -> int | None:
    """The cell one step from `cell` in `direction`, or None outside the grid."""
    down, right = DIRECTIONS[direction]
    row, column = cell // 3 + down, cell % 3 + right
    return row * 3 + column if 0 <= row < 3 and 0 <= column < 3 else None


@cache
def _shape_mask(shape: str, radius: int) -> np.ndarray:
    """Boolean mask [28, 28] of a centred shape of `radius` px."""
    image = Image.new("1", (CELL_PX, CELL_PX))
    draw = ImageDraw.Draw(image)
    middle = CELL_PX / 2 - 0.5
    low, high = middle - radius, middle + radius
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=1)
    elif shape == "square":
        inset = radius * 0.15
        draw.rectangle((low + inset, low + inset, high - inset, high - inset), fill=1)
    elif shape == "triangle":
        draw.polygon([(middle, low), (high, high), (low, high)], fill=1)
    elif shape == "cross":
        arm = radius * 0.36
        draw.rectangle((middle - arm, low, middle + arm, high), fill=1)
        draw.rectangle((low, middle - arm, high, middle + arm), fill=1)
    else:
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
        points = zip(middle + radii * np.cos(angles), middle + radii * np.sin(angles), strict=True)
        draw.polygon(list(points), fill=1)
    return np.array(image)


@cache
def _glyph_mask(digit: int, scale: int) -> np.ndarray:
    """Boolean mask [28, 28] of a centred digit, `scale` px a dot."""
    dots = np.array([[dot == "#" for dot in line] for line in GLYPHS[digit]])
    dots = dots.repeat(scale, 0).repeat(scale, 1)
    mask = np.zeros((CELL_PX, CELL_PX), bool)
    top, left = (CELL_PX - dots.shape[0]) // 2, (CELL_PX - dots.shape[1]) // 2
    mask[top : top + dots.shape[0], left : left + dots.shape[1]] = dots
    return mask


@cache
def _arrow_mask(direction: str, reach: int) -> np.ndarray:
    """Boolean mask [28, 28] of an arrow through the middle, `reach` px from middle to tip."""
    image = Image.new("1", (CELL_PX, CELL_PX))
    draw = ImageDraw.Draw(image)
    middle = CELL_PX / 2 - 0.5
    tip, half = middle - reach, reach * 0.6
    draw.polygon([(middle, tip), (middle + half, middle), (middle - half, middle)], fill=1)
    draw.rectangle((middle - 2, middle, middle + 2, middle + reach), fill=1)
    turns = {"up": 0, "left": 1, "down": 2, "right": 3}[direction]
    return np.rot90(np.array(image), turns).copy()


def _paint(canvas: np.ndarray, mask: np.ndarray, top: int, left: int, color: np.ndarray) -> None:
    """Paint `mask` with its corner at (top, left); what leaves the picture is cut off."""
    y0, x0 = max(0, -top), max(0, -left)
    y1, x1 = min(CELL_PX, SIDE_PX - top), min(CELL_PX, SIDE_PX - left)
    canvas[top + y0 : top + y1, left + x0 : left + x1][mask[y0:y1, x0:x1]] = color


def _shade(color: tuple[int, int, int], spread: int, rng: np.random.Generator) -> np.ndarray:
    """`color` moved by up to `spread` levels in each channel."""
    moved = np.array(color) + rng.integers(-spread, spread + 1, 3)
    return moved.clip(0, 255).astype(np.uint8)


def render(scene: Scene, rng: np.random.Generator, hard: bool = False) -> np.ndarray:
    """Picture of `scene`: uint8 array [84, 84, 3].

    Plain pictures vary by a pixel and a few levels. Hard ones have small things off their cell's
    middle, shifted colors, a tinted ground and speckles.
    """
    jitter, spread = (3, 22) if hard else (1, 6)
    ground = rng.integers(205, 256, 3) if hard else np.array([248, 248, 248])
    canvas = np.empty((SIDE_PX, SIDE_PX, 3), np.uint8)
    canvas[:] = ground.astype(np.uint8)
    line = (ground * 0.86).astype(np.uint8)
    step = UNIT_PX if scene.kind == "bars" else CELL_PX
    canvas[step - 1 :: step, :] = line
    if scene.kind != "bars":
        canvas[:, CELL_PX - 1 :: CELL_PX] = line
    if scene.kind == "bars":
        for column, (color, height) in enumerate(scene.items):
            width = int(rng.integers(8, 13) if hard else rng.integers(15, 18))
            left = (
                column * CELL_PX + (CELL_PX - width) // 2 + int(rng.integers(-jitter, jitter + 1))
            )
            canvas[SIDE_PX - height * UNIT_PX :, left : left + width] = _shade(
                COLORS[color], spread, rng
            )
    else:
        for cell, item in enumerate(scene.items):
            if item is None:
                continue
            if scene.kind == "objects":
                radius = int(rng.integers(7, 10) if hard else rng.integers(10, 12))
                mask, color = _shape_mask(item[1], radius), COLORS[item[0]]
            elif scene.kind == "digits":
                mask, color = _glyph_mask(item, 2 if hard else 3), INK
            else:
                reach = int(rng.integers(8, 10) if hard else rng.integers(10, 12))
                mask, color = _arrow_mask(item, reach), INK
            down, right = rng.integers(-jitter, jitter + 1, 2)
            top, left = cell // 3 * CELL_PX + int(down), cell % 3 * CELL_PX + int(right)
            _paint(canvas, mask, top, left, _shade(color, spread, rng))
    if hard:
        where = rng.integers(0, SIDE_PX, (2, 60))
        canvas[where[0], where[1]] = rng.integers(90, 220, (60, 1)).astype(np.uint8)
    return canvas
