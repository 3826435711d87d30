"""The reward model for users: loaded and saved by name, images and texts in, scores out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch

from ..records.images import Images, listed
from ..records.samples import CandidatesSample
from ..records.steps import Prompt, check_count, layout
from ..records.texts import text_fault, without_image_tags
from ..system.checkpoints.finding import (
    BASE_DIRECTORY,
    HEAD_FILE,
    SCORE_HEAD_FILE,
    CheckpointError,
    base_source,
)
from ..system.checkpoints.opening import load_head, open_base, open_processor, saved_head
from ..system.files import json_line, write_text
from ..system.terminal import printable
from .aggregation import AGGREGATIONS, aggregate, select
from .encoder import PromptEncoder, response_prompts
from .network import RewardNetwork
from .prefix_tree import pack
from .scoring import score_candidates

# Options of the encoder that are saved with a model, beside the head itself.
PROMPT_OPTIONS = ("max_image_size", "min_pixels", "max_pixels", "step_pattern")
WRONG_TREES = (
    "its prefix trees give other scores than separate forwards: a forward pass a prompt instead"
)
SEPARATE_FORWARDS = "prefix trees are not tested for this architecture: a forward pass a prompt"
Response: TypeAlias = "str | Sequence[str]"  # a text, or its steps


@contextmanager
def must_fit(path: str | Path, *errors: type[Exception]) -> Iterator[None]:
    """Name the checkpoint at ``path`` when its processor and its model do not fit each other.

    Parts of different models that are put together raise any of ``errors``.

    Raises:
        CheckpointError: one of them was raised, or the model gives no finite score.
    """
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except FloatingPointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except errors as error:
        reason = printable(str(error) or type(error).__name__)
        raise CheckpointError(
            f"{path}: the model cannot score a small prompt: {reason}; its processor, tokenizer or "
            "config.json belong to another model or are damaged"
        ) from error


class RewardModel(RewardNetwork):
    """The process reward model: :class:`~.network.RewardNetwork` on texts and images.

    model = RewardModel.from_pretrained("weights/run")
    model.score(image, question, response)     # V of every step prefix
    model.select(image, question, responses)   # index of the best response
    """

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        processor: str | None = None,
        fresh_head: bool = False,
        encoder: PromptEncoder | None = None,
        **encoder_options,
    ) -> RewardModel:
        """Load a reward model.

        Args:
            path: a directory written by training (``base_model/`` and the head), or any
                vision-language checkpoint or hub name, which gets a fresh linear head.
            dtype: of the parameters; training keeps fp32 master weights.
            device: by default a CUDA device if there is one, otherwise the CPU.
            processor: directory or hub name of the processor; by default the checkpoint's own or,
                if it has none, that of the base model which the checkpoint names.
            fresh_head: do not warn about a checkpoint without a trained head: it is the start of
                training.
            encoder: if one is there already, no processor is opened for another.
            encoder_options: passed to :class:`~.encoder.PromptEncoder`; they override what the
                directory says.

        Raises:
            CheckpointError: there is no such model, a file is damaged, the weights do not fit the
                architecture or give no finite score, or a directory written by training lacks its
                head.
        """
        source = base_source(path)
        if encoder is None:
            options = saved_head(path) | encoder_options
            found, note = open_processor(source, processor)
            if note:
                warnings.warn(note, stacklevel=2)
        base_model = open_base(source, dtype)
        with must_fit(path, AttributeError, KeyError, TypeError):
            model = cls(base_model, encoder or PromptEncoder(found, **options))
        if not model.packs_trees:
            kind = type(base_model).__name__
            warnings.warn(f"{kind}: {SEPARATE_FORWARDS}", stacklevel=2)
        if model.LN is not None:
            state = load_head(path, model.LN.in_features)
            if state is not None:
                model.LN.load_state_dict(state)
            elif not fresh_head:
                warnings.warn(
                    f"{path}: has no trained reward head ({HEAD_FILE}): scores are random until it "
                    "is trained",
                    stacklevel=2,
                )
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with must_fit(path, Exception):
            model.encoder.check()
            right = model.check_trees()
        if not right:
            warnings.warn(f"{type(base_model).__name__}: {WRONG_TREES}", stacklevel=2)
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``base_model/`` (with the processor) and the head into ``directory``."""
        directory = Path(directory)
        self.base_model.save_pretrained(directory / BASE_DIRECTORY, state_dict=self._merged_state())
        if self.encoder is not None:
            self.encoder.processor.save_pretrained(directory / BASE_DIRECTORY)
        head: dict[str, str | int] = {"score_head": "linear"}
        if self.LN is not None:
            torch.save(self.LN.state_dict(), directory / HEAD_FILE)
        else:
            head = {"score_head": "plus_minus", "system": self.encoder.system}
        for name in PROMPT_OPTIONS:
            if (value := getattr(self.encoder, name, None)) is not None:
                head[name] = value
        write_text(directory / SCORE_HEAD_FILE, json_line(head))

    def log_odds(
        self, image: Images, question: str, responses: Sequence[Response]
    ) -> list[list[float]]:
        """z of every step prefix of every response, shortest first; all in one prefix tree.

        Args:
            image: a path, an http(s) URL, a ``data:`` URI, the bytes of a file, a PIL image, an
                array or a tensor, see :data:`~..records.images.ACCEPTED`; a list of these, which
                stand before the question in this order; or None for text alone.
            question: as in the train records; a tag ``<image>`` is left out as there.
            responses: each as one text, which is split into steps as the records are, or as the
                list of its steps, the last of which should not contain the final answer. An empty
                response has no steps.

        Raises:
            TypeError, ValueError: an argument is none of these, or a text holds a control token.
            OSError: the image cannot be read.
        """
        chains = self._chains(question, responses)
        prompts = [prompt for chain in chains for prompt in chain]
        flat = iter(self._scored(image, prompts) if prompts else ())
        return [[next(flat) for _ in chain] for chain in chains]

    def log_odds_many(
        self,
        items: Iterable[tuple[Images, str, Sequence[Response]]],
        max_tokens_per_batch: int = 8192,
    ) -> list[list[list[float]]]:
        """:meth:`log_odds` of many questions, each an image, a question and responses.

        Args:
            max_tokens_per_batch: questions share a forward pass up to this many tokens.

        Raises:
            TypeError: an item is no such triple.
            What :meth:`log_odds` raises; the message names the item, counted from 1.
        """
        return self._scored_many(self._samples(items), max_tokens_per_batch)

    def score_many(
        self,
        items: Iterable[tuple[Images, str, Sequence[Response]]],
        aggregation: str = "mean_log_odds",
        max_tokens_per_batch: int = 8192,
    ) -> list[dict]:
        """:meth:`score`, :meth:`chain_score` and :meth:`select` for many questions at once.

        Arguments and errors are those of :meth:`log_odds_many` and :meth:`chain_score`.

        Returns:
            One row per response, which ``pandas.DataFrame`` takes: the index of its ``item`` and of
            the ``response`` in it, the number of ``steps``, their ``scores`` V, the ``chain_score``
            and whether it is ``chosen`` in its item.
        """
        _check_aggregation(aggregation)
        rows = []
        for item, log_odds in enumerate(self.log_odds_many(items, max_tokens_per_batch)):
            chosen = select(log_odds, aggregation) if log_odds else None
            for response, z in enumerate(log_odds):
                rows.append(
                    {
                        "item": item,
                        "response": response,
                        "steps": len(z),
                        "scores": torch.sigmoid(torch.tensor(z)).tolist(),
                        "chain_score": aggregate(z, aggregation),
                        "chosen": response == chosen,
                    }
                )
        return rows

    def steps_many(
        self,
        items: Iterable[tuple[Images, str, Sequence[Response]]],
        max_tokens_per_batch: int = 8192,
    ) -> list[dict]:
        """:meth:`steps` for many questions at once.

        Arguments and errors are those of :meth:`log_odds_many`.

        Returns:
            One row per step, which ``pandas.DataFrame`` takes: the index of its ``item`` and of the
            ``response`` in it, its ``number`` from 1, and what :meth:`steps` gives.
        """
        samples = self._samples(items)
        scored = self._scored_many(samples, max_tokens_per_batch)
        return [
            {"item": item, "response": response, "number": number, **row}
            for item, (sample, log_odds) in enumerate(zip(samples, scored, strict=True))
            for response, (text, z) in enumerate(zip(sample.candidates, log_odds, strict=True))
            for number, row in enumerate(self._rows(sample.question, text, z), start=1)
        ]

    def _samples(
        self, items: Iterable[tuple[Images, str, Sequence[Response]]]
    ) -> list[CandidatesSample]:
        """The items with their texts checked, numbered from 1."""
        samples = []
        for number, item in enumerate(items, start=1):
            if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 3:
                raise TypeError(f"item {number} must be an image, a question and its responses")
            image, question, responses = item
            question, responses = self._texts(question, responses, f"item {number}: ")
            samples.append(
                CandidatesSample(
                    record=number,
                    question=question,
                    candidates=responses,  # type: ignore[arg-type]  # or lists of steps
                    images=tuple(listed(image)),  # type: ignore[arg-type]  # or any sources
                    true_false=None,
                    answer=None,
                    dataset=None,
                )
            )
        return samples

    def _scored_many(
        self, samples: Sequence[CandidatesSample], max_tokens_per_batch: int
    ) -> list[list[list[float]]]:
        batches = score_candidates(self, samples, max_tokens_per_batch, called="item")
        return [log_odds for batch in batches for log_odds in batch]

    def _rows(self, question: str, response: Response, log_odds: Sequence[float]) -> list[dict]:
        """One row per step of a response whose texts are checked and whose z are known."""
        chain = response_prompts(question, response, self.encoder.step_pattern)
        scores = torch.sigmoid(torch.tensor(log_odds)).tolist()
        return [
            {"step": prompt.steps[-1].strip(), "log_odds": z, "score": score}
            for prompt, z, score in zip(chain, log_odds, scores, strict=True)
        ]

    def score(self, image: Images, question: str, response: Response) -> list[float]:
        """V of every step prefix of ``response``, shortest first, each in (0, 1).

        Arguments and errors are those of :meth:`log_odds`.
        """
        [log_odds] = self.log_odds(image, question, [response])
        return torch.sigmoid(torch.tensor(log_odds)).tolist()

    def steps(self, image: Images, question: str, response: Response) -> list[dict]:
        """One row per step of ``response``: its text ``step``, ``log_odds`` z and ``score`` V.

        Arguments and errors are those of :meth:`log_odds`.
        """
        [log_odds] = self.log_odds(image, question, [response])
        question, [response] = self._texts(question, [response])
        return self._rows(question, response, log_odds)

    def chain_score(
        self, image: Images, question: str, response: Response, aggregation: str = "mean_log_odds"
    ) -> float:
        """One number for a whole response, by which :meth:`select` compares; larger is better.

        Args:
            aggregation: a name in :data:`~.aggregation.AGGREGATIONS`.
        """
        _check_aggregation(aggregation)
        [log_odds] = self.log_odds(image, question, [response])
        return aggregate(log_odds, aggregation)

    def select(
        self,
        image: Images,
        question: str,
        responses: Sequence[Response],
        aggregation: str = "mean_log_odds",
    ) -> int:
        """Index of the response with the highest :meth:`chain_score`, the first one among equals.

        Raises:
            ValueError: there are no responses.
            What :meth:`log_odds` raises.
        """
        _check_aggregation(aggregation)
        log_odds = self.log_odds(image, question, responses)
        if not log_odds:
            raise ValueError("there are no responses to select from")
        return select(log_odds, aggregation)

    @torch.no_grad()
    def _scored(self, image: Images, prompts: list[Prompt]) -> list[float]:
        return self(pack([self.encoder.encode(image, prompts)]).to(self.device)).tolist()

    def _chains(self, question: str, responses: Sequence[Response]) -> list[list[Prompt]]:
        question, responses = self._texts(question, responses)
        pattern = self.encoder.step_pattern
        return [response_prompts(question, response, pattern) for response in responses]

    def _texts(
        self, question: str, responses: Sequence[Response], where: str = ""
    ) -> tuple[str, list[str | list[str]]]:
        """The texts without image tags, checked; error messages begin with ``where``."""
        if isinstance(responses, str) or not isinstance(responses, Sequence):
            kind = type(responses).__name__
            raise TypeError(f"{where}responses must be a list of responses, is {kind}")
        cleaned: list[str | list[str]] = []
        for number, response in enumerate(responses, start=1):
            cleaned.append(self._response(response, f"{where}response {number}"))
        return self._text(question, f"{where}the question"), cleaned

    def _response(self, response: Response, name: str) -> str | list[str]:
        steps: Sequence[str] = ()
        if isinstance(response, Sequence) and not isinstance(response, str):
            whole, steps, count = None, response, len(response)
        else:
            whole = self._text(response, name)
            count = len(layout(whole, self.encoder.step_pattern).steps)
        try:
            check_count(count)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        if whole is not None:
            return whole
        return [self._text(step, f"{name}: step {k}") for k, step in enumerate(steps, start=1)]

    def _text(self, text: object, name: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, is {type(text).__name__}")
        text = without_image_tags(text)
        if fault := text_fault(text):
            kind, *values = fault
            raise ValueError(f"{name} {kind.format(*values)}")
        if token := self.encoder.control_token(text):
            raise ValueError(f"{name} holds the control token {token}")
        return text


def _check_aggregation(name: str) -> None:
    if name not in AGGREGATIONS:
        raise ValueError(f"aggregation {name!r} is none of {', '.join(AGGREGATIONS)}")
