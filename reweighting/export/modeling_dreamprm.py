"""A process reward model for transformers: a vision-language model and one row that reads a score.

This file is written beside a checkpoint, so it needs nothing but torch and transformers:

    AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)

``reward.json`` in the same folder says how prompts are made.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class DreamPRMForSequenceClassification(PreTrainedModel):
    """Log-odds z that the steps in a prompt lead to a right answer, so V = sigmoid(z).

    Args:
        config: of the vision-language model.
    """

    config_class = PreTrainedConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)
        self.score = nn.Linear(config.get_text_config().hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **inputs,
    ) -> SequenceClassifierOutput:
        """Log-odds ``logits``, ``[B, 1]``, in at least fp32, at the last token of each prompt.

        Args:
            input_ids: ``[B, N]``.
            attention_mask: ``[B, N]``, 0 where a prompt is padded, on either side; without one
                no prompt is.
            inputs: what else the checkpoint's processor returns.
        """
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs
        )
        hidden = outputs.last_hidden_state
        if attention_mask is None:
            last = torch.full(hidden.shape[:1], hidden.shape[1] - 1, device=hidden.device)
        else:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            last = (attention_mask.to(hidden.device).bool() * places).argmax(-1)
        rows = torch.arange(len(hidden), device=hidden.device)
        # In bf16 neighbouring scores would become equal.
        dtype = torch.promote_types(self.score.weight.dtype, torch.float32)
        weight, bias = self.score.weight.to(dtype), self.score.bias.to(dtype)
        logits = nn.functional.linear(hidden[rows, last].to(dtype), weight, bias)
        return SequenceClassifierOutput(
            logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
