"""Questions in groups of similar words: k-means over hashed bags of words, with numpy alone."""

from __future__ import annotations

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

WIDTH = 256  # of the vector of a text: words that share a place are told apart by the others
ROUNDS = 20  # at most, of k-means
BLOCK = 8192  # texts whose distances are in memory at once
WORD = re.compile(r"\w+")


def vectors(texts: Sequence[str]) -> np.ndarray:
    """Texts as unit vectors ``[texts, WIDTH]`` (float32): words hashed, rare ones counting more.

    A word adds its sign times 1 + log(texts / texts with it) at the place that its hash names, each
    time that it occurs. A word of one text alone says nothing of what texts have in common and is
    left out; texts without another word share a place.
    """
    bags = [Counter(map(str.lower, WORD.findall(text))) for text in texts]
    found_in = Counter(word for bag in bags for word in bag)
    made = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for row, bag in zip(made, bags, strict=True):
        shared = {word: times for word, times in bag.items() if found_in[word] > 1}
        for word, times in (shared or {"": 1}).items():
            code = zlib.crc32(word.encode())  # the same in every process, unlike hash()
            sign = 1 if code & 1 else -1
            weight = 1 + math.log(len(texts) / max(1, found_in[word]))
            row[(code >> 1) % WIDTH] += sign * times * weight
    # Two words of one text may cancel out, but a text of nothing else is not worth a case.
    return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)


def cluster(texts: Sequence[str], count: int, rng: random.Random) -> list[int]:
    """The cluster of every text, from 0 to at most ``count`` - 1 (k-means, Lloyd's algorithm).

    It starts from different texts, drawn by k-means++: the farther from those drawn already, the
    likelier. Where texts repeat each other there may be fewer clusters.
    """
    points = vectors(texts)
    centres = points[[rng.randrange(len(texts))]]
    nearest = _squared_distances(points, centres[0])
    while len(centres) < count and nearest.any():
        drawn = rng.random() * nearest.sum()
        index = min(int(np.searchsorted(nearest.cumsum(), drawn)), len(points) - 1)
        centres = np.concatenate([centres, points[[index]]])
        nearest = np.minimum(nearest, _squared_distances(points, points[index]))
    labels = _nearest(points, centres)
    for _ in range(ROUNDS):
        members = np.bincount(labels, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        filled = members > 0  # a centre that has lost all its texts stays where it is
        centres[filled] = sums[filled] / members[filled, None]
        before, labels = labels, _nearest(points, centres)
        if (before == labels).all():
            break
    return labels.tolist()


def _squared_distances(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Of unit vectors, ``[texts]``; what may be rounding is 0."""
    found = 2 - 2 * (points @ centre).astype(np.float64)
    return np.where(found < 1e-5, 0.0, found)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre of every point, ``[texts]``."""
    squares = (centres**2).sum(axis=1)
    return np.concatenate(
        [
            (squares - 2 * points[start : start + BLOCK] @ centres.T).argmin(axis=1)
            for start in range(0, len(points), BLOCK)
        ]
    )
