"""Scoring through a vLLM server that serves an exported model."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from ..export.recipe import RECIPE_FILE, Recipe, read_recipe
from ..export.vllm import PATHS, read_score, request
from ..records.images import source_key, source_name
from ..records.samples import CandidatesSample
from ..records.steps import Prompt
from ..reward_model.aggregation import LogOdds
from ..reward_model.encoder import response_prompts
from ..system import terminal
from ..system.journal import Journal
from ..system.server.endpoint import Endpoint
from ..system.server.errors import ItemError, ServerError
from ..system.tasks import for_each
from .identity import SAMPLES_FILE
from .results import write_lines

JOURNAL_FILE = "server.journal.jsonl"  # beside the samples: every score as it arrived
MAX_LISTED = 20  # questions without scores that a message lists
# By how much a server's log-odds may differ from those in the recipe without a word: it computes in
# another precision and with other kernels.
UNLIKE = 0.25


class ServerScorer:
    """A :class:`~.scorers.Scorer` behind a vLLM server.

    Every prefix is a request of its own, since the server caches what prefixes have in common. The
    prefixes of a chain follow each other, shortest first, and many chains are on their way at a
    time. Each score is kept as soon as it is there.

    Args:
        arguments: the flags of :func:`~.command.add_scoring_flags`.

    Raises:
        FileError: the recipe is damaged.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.recipe = read_recipe(arguments.recipe)
        self.step_pattern = self.recipe.step_pattern
        self.fingerprint = self.recipe.digest
        self._arguments = arguments
        self._known = False  # whether the server was seen to serve the model of the recipe

    def score(
        self, samples: Sequence[CandidatesSample], folder: Path, aggregations: Sequence[str]
    ) -> list[dict]:
        a = self._arguments
        journal = Journal(folder / JOURNAL_FILE)
        try:
            questions = [_Question(sample, self.recipe, a.step_pattern) for sample in samples]
            lost = asyncio.run(self._ask(questions, journal, folder.name))
            found = {
                question.sample.record: question.log_odds(journal)
                for question in questions
                if question.sample.record not in lost
            }
        finally:
            journal.close()
        if lost:
            self._report(lost, len(samples))
        kept = [sample for sample in samples if sample.record in found]
        return write_lines(kept, list(found.values()), folder / SAMPLES_FILE, aggregations)

    async def _ask(
        self, questions: Sequence[_Question], journal: Journal, title: str
    ) -> dict[int, str]:
        """Ask for all scores that the journal lacks; returns the lost records with the reason."""
        chains = [
            (question, keys)
            for question in questions
            for keys in question.keys
            if not all(key in journal for key in keys)
        ]
        if not chains:
            return {}
        a = self._arguments
        url = a.server.rstrip("/").removesuffix("/v1")  # the two paths are no part of the API v1
        endpoint = Endpoint(url, "VLLM_API_KEY", a.concurrency, a.timeout, a.max_retries)
        calls = _Calls(endpoint, self.recipe, journal)
        lost: dict[int, str] = {}

        async def work(item: tuple[_Question, list[str]]) -> None:
            question, keys = item
            for step, key in enumerate(keys, start=1):
                try:
                    await calls.score(question, key)
                except ItemError as error:  # the longer prefixes wait for another run
                    lost.setdefault(question.sample.record, f"step {step}: {error}")
                    return

        def status() -> str:
            return f"{len(journal)} scores, {endpoint.retries} retries, {len(lost)} lost"

        try:
            if not self._known:
                await self._compare(endpoint)
            with tqdm(total=len(chains), desc=title, unit="chain") as bar:
                await for_each(chains, work, a.concurrency, bar, status)
        finally:
            await endpoint.close()
        return lost

    async def _compare(self, endpoint: Endpoint) -> None:
        """Ask for the example of the recipe, before anything else is sent.

        Raises:
            ServerError: the server gives no scores.
        """
        recipe = self.recipe
        image = recipe.image_url(recipe.image)
        found = []
        for prompt in response_prompts(recipe.question, recipe.steps):
            ask = partial(request, recipe.turns(prompt, 1), [image])
            try:
                z, _ = await endpoint.post(PATHS[recipe.score_head], ask, read_score)
            except ItemError as error:
                raise ServerError(f"the server does not score the example: {error}") from error
            found.append(z)
        pairs = list(zip(found, recipe.log_odds, strict=True))
        off = max(abs(z - known) for z, known in pairs)
        # A server that gives V where z is asked for may come near z by chance, but nearer to V.
        if off > max(abs(z - 1 / (1 + math.exp(-known))) for z, known in pairs) or off > UNLIKE:
            theirs, ours = (", ".join(f"{z:.3f}" for z in row) for row in (found, recipe.log_odds))
            terminal.warning(
                f"the server gives the example in {RECIPE_FILE} the log-odds {theirs}, the "
                f"exported model {ours}: make sure that it serves this model"
            )
        self._known = True

    def _report(self, lost: dict[int, str], total: int) -> None:
        """Leave questions out with ``--skip_bad_records``; otherwise stop.

        Raises:
            ServerError: questions may not be left out.
        """
        lines = [f"record {record}: {why}" for record, why in sorted(lost.items())[:MAX_LISTED]]
        said = f"{len(lost):,} of {total:,} questions lack scores"
        if self._arguments.skip_bad_records and len(lost) < total:
            terminal.warning("\n".join([f"{said} and are left out:", *lines]))
            return
        raise ServerError("\n".join([f"{said}:", *lines, "--skip_bad_records leaves them out"]))


