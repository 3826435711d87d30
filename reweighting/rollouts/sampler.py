"""Rollouts by index, each sampled only once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ..records.images import source_name
from ..system.journal import Journal
from ..system.server.errors import ItemError
from .reasoner import Query, Reasoner, Rollout, prepare_image


class Sampler:
    """Rollouts by index: from the journal if it has them, otherwise from the reasoner.

    The key of a rollout covers everything it depends on (model, settings, seed, question, image,
    prefix) and its index. So a journal never answers for another run, and equal prefixes share
    their rollouts.
    """

    def __init__(self, reasoner: Reasoner, journal: Journal, seed: int) -> None:
        self.reasoner = reasoner
        self.journal = journal
        self.sampled = 0  # rollouts that this run has sampled
        self.lost: dict[str, ItemError] = {}
        self._setting = json.dumps([reasoner.settings, seed], sort_keys=True)
        self._calls: dict[str, asyncio.Task] = {}  # in flight, by key

    def keys(self, query: Query, indices: Iterable[int]) -> list[str]:
        """The keys of a query's rollouts in the journal.

        Raises:
            ItemError: the image cannot be read.
        """
        try:
            image = prepare_image(query.image, self.reasoner.settings["max_image_size"])
        except OSError as error:
            raise ItemError(f"{source_name(query.image)}: {error}") from error
        of_query = json.dumps([self._setting, query.question, query.prefix, image.digest])
        return [hashlib.sha256(f"{of_query}/{i}".encode()).hexdigest()[:32] for i in indices]

    async def rollouts(self, query: Query, indices: Sequence[int]) -> list[Rollout | ItemError]:
        """The rollouts of ``indices``, or for a lost one the reason.

        Raises:
            ServerError: no other rollout would succeed either.
        """
        try:
            keys = self.keys(query, indices)
        except ItemError as error:
            return [error] * len(indices)
        known = (self.journal, self.lost, self._calls)
        new = [key for key in keys if not any(key in place for place in known)]
        size = self.reasoner.rollouts_per_call
        for start in range(0, len(new), size):
            together = new[start : start + size]
            call = asyncio.create_task(self._call(query, together))
            self._calls.update(dict.fromkeys(together, call))
        await asyncio.gather(*{self._calls[key] for key in keys if key in self._calls})
        return [self.lost[key] if key in self.lost else self._recorded(key) for key in keys]

    def _recorded(self, key: str) -> Rollout:
        record = self.journal.get(key)
        return Rollout(**{name: record[name] for name in Rollout.__dataclass_fields__})

    async def _call(self, query: Query, keys: list[str]) -> None:
        try:
            # 31 bits of the key: the same rollout has the same seed in every run.
            rollouts = await self.reasoner.sample(query, [int(key[:8], 16) >> 1 for key in keys])
        except ItemError as error:
            # A copy: the error itself keeps request and answer in memory, perhaps megabytes.
            self.lost.update(dict.fromkeys(keys, ItemError(error)))
        else:
            for key, rollout in zip(keys, rollouts, strict=True):
                self.journal.append(key, asdict(rollout))
            self.sampled += len(rollouts)
        finally:
            for key in keys:
                del self._calls[key]
