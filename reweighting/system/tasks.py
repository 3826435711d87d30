"""Many items worked on concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


async def for_each(
    items: Sequence[Item],
    work: Callable[[Item], Awaitable[Result]],
    workers: int,
    bar: tqdm,
    status: Callable[[], str],
) -> list[Result]:
    """The results of ``work`` on all items, begun in order, at most ``workers`` at a time.

    Memory does not grow with the number of items, and the first ones finish early, so that the
    progress bar can estimate the time left.

    Args:
        status: what the bar shows after each item.
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
