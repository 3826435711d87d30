"""The process reward model: a vision-language model and a head on its vocabulary logits.

    V(x, prefix) = sigmoid(z)
    linear       z = LN(logits at the last position of the prompt)
    plus_minus   z = logit("+") - logit("-") there, so that V = P("+") / (P("+") + P("-"))

``linear`` is DreamPRM's (section 3) in its published form, so that published checkpoints load;
``plus_minus`` is DreamPRM-1.5's generative score, without a parameter of its own. With the loss
``bce`` it is the cross-entropy between the two labels. The published code takes the softmax over
the whole vocabulary, in the loss and in the score: what the model gives to other tokens counts
against both labels there, and not at all here.

Only the read-out positions reach the vocabulary layer W, and there both heads fold into one vector:
for logits W h and head weights u, z = u·(W h) + b = (Wᵀu)·h + b, and logit("+") - logit("-") =
(W₊ - W₋)·h, the same numbers without a vocabulary-sized vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .best_of_n import AGGREGATIONS, aggregate, select
from .checkpoints import (
    BASE_DIRECTORY,
    HEAD_FILE,
    SCORE_HEAD_FILE,
    CheckpointError,
    base_source,
    load_head,
    open_base,
    open_processor,
    saved_head,
)
from .files import json_line, write_text
from .images import Source
from .layers import (
    ATTENTION_NAME,
    TiedVocabulary,
    bring_trees,
    read_out_last,
    send_patch_positions,
    speed_up_patches,
)
from .prefix_tree import PackedTrees, pack
from .prompts import PromptEncoder, response_prompts
from .samples import CandidatesSample, text_fault, without_image_tags
from .steps import Prompt, check_count, layout
from .terminal import printable

IMAGE_OPTIONS = ("max_image_size", "min_pixels", "max_pixels")
PROMPT_OPTIONS = (*IMAGE_OPTIONS, "step_pattern")
# What --lora_rank adapts: every linear map of the language model's layers.
ADAPTED = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
# Architectures, and their language models, whose packed trees are tested against separate forwards
# (tests/test_backbones.py). Others may hide from a tree what they need, such as tokens within a
# sliding window or both ways of attention within an image.
TREE_ARCHITECTURES = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"}
TREE_LANGUAGE_MODELS = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen2", "qwen3"}
# How far the log-odds z of a tree may be from those of separate forwards, relative to max(1, |z|).
TREE_TOLERANCE = 1e-3
WRONG_TREES = (
    "its prefix trees give other scores than separate forwards: a forward pass a prompt instead"
)
SEPARATE_FORWARDS = "prefix trees are not tested for this architecture: a forward pass a prompt"
Response: TypeAlias = "str | Sequence[str]"  # a text, or its steps
_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device | str, precision: str):
    """Compute in ``precision`` (``bf16``, ``fp16``, ``fp32``) over fp32 parameters."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_AUTOCAST_DTYPES[precision])


def packs_trees(config) -> bool:
    """Whether the prompts of an architecture may share one forward pass as packed trees."""
    text = config.get_text_config()
    return (
        config.model_type in TREE_ARCHITECTURES
        and text.model_type in TREE_LANGUAGE_MODELS
        and set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
    )


