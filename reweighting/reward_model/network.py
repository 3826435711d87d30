"""The network of the process reward model: a vision-language model and a head on its logits.

With the logits l at the last position of a prompt (a question and the first steps of a chain):

    V(x, prefix) = sigmoid(z)
    linear       z = ⟨u, l⟩ + b, the layer ``LN``
    plus_minus   z = l("+") - l("-"), so that V = P("+") / (P("+") + P("-"))

``linear`` is DreamPRM's head (section 3) in its published form, so that published checkpoints load.
``plus_minus`` is DreamPRM-1.5's generative score and has no parameters of its own; with the loss
``bce`` it is trained by the cross-entropy between the two labels. The published code takes the
softmax over the whole vocabulary, in the loss and in the score: there the probability of any other
token counts against both labels, here it does not matter.

The logits are never computed. The vocabulary layer W is linear, l = W h, so both heads are one
vector in the space of the hidden state h:

    linear       z = ⟨Wᵀu, h⟩ + b
    plus_minus   z = ⟨W₊ - W₋, h⟩
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention import ATTENTION_NAME, bring_trees, send_images_together
from .compiled import compile_layers
from .encoder import PromptEncoder, response_prompts
from .norms import fuse_norms
from .patches import send_patch_positions, speed_up_patches
from .prefix_tree import PackedTrees, pack
from .read_out import TiedVocabulary, read_out_last

# What --lora_rank adapts: every linear map of the language model's layers.
ADAPTED = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
# Architectures, and their language models, whose packed trees are tested against separate forwards.
# Add one here together with a function in tests/support/backbones.py that makes a tiny checkpoint
# of it. Others may need what a tree does not give them, such as a sliding window over the tokens or
# attention in both directions within an image.
TREE_ARCHITECTURES = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"}
TREE_LANGUAGE_MODELS = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen2", "qwen3"}
# Largest difference of z between a tree and separate forwards, relative to max(1, |z|).
TREE_TOLERANCE = 1e-3


def packs_trees(config) -> bool:
    """Whether the prompts of an architecture may share one forward pass as packed trees."""
    text = config.get_text_config()
    return (
        config.model_type in TREE_ARCHITECTURES
        and text.model_type in TREE_LANGUAGE_MODELS
        and set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
    )


class RewardNetwork(nn.Module):
    """The process reward model φ on packed prompts: token ids and pixels in, log-odds z out.

    Opening, saving, and scoring of texts and images are added by :class:`~.model.RewardModel`.

    Args:
        base_model: an ``AutoModelForImageTextToText``. Prompts go through it as packed trees if
            its architecture is known (see :func:`packs_trees`), one by one otherwise.
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
            fuse_norms(self.base_model.get_decoder().layers)
            send_patch_positions(self.base_model)
            send_images_together(self.base_model)
        speed_up_patches(self.base_model)
        self.label_ids: tuple[int, int] | None = None
        self.LN: nn.Linear | None = None
        if encoder is not None and encoder.score_head == "plus_minus":
            self.label_ids = encoder.label_ids
        else:
            self.LN = nn.Linear(base_model.config.get_text_config().vocab_size, 1)
        self.encoder = encoder
        self._fused_attention = True

    def check_trees(self) -> bool:
        """Whether a small prefix tree gives the scores that separate forwards give.

        If it does not, prompts go through the model one by one from now on. So neither a new
        architecture in the table nor a new version of its code can silently give wrong scores.
        For an architecture without trees only the separate scores are checked.

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
                except Exception:  # the architecture does not accept trees as a mask
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
        # With few bits, rounding alone makes a larger difference.
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
        """``sdpa``: fused kernels where they exist; ``eager``: plain matrix products."""
        self._fused_attention = implementation == "sdpa"
        if self.packs_trees:
            vision = ATTENTION_NAME if implementation == "sdpa" else implementation
            self.base_model.set_attn_implementation({"vision_config": vision})
        else:
            self.base_model.set_attn_implementation(implementation)

    def checkpoint_gradients(self) -> None:
        """Keep only the input of every layer; the backward pass recomputes the rest."""
        model = self.base_model  # transformers 5.23 renamed the method
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.train()  # transformers checkpoints in training mode only; there is no dropout

    def compile_layers(self) -> None:
        """Let ``torch.compile`` fuse what lies between matrix products and attention.

        The first steps take minutes. The last layer, which computes a few positions only, and what
        is not a layer stay as they are.
        """
        layers = self.base_model.get_decoder().layers
        fuse_norms(layers, fused=False)  # the compiler fuses them with their neighbours
        compile_layers(layers[:-1])
        for name, module in self.base_model.named_modules():
            if name.endswith("visual.blocks"):
                compile_layers(module)

    def add_adapters(self, rank: int) -> None:
        """Freeze the base model and add low-rank adapters (LoRA, arXiv 2106.09685) to its layers.

        They start as zero maps, so no score changes. ``save_pretrained`` writes them merged.
        """
        from peft import LoraConfig, inject_adapter_in_model

        self.base_model.requires_grad_(False)
        adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED)
        inject_adapter_in_model(adapters, self.base_model)

    def _merged_state(self) -> dict[str, torch.Tensor] | None:
        """The base model's parameters with the adapters merged in; None without adapters."""
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

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, packed: PackedTrees, with_hidden: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Log-odds z of all prompts, ``[R]``, in the order given to ``pack`` and at least in fp32.

        ``with_hidden`` adds the hidden states h, ``[R, hidden]``.
        """
        direction, bias, embedded = self._read_out(packed)
        with nullcontext() if self._fused_attention else sdpa_kernel(SDPBackend.MATH):
            if self.packs_trees:
                hidden = self._together(packed, embedded)
            else:
                hidden = self._one_by_one(packed)
        # Row by row: a matrix product may round equal rows differently, which would break ties.
        log_odds = (hidden.to(direction.dtype) * direction).sum(-1) + bias
        return (log_odds, hidden) if with_hidden else log_odds

    def _read_out(self, packed: PackedTrees):
        """Direction and bias of z = ⟨direction, h⟩ + bias, and the tokens' embeddings or None."""
        words = self.base_model.get_input_embeddings()
        vocabulary = self.base_model.get_output_embeddings().weight  # [vocabulary, hidden]
        # At least fp32: in bf16 neighbouring scores would become equal.
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

        ``embedded``, ``[1, N, hidden]``, are the tokens' embeddings if they are known already.
        """
        words = self.base_model.get_input_embeddings()
        # Not every architecture accepts embeddings in place of tokens.
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
        """The same for any architecture, with one forward pass per prompt."""
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
        """The position that every token would have in its own prompt.

        ``[1, N]``, the depths in the tree, or ``[3, 1, N]`` with M-RoPE. There the prompts of a
        tree share everything up to the end of their last image, because all images stand before the
        question, and continue with text. So a position depends on the depth alone, and the longest
        prompt has them all. Without an image every position is the depth.
        """
        if not hasattr(self.base_model.model, "get_rope_index"):
            return packed.depths[None]
        lengths = [len(tree.longest_prompt) for tree in packed.trees]
        ids = torch.zeros(len(packed.trees), max(lengths), dtype=torch.long)
        for row, tree in enumerate(packed.trees):
            ids[row, : lengths[row]] = torch.tensor(tree.longest_prompt)
        image_token = self.base_model.config.image_token_id
        grids = [image["image_grid_thw"] for image in packed.images if image]
        by_depth, _ = self.base_model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == image_token).int(),
            image_grid_thw=torch.cat(grids) if grids else None,
            attention_mask=torch.arange(max(lengths)) < torch.tensor(lengths)[:, None],
        )
        tree_of_token = torch.repeat_interleave(
            torch.tensor([tree.end - tree.start for tree in packed.trees])
        )
        device = packed.input_ids.device
        by_depth, tree_of_token = (
            tensor.to(device, non_blocking=True) for tensor in (by_depth, tree_of_token)
        )
        return by_depth[:, None, tree_of_token, packed.depths]


@contextmanager
def _output_of(module: nn.Module, value: torch.Tensor) -> Iterator[None]:
    """Within this context ``module`` returns ``value`` for any input."""
    hook = module.register_forward_hook(lambda *_: value)
    try:
        yield
    finally:
        hook.remove()