class _Question:
    """A question with the prompts of its candidates, each under a key of the journal.

    The journal lies in a folder that belongs to one model and file (see :mod:`.identity`), so the
    key needs to tell its prompts apart only. Equal candidates of a question share theirs.
    """

    def __init__(self, sample: CandidatesSample, recipe: Recipe, pattern: str | None) -> None:
        self.sample = sample
        self.prompts: dict[str, Prompt] = {}
        self.keys: list[list[str]] = []  # of the prefixes of each candidate, shortest first
        for candidate in sample.candidates:
            chain = response_prompts(sample.question, candidate, pattern)
            keys = [self._key(recipe.turns(prompt, len(sample.images))) for prompt in chain]
            self.prompts.update(zip(keys, chain, strict=True))
            self.keys.append(keys)

    def _key(self, turns: list[dict]) -> str:
        text = json.dumps([self.sample.record, turns])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def log_odds(self, journal: Journal) -> LogOdds:
        return [[journal.get(key)["log_odds"] for key in keys] for keys in self.keys]


class _Calls:
    """Asks for each score once, however many wait for it."""

    def __init__(self, endpoint: Endpoint, recipe: Recipe, journal: Journal) -> None:
        self._endpoint = endpoint
        self._recipe = recipe
        self._journal = journal
        self._under_way: dict[str, asyncio.Task] = {}

    async def score(self, question: _Question, key: str) -> None:
        """Wait until the journal has a score.

        Raises:
            ItemError: it is lost.
            ServerError: every other one would be, too.
        """
        if key in self._journal:
            return
        if key not in self._under_way:
            self._under_way[key] = asyncio.create_task(self._ask(question, key))
        await self._under_way[key]

    async def _ask(self, question: _Question, key: str) -> None:
        images = question.sample.images

        def body() -> dict:
            turns = self._recipe.turns(question.prompts[key], len(images))
            return request(turns, [_image_url(self._recipe, source) for source in images])

        try:
            path = PATHS[self._recipe.score_head]
            z, tokens = await self._endpoint.post(path, body, read_score)
            self._journal.append(key, {"log_odds": z, "tokens_in": tokens, "tokens_out": 0})
        finally:
            del self._under_way[key]


def _image_url(recipe: Recipe, source: str) -> str:
    """An image as it is sent.

    Raises:
        ItemError: it cannot be read any more.
    """
    try:
        return _made_url(recipe, source, source_key(source))
    except OSError as error:
        raise ItemError(f"{source_name(source)}: {error}") from error


# Chains are worked on in order, so few images are in use at a time. ``key`` changes with the file.
@lru_cache(maxsize=64)
def _made_url(recipe: Recipe, source: str, key: str) -> str:
    return recipe.image_url(source)
