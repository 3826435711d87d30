"""A reasoner without a server: rollouts from a Hugging Face checkpoint with batched ``generate``.

All rollouts of a query share one prefill: image, question and steps go through the model once, and
the resulting key-value cache is repeated for every rollout. Each rollout has its own random
generator, so its text does not depend on which others are in the batch.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
)

from ..system.device import DTYPES, unusable
from .reasoner import MissingReasonerError, Query, Rollout, prepare_image, user_text


class Policy:
    """Samples from a vision-language checkpoint; a :class:`~.reasoner.Reasoner`.

    Args:
        path: checkpoint directory or hub name.
        instruction: what follows the question in the user's turn.
        temperature: of the sampling; 0 takes the likeliest token.
        max_tokens: most tokens of a response.
        max_image_size: longest side of an image in pixels.
        batch_size: rollouts of one query that are generated together.

    Raises:
        MissingReasonerError: the checkpoint or the device is missing.
    """

    def __init__(
        self,
        path: str | Path,
        instruction: str,
        temperature: float = 1.0,
        max_tokens: int = 1024,
        max_image_size: int = 512,
        batch_size: int = 8,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        if reason := unusable(device):
            raise MissingReasonerError(f"--device {device}: {reason}")
        try:
            self.processor = AutoProcessor.from_pretrained(path)
            model = AutoModelForImageTextToText.from_pretrained(path, dtype=DTYPES[precision])
        except (OSError, ValueError) as error:
            raise MissingReasonerError(f"--policy {path}: {error}") from error
        self.model = model.to(device).eval()
        # transformers 5.24 renamed the argument in every model and in generate.
        parameters = inspect.signature(self.model.forward).parameters
        self.cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self.instruction = instruction
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.max_image_size = max_image_size
        self.rollouts_per_call = batch_size
        self.settings = {
            "policy": str(path),
            "instruction": instruction,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "max_image_size": max_image_size,
        }
        self._busy = asyncio.Lock()  # one generation at a time

    async def sample(self, query: Query, seeds: Sequence[int]) -> list[Rollout]:
        async with self._busy:
            return await asyncio.to_thread(self._generate, query, seeds)

    async def close(self) -> None:
        pass

    def _inputs(self, query: Query) -> dict[str, torch.Tensor]:
        """The query's tokens and image; a prefix opens the assistant's turn."""
        text = user_text(query.question, self.instruction)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        chat = self.processor.apply_chat_template(
            [turn], tokenize=False, add_generation_prompt=True
        )
        if query.prefix:
            chat += query.prefix + "\n"
        image = Image.open(BytesIO(prepare_image(query.image, self.max_image_size).body))
        inputs = self.processor(text=[chat], images=[image.convert("RGB")], return_tensors="pt")
        return dict(inputs.to(self.model.device))

    @torch.inference_mode()
    def _generate(self, query: Query, seeds: Sequence[int]) -> list[Rollout]:
        inputs = self._inputs(query)
        length = inputs["input_ids"].shape[1]
        cache = DynamicCache(config=self.model.config.get_text_config())
        keep = {self.cache_argument: cache}
        self.model(**inputs, **keep, use_cache=True, logits_to_keep=1)
        cache.crop(-1)  # generate forwards the last token itself
        cache.batch_repeat_interleave(len(seeds))
        options = {"do_sample": False, "max_new_tokens": self.max_tokens}
        if self.temperature > 0:
            noise = GumbelNoise(seeds, self.temperature)
            options["logits_processor"] = LogitsProcessorList([noise])
        sequences = self.model.generate(
            input_ids=inputs["input_ids"].repeat(len(seeds), 1),
            attention_mask=inputs["attention_mask"].repeat(len(seeds), 1),
            **keep,
            **options,
        )
        return [self._rollout(tokens, length) for tokens in sequences[:, length:].tolist()]

    def _rollout(self, tokens: list[int], tokens_in: int) -> Rollout:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        stop = next((i for i, token in enumerate(tokens) if token in ends), None)
        text = self.processor.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
        if stop is None:
            return Rollout(text, "length", tokens_in, len(tokens))
        return Rollout(text, "stop", tokens_in, stop + 1)


class GumbelNoise(LogitsProcessor):
    """Turns the likeliest token into a sample: argmax(logits / T + Gumbel noise) is a draw from
    softmax(logits / T).

    Every row has its own generator on the CPU, so that neither the other rows nor the device
    change what is drawn.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size, dtype = scores.shape[-1], torch.float64
        uniform = torch.stack([torch.rand(size, generator=g, dtype=dtype) for g in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
        return scores.double() / self.temperature + noise.to(scores.device)