@contextmanager
def must_fit(path: str | Path, *errors: type[Exception]) -> Iterator[None]:
    """Processor and model belong together: with parts of another one any of ``errors`` may arise.

    Raises:
        CheckpointError: one of them did, or the model gives no finite score.
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


class RewardModel(nn.Module):
    """Process reward model φ.

    Args:
        base_model: an ``AutoModelForImageTextToText``. Prompts of known architectures go through
            it as packed trees (see :func:`packs_trees`), those of others one by one.
        encoder: turns images and texts into this model's inputs and says which head it has;
            without one the head is ``linear``.

    Raises:
        ValueError: the tokenizer has no single token for a label of ``plus_minus``.
    """

    def __init__(self, base_model: nn.Module, encoder: PromptEncoder | None = None) -> None:
        super().__init__()
        self.base_model = base_model
        self.base_model.config.use_cache = False
        self.packs_trees = packs_trees(base_model.config)
        if self.packs_trees:
            self.base_model.set_attn_implementation(ATTENTION_NAME)
            bring_trees(self.base_model.get_decoder())
            read_out_last(self.base_model.get_decoder().layers)
            send_patch_positions(self.base_model)
        speed_up_patches(self.base_model)
        self.label_ids: tuple[int, int] | None = None
        self.LN: nn.Linear | None = None
        if encoder is not None and encoder.score_head == "plus_minus":
            self.label_ids = encoder.label_ids
        else:
            self.LN = nn.Linear(base_model.config.get_text_config().vocab_size, 1)
        self.encoder = encoder
        self._fused_attention = True

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        processor: str | None = None,
        fresh_head: bool = False,
        **encoder_options,
    ) -> RewardModel:
        """Load a reward model.

        Args:
            path: a directory written by training (``base_model/`` and the head), or any
                vision-language checkpoint or hub name, which gets a fresh linear head.
            dtype: of the parameters; training keeps fp32 master weights.
            device: by default a CUDA device where there is one, else the processor.
            processor: directory or hub name of the processor; by default the checkpoint's own or,
                where it has none, that of the base model it names.
            fresh_head: a checkpoint without a trained head is meant, as a start of training; it is
                warned of otherwise.
            encoder_options: passed to :class:`~reweighting.prompts.PromptEncoder`; they overrule
                what the directory says.

        Raises:
            CheckpointError: there is no such model, a file is damaged, weights do not fit the
                architecture or give no finite score, or a directory written by training lacks its
                head.
        """
        options = saved_head(path) | encoder_options
        source = base_source(path)
        found, note = open_processor(source, processor)
        if note:
            warnings.warn(note, stacklevel=2)
        base_model = open_base(source, dtype)
        with must_fit(path, AttributeError, KeyError, TypeError):
            model = cls(base_model, PromptEncoder(found, **options))
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

    def check_trees(self) -> bool:
        """Whether a small prefix tree gives the scores that separate forwards give.

        If it does not, prompts go through the model one by one from now on. So no architecture that
        is added to the table, and no new version of its code, can score wrongly without a word.
        Of an architecture without trees only the separate scores are looked at.

        Raises:
            FloatingPointError: the separate scores are not finite.
        """
        picture = Image.linear_gradient("L").resize((56, 56))
        prompts = response_prompts("Which half is dark?", ["Step 1: Look.", "Step 2: The upper."])
        packed = pack([self.encoder.encode(picture, prompts)]).to(self.device)
        expects_trees = self.packs_trees
        with torch.no_grad():
            if expects_trees:
                try:
                    together = self(packed)
                except Exception:  # the architecture cannot do with what stands in for a mask
                    together = torch.tensor(torch.nan, device=self.device)
                self._forward_separately()
            apart = self(packed)
        if not bool(apart.isfinite().all()):
            raise FloatingPointError(
                "gives no finite score of a small prompt: its weights are damaged or too large for "
                f"{self.base_model.dtype}"
            )
        if not expects_trees:
            return True
        # A number with few bits cannot show more than a coarse error.
        bits = torch.finfo(self.base_model.dtype)
        error = (together - apart).abs() / apart.abs().clamp(min=1)
        if not bool((error <= max(TREE_TOLERANCE, 16 * bits.eps)).all()):
            return False
        self.packs_trees = True
        self.base_model.set_attn_implementation(ATTENTION_NAME)
        return True

    def _forward_separately(self) -> None:
        self.packs_trees = False
        self.base_model.set_attn_implementation("sdpa")

    def set_attention(self, implementation: str) -> None:
        """``sdpa``: fused kernels where there is one; ``eager``: plain matrix products."""
        self._fused_attention = implementation == "sdpa"
        if self.packs_trees:
            vision = ATTENTION_NAME if implementation == "sdpa" else implementation
            self.base_model.set_attn_implementation({"vision_config": vision})
        else:
            self.base_model.set_attn_implementation(implementation)

    def checkpoint_gradients(self) -> None:
        """Keep the input of every layer only; the backward pass computes the rest again."""
        model = self.base_model  # transformers 5.23 renamed the method
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.train()  # transformers checkpoints in training mode only; there is no dropout

    def add_adapters(self, rank: int) -> None:
        """Freeze the base model and put low-rank adapters (LoRA, arXiv 2106.09685) in its layers.

        They start as zero maps, so no score changes. ``save_pretrained`` writes them merged.
        """
        from peft import LoraConfig, inject_adapter_in_model

        self.base_model.requires_grad_(False)
        adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED)
        inject_adapter_in_model(adapters, self.base_model)

    def _merged_state(self) -> dict[str, torch.Tensor] | None:
        """The base model's parameters with adapters merged in; None where there are none."""
        if not any(".lora_" in name for name, _ in self.base_model.named_parameters()):
            return None
        from peft.tuners.lora import LoraLayer

        merged = {
            name.replace(".base_layer", ""): value
            for name, value in self.base_model.state_dict().items()
            if ".lora_" not in name
        }
        for name, module in self.base_model.named_modules():
            if isinstance(module, LoraLayer):
                weight = module.base_layer.weight.detach()
                delta = module.get_delta_weight("default").detach()
                merged[f"{name}.weight"] = weight + delta.to(weight.dtype)
        return merged

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

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, packed: PackedTrees, with_hidden: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits z of all prompts ``[R]`` in the order given to ``pack``, fp32 at least.

        ``with_hidden`` adds the representations ``[R, hidden]`` they are read from.
        """
        direction, bias, embedded = self._read_out(packed)
        with nullcontext() if self._fused_attention else sdpa_kernel(SDPBackend.MATH):
            if self.packs_trees:
                hidden = self._together(packed, embedded)
            else:
                hidden = self._one_by_one(packed)
        # Row by row: a matrix product may round equal rows differently, and ties would break.
        log_odds = (hidden.to(direction.dtype) * direction).sum(-1) + bias
        return (log_odds, hidden) if with_hidden else log_odds

    def _read_out(self, packed: PackedTrees):
        """z = ⟨hidden state, direction⟩ + bias, and the tokens' embeddings if they came with it."""
        words = self.base_model.get_input_embeddings()
        vocabulary = self.base_model.get_output_embeddings().weight  # [vocabulary, hidden]
        # At least fp32: in bf16 neighbouring scores would fall together.
        dtype = torch.promote_types(vocabulary.dtype, torch.float32)
        with torch.autocast(vocabulary.device.type, enabled=False):
            if self.LN is None:
                plus, minus = vocabulary[list(self.label_ids)].to(dtype)
                return plus - minus, 0.0, None
            head, bias = self.LN.weight[0].to(dtype), self.LN.bias.to(dtype)
            if not self.packs_trees or words.weight is not vocabulary:
                return head @ vocabulary.to(dtype), bias, None
            embedded, direction = TiedVocabulary.apply(vocabulary, head, packed.input_ids[None])
            return direction, bias, embedded

    def _together(self, packed: PackedTrees, embedded: torch.Tensor | None) -> torch.Tensor:
        """Hidden states ``[R, hidden]`` at the read-outs, all prompts in one forward pass.

        ``embedded``, ``[1, N, hidden]``, are the tokens' embeddings where they are known already.
        """
        words = self.base_model.get_input_embeddings()
        # Not every architecture takes embeddings instead of tokens.
        with nullcontext() if embedded is None else _output_of(words, embedded):
            outputs = self.base_model.model(
                input_ids=packed.input_ids[None],
                position_ids=self._positions(packed),
                attention_mask=packed,  # see bring_trees
                use_cache=False,
                **packed.image_inputs(),
            )
        return outputs.last_hidden_state[0, packed.read_outs]

    def _one_by_one(self, packed: PackedTrees) -> torch.Tensor:
        """The same for any architecture, a forward pass a prompt."""
        rows = []
        for token_ids, image in packed.separate_prompts():
            inputs = {
                "input_ids": token_ids[None],
                "attention_mask": torch.ones_like(token_ids)[None],
            }
            if hasattr(self.base_model.model, "get_rope_index"):
                is_image = token_ids == self.base_model.config.image_token_id
                inputs["mm_token_type_ids"] = is_image.int()[None]
            image = {name: value.to(token_ids.device) for name, value in image.items()}
            outputs = self.base_model.model(**inputs, **image, use_cache=False)
            rows.append(outputs.last_hidden_state[0, -1])
        return torch.stack(rows)

    def _positions(self, packed: PackedTrees) -> torch.Tensor:
        """The positions that every token would have in its own prompt.

        ``[1, N]``, the depths in the tree, or with M-RoPE ``[3, 1, N]``. There the prompts of a
        tree share everything up to the end of their image and go on with text, so a position
        depends on the depth alone and the longest prompt knows them all.
        """
        if not hasattr(self.base_model.model, "get_rope_index"):
            return packed.depths[None]
        lengths = [len(tree.longest_prompt) for tree in packed.trees]
        ids = torch.zeros(len(packed.trees), max(lengths), dtype=torch.long)
        for row, tree in enumerate(packed.trees):
            ids[row, : lengths[row]] = torch.tensor(tree.longest_prompt)
        image_token = self.base_model.config.image_token_id
        by_depth, _ = self.base_model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == image_token).int(),
            image_grid_thw=torch.cat([image["image_grid_thw"] for image in packed.images]),
            attention_mask=torch.arange(max(lengths)) < torch.tensor(lengths)[:, None],
        )
        tree_of_token = torch.repeat_interleave(
            torch.tensor([tree.end - tree.start for tree in packed.trees])
        )
        device = packed.input_ids.device
        return by_depth.to(device)[:, None, tree_of_token.to(device), packed.depths]

    def log_odds(
        self, image: Source, question: str, responses: Sequence[Response]
    ) -> list[list[float]]:
        """z of every step prefix of every response, shortest first; all in one prefix tree.

        Args:
            image: a path, an http(s) URL, a ``data:`` URI, the bytes of a file, a PIL image, an
                array or a tensor, see :data:`~.images.ACCEPTED`.
            question: as the train records have it; a tag ``<image>`` is left out as there.
            responses: each as one text, which is cut into steps as the records are, or as a list of
                its steps, whose last one should hold no final answer. An empty one has no steps.

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
        items: Iterable[tuple[Source, str, Sequence[Response]]],
        max_tokens_per_batch: int = 8192,
    ) -> list[list[list[float]]]:
        """:meth:`log_odds` of many questions, each an image, a question and responses.

        Args:
            max_tokens_per_batch: questions share a forward pass up to this many tokens.

        Raises:
            TypeError: an item is no such triple; and what :meth:`log_odds` raises.
        """
        from .selection import score_candidates  # which is built on this module

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
                    candidates=responses,
                    image=image,
                    true_false=None,
                    answer=None,
                    dataset=None,
                )
            )
        batches = score_candidates(self, samples, max_tokens_per_batch)
        return [log_odds for batch in batches for log_odds in batch]

    def score(self, image: Source, question: str, response: Response) -> list[float]:
        """V of every step prefix of ``response``, shortest first, each in (0, 1).

        Arguments and errors are those of :meth:`log_odds`.
        """
        [log_odds] = self.log_odds(image, question, [response])
        return torch.sigmoid(torch.tensor(log_odds)).tolist()

    def steps(self, image: Source, question: str, response: Response) -> list[dict]:
        """A row for every step of ``response``: its text ``step``, ``log_odds`` z, ``score`` V.

        Arguments and errors are those of :meth:`log_odds`.
        """
        [chain] = self._chains(question, [response])
        [log_odds] = self.log_odds(image, question, [response])
        scores = torch.sigmoid(torch.tensor(log_odds)).tolist()
        return [
            {"step": prompt.steps[-1].strip(), "log_odds": z, "score": score}
            for prompt, z, score in zip(chain, log_odds, scores, strict=True)
        ]

    def chain_score(
        self, image: Source, question: str, response: Response, aggregation: str = "mean_log_odds"
    ) -> float:
        """One number for a whole response, by which :meth:`select` compares; larger is better.

        Args:
            aggregation: a name of :data:`~.best_of_n.AGGREGATIONS`.
        """
        _check_aggregation(aggregation)
        [log_odds] = self.log_odds(image, question, [response])
        return aggregate(log_odds, aggregation)

    def select(
        self,
        image: Source,
        question: str,
        responses: Sequence[Response],
        aggregation: str = "mean_log_odds",
    ) -> int:
        """Index of the response with the highest :meth:`chain_score`, the first one among equals.

        Raises:
            ValueError: there are no responses, or as :meth:`log_odds`.
        """
        _check_aggregation(aggregation)
        log_odds = self.log_odds(image, question, responses)
        if not log_odds:
            raise ValueError("there are no responses to select from")
        return select(log_odds, aggregation)

    @torch.no_grad()
    def _scored(self, image: Source, prompts: list[Prompt]) -> list[float]:
        return self(pack([self.encoder.encode(image, prompts)]).to(self.device)).tolist()

    def _chains(self, question: str, responses: Sequence[Response]) -> list[list[Prompt]]:
        question, responses = self._texts(question, responses)
        pattern = self.encoder.step_pattern
        return [response_prompts(question, response, pattern) for response in responses]

    def _texts(
        self, question: str, responses: Sequence[Response], where: str = ""
    ) -> tuple[str, list[str | list[str]]]:
        """The texts without image tags, checked; ``where`` opens the message of an error."""
        if isinstance(responses, str) or not isinstance(responses, Sequence):
            kind = type(responses).__name__
            raise TypeError(f"{where}responses must be a list of responses, is {kind}")
        cleaned: list[str | list[str]] = []
        for number, response in enumerate(responses, start=1):
            cleaned.append(self._response(response, f"{where}response {number}"))
        return self._text(question, f"{where}the question"), cleaned

    def _response(self, response: Response, name: str) -> str | list[str]:
        apart = isinstance(response, Sequence) and not isinstance(response, str)
        if not apart:
            response = self._text(response, name)
        steps = response if apart else layout(response, self.encoder.step_pattern).steps
        try:
            check_count(len(steps))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        if not apart:
            return response
        return [self._text(step, f"{name}: step {k}") for k, step in enumerate(steps, start=1)]

    def _text(self, text: str, name: str) -> str:
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


@contextmanager
def _output_of(module: nn.Module, value: torch.Tensor) -> Iterator[None]:
    """Whatever ``module`` is asked within, it answers ``value``."""
    hook = module.register_forward_hook(lambda *_: value)
    try:
        yield
    finally:
        hook.remove()
