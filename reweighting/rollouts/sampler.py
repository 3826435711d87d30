"""Rollouts by index, each paid for once, and many items worked on side by side."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from tqdm import tqdm

from ..records.images import source_name
from .journal import Journal
from .reasoner import ItemError, Prompt, Reasoner, Rollout, prepare_image

Item = TypeVar("Item")
Result = TypeVar("Result")


class Sampler:
    """Rollouts by index: from the journal where it has them, else from the reasoner.

    A rollout is known by everything it depends on (model, settings, seed, question, image, prefix)
    and its index, so a journal never answers for another run, and equal prefixes share rollouts.
    """

    def __init__(self, reasoner: Reasoner, journal: Journal, seed: int) -> None:
        self.reasoner = reasoner
        self.journal = journal
        self.sampled = 0  # rollouts that this run has paid for
        self.lost: dict[str, ItemError] = {}
        self._setting = json.dumps([reasoner.settings, seed], sort_keys=True)
        self._calls: dict[str, asyncio.Task] = {}  # in flight, by key

    def keys(self, prompt: Prompt, indices: Iterable[int]) -> list[str]:
        """Names of a prompt's rollouts in the journal."""
        try:
            image = prepare_image(prompt.image, self.reasoner.settings["max_image_size"])
        except OSError as error:
            raise ItemError(f"{source_name(prompt.image)}: {error}") from error
        of_prompt = json.dumps([self._setting, prompt.question, prompt.prefix, image.digest])
        return [hashlib.sha256(f"{of_prompt}/{i}".encode()).hexdigest()[:32] for i in indices]

    async def rollouts(self, prompt: Prompt, indices: Iterable[int]) -> list[Rollout | ItemError]:
        """The rollouts of ``indices``, or why one is lost."""
        keys = self.keys(prompt, indices)
        known = (self.journal, self.lost, self._calls)
        new = [key for key in keys if not any(key in place for place in known)]
        size = self.reasoner.rollouts_per_call
        for start in range(0, len(new), size):
            together = new[start : start + size]
            call = asyncio.create_task(self._call(prompt, together))
            self._calls.update(dict.fromkeys(together, call))
        await asyncio.gather(*{self._calls[key] for key in keys if key in self._calls})
        return [self.lost[key] if key in self.lost else self._recorded(key) for key in keys]

    def _recorded(self, key: str) -> Rollout:
        record = self.journal.get(key)
        return Rollout(**{name: record[name] for name in Rollout.__dataclass_fields__})

    async def _call(self, prompt: Prompt, keys: list[str]) -> None:
        try:
            # 31 bits of the name: the same rollout has the same seed in every run.
            rollouts = await self.reasoner.sample(prompt, [int(key[:8], 16) >> 1 for key in keys])
        except ItemError as error:
            # A new one: to the one that was raised cling request and answer, megabytes perhaps.
            self.lost.update(dict.fromkeys(keys, ItemError(error)))
        else:
            for key, rollout in zip(keys, rollouts, strict=True):
                self.journal.append(key, asdict(rollout))
            self.sampled += len(rollouts)
        finally:
            for key in keys:
                del self._calls[key]


async def for_each(
    items: Sequence[Item],
    work: Callable[[Item], Awaitable[Result]],
    workers: int,
    bar: tqdm,
    status: Callable[[], str],
) -> list[Result]:
    """``work`` done on all items, at most ``workers`` at a time, begun in order.

    So few are open at any time that memory does not grow with the number of items, and early ones
    finish early, which the time left is estimated from.
    """
    results: list[Any] = [None] * len(items)
    queue = iter(enumerate(items))

    async def worker() -> None:
        for index, item in queue:
            results[index] = await work(item)
            bar.set_postfix_str(status(), refresh=False)
            bar.update()

    tasks = [asyncio.create_task(worker()) for _ in range(min(workers, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return results
