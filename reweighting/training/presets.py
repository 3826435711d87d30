"""Published settings by name, as flags of ``main.py``: ``--preset`` and the studies use them."""

from __future__ import annotations

PRESETS: dict[str, tuple[str, ...]] = {
    # DreamPRM (arXiv 2505.20241): squared errors, one record a step, AdamW at 5e-7 without weight
    # decay on the lower level and at 0.01 with it on the upper.
    "paper": (
        *("--reward_model", "Qwen/Qwen2-VL-2B-Instruct", "--precision", "bf16"),
        *("--iteration_num", "10000", "--batch_size", "1", "--meta_batch_size", "1"),
        *("--unroll_steps", "5", "--lr", "5e-7", "--weight_decay", "0", "--meta_lr", "0.01"),
        *("--meta_weight_decay", "1e-3", "--loss", "mse", "--meta_loss", "mse"),
        *("--scheduler_step_size", "5000", "--scheduler_gamma", "0.5", "--seed", "1"),
    ),
    # DreamPRM-1.5 (arXiv 2509.05542), the instance table. The published clipping is left out: with
    # one record a step it takes the record's weight out of what is learned.
    "paper-1.5": (
        *("--reward_model", "OpenGVLab/InternVL3-1B-hf", "--precision", "bf16"),
        *("--score_head", "plus_minus", "--reweighting", "instance_table"),
        *("--weight_bounds", "-1", "3", "--weight_activation", "clip"),
        *("--cold_start_iterations", "20000", "--cold_start_lr", "5e-5"),
        *("--cold_start_weight_decay", "5e-2", "--iteration_num", "100000"),
        *("--batch_size", "1", "--meta_batch_size", "1", "--unroll_steps", "1"),
        *("--lr", "5e-5", "--weight_decay", "1e-2", "--meta_lr", "5e-3"),
        *("--meta_weight_decay", "1e-3", "--loss", "bce", "--meta_loss", "mse"),
        *("--scheduler_type", "cosine_with_warmup", "--warmup_share", "0.05"),
        *("--meta_scheduler_type", "cosine_with_warmup"),
    ),
    # The demo's world and its tiny model, on a processor; chosen on the validation set.
    "demo": (
        *("--reward_model", "weights/tiny-qwen2-vl", "--device", "cpu", "--precision", "fp32"),
        *("--batch_by", "cot", "--batch_size", "8", "--meta_batch_size", "8"),
        *("--unroll_steps", "2", "--lr", "2e-4", "--meta_lr", "0.05", "--weight_decay", "0"),
        *("--iteration_num", "360"),
    ),
}
