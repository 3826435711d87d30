"""Which rows are trained on, which are held out and which are left out, decided before writing."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable

from .chains import Chain

TRAIN, LEFT_OUT, META, VALIDATION = range(4)  # what a chain is used for


class Choice:
    """Sees all chains once and then decides; a chain takes some 30 bytes until then.

    Args:
        seed: of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._domains: dict[str, int] = {}
        self._rows = array("L")  # row of each chain
        self._domain = array("L")  # domain of each chain
        self._keys = array("Q")  # question of each chain
        self._right = array("b")  # 1, 0, or -1 where it is not certain
        self.uses = bytearray()  # what each chain is used for

    def see(self, row: int, chain: Chain) -> None:
        """Take note of a chain.

        Args:
            row: its number; all chains of a row are used for training together, or none is.
        """
        self._rows.append(row)
        self._domain.append(self._domains.setdefault(chain.domain, len(self._domains)))
        self._keys.append(chain.key)
        self._right.append(-1 if chain.right is None else chain.right)
        self.uses.append(TRAIN)

    def hold_out(self, number: int, sets: Iterable[int]) -> dict[int, int]:
        """Split off the questions of held-out sets; returns how many chains each set got.

        Each set gets ``number`` chains, an even number, half of them right, if there are so many.
        Every question with right and wrong chains gives equally many of both. If these do not
        suffice, the meta set takes pairs of chains of two questions. No other chain of a question
        that was taken is used for anything.

        Args:
            sets: of :data:`META` and :data:`VALIDATION`.
        """
        got = dict.fromkeys(sets, 0)
        chains: dict[int, tuple[list[int], list[int]]] = {}
        for index, (key, right) in enumerate(zip(self._keys, self._right, strict=True)):
            if right >= 0:
                chains.setdefault(key, ([], []))[right].append(index)
        order = list(chains)
        self._random.shuffle(order)
        taken: set[int] = set()
        for key in order:
            use = min(got, key=lambda name: got[name])
            pairs = min(*map(len, chains[key]), (number - got[use]) // 2)
            if pairs:
                taken.add(key)
                self._use(use, [*chains[key][0][:pairs], *chains[key][1][:pairs]], got)
        if META in got:
            sure = ([], []) if got[META] >= number else self._sure(order, chains)
            for pair in zip(*sure, strict=False):
                if got[META] < number:
                    taken.update(pair)
                    self._use(META, [chains[pair[0]][0][0], chains[pair[1]][1][0]], got)
        for index, key in enumerate(self._keys):
            if key in taken and self.uses[index] == TRAIN:
                self.uses[index] = LEFT_OUT
        return got

    @staticmethod
    def _sure(
        order: list[int], chains: dict[int, tuple[list[int], list[int]]]
    ) -> tuple[list[int], list[int]]:
        """The questions with wrong chains only, and those with right ones only."""
        wrong = [key for key in order if not chains[key][1]]
        right = [key for key in order if not chains[key][0]]
        return wrong, right

    def _use(self, use: int, indices: list[int], got: dict[int, int]) -> None:
        for index in indices:
            self.uses[index] = use
        got[use] += len(indices)

    def draw(self, per_domain: int | None, limit: int | None) -> None:
        """Leave out rows for training at random until these numbers of them are left."""
        rows: dict[int, list[int]] = {}  # domain -> rows
        for row, domain, use in zip(self._rows, self._domain, self.uses, strict=True):
            if use == TRAIN and (domain not in rows or rows[domain][-1] != row):
                rows.setdefault(domain, []).append(row)
        kept: list[int] = []
        for numbers in rows.values():
            few = per_domain is not None and per_domain < len(numbers)
            kept += self._random.sample(numbers, per_domain) if few else numbers
        if limit is not None and limit < len(kept):
            kept = self._random.sample(kept, limit)
        wanted = set(kept)
        for index, row in enumerate(self._rows):
            if self.uses[index] == TRAIN and row not in wanted:
                self.uses[index] = LEFT_OUT
