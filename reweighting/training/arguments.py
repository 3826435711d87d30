"""The command line of ``main.py``: flags, defaults, and what cannot go together."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import shlex
import sys

from ..files import unwritable
from ..records.flags import add_record_flags
from ..terminal import HelpFormatter, Parser, printable, real, whole
from .presets import PRESETS


def build_parser() -> argparse.ArgumentParser:
    """All flags of training."""
    parser = Parser(
        prog="main.py",
        description="Train a multimodal process reward model on weighted data, and the weights "
        "(DreamPRM, arXiv 2505.20241; DreamPRM-1.5, arXiv 2509.05542).",
        formatter_class=HelpFormatter,
    )

    group = parser.add_argument_group("data and model")
    add = group.add_argument
    add(
        "--preset",
        choices=list(PRESETS),
        help="settings of DreamPRM, of DreamPRM-1.5's instance table or of the demo, which are "
        "printed; flags beside it overrule them",
    )
    add("--train_json_file", required=True, help="train records: a JSON array or JSON Lines")
    add(
        "--meta_json_file",
        help="meta records: whole chains, right or wrong; needed unless --baseline",
    )
    add("--weights_path", required=True, help="directory for checkpoints, weights and metrics")
    add(
        "--reward_model",
        "--init_from",
        default="Qwen/Qwen2-VL-2B-Instruct",
        help="where training starts: a hub name, a checkpoint directory, or a directory written by "
        "training (base_model/, LN_weights.pt)",
    )
    add(
        "--processor",
        metavar="DIR",
        help="directory or hub name of the processor, for checkpoints without one such as the "
        "published code writes (default: the checkpoint's, or that of the base model it names)",
    )
    add_record_flags(add)
    add(
        "--meta_image_root",
        metavar="DIR",
        help="--image_root of the meta records (default: --image_root)",
    )
    add(
        "--max_image_size",
        type=whole(28),
        default=512,
        help="longest side of an image in pixels; larger ones are shrunk",
    )
    add(
        "--min_pixels",
        type=whole(1),
        help="smallest image area in pixels; smaller ones are enlarged (default: the processor's)",
    )
    add(
        "--max_pixels",
        type=whole(1),
        help="largest image area in pixels; larger ones are shrunk (default: the processor's)",
    )

    add(
        "--train_subset",
        choices=["all", "random", "s1", "outcome"],
        default="all",
        help="train on a part of the records (the paper's data-selection baselines): random ones; "
        "s1-style, steps of middling length and uncertain accuracies first; or whole chains only, "
        "which makes an outcome reward model",
    )
    add(
        "--subset_size",
        type=whole(1),
        default=2000,
        help="records for --train_subset random, records per step index for s1",
    )
    add(
        "--step_length",
        type=real(),
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[200.0, 300.0],
        help="characters a step that --train_subset s1 keeps",
    )

    group = parser.add_argument_group("training set-up")
    add = group.add_argument
    add("--iteration_num", type=whole(1), default=10000, help="lower optimizer steps")
    add(
        "--max_epoch",
        type=whole(1),
        default=120,
        help="passes over the train records at most; whichever limit comes first ends the run",
    )
    add("--batch_size", type=whole(1), default=1, help="train records (or chains) a forward pass")
    add(
        "--batch_by",
        choices=["record", "cot"],
        default="record",
        help="draw single train records, or all records of a chain of thought together: they share "
        "one prefix tree and cost a fraction of the tokens",
    )
    add("--meta_batch_size", type=whole(1), default=1, help="meta chains an upper step")
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add(
        "--local_rank",
        type=whole(0),
        default=0,
        help="number of the CUDA device that plain 'cuda' means",
    )
    add(
        "--precision",
        choices=["bf16", "fp16", "fp32"],
        default="bf16",
        help="of the computation; parameters and the reward head are fp32 throughout",
    )
    add(
        "--strategy",
        choices=["default"],
        default="default",
        help="one process on one device; the only strategy so far",
    )
    add("--seed", type=int, default=1, help="of the head's initial weights and the order of data")
    add(
        "--num_workers",
        type=whole(0),
        default=2,
        help="processes that read images and tokenise; 0: the training process does it",
    )
    add(
        "--image_cache_mib",
        type=whole(0),
        default=1024,
        help="memory for processed images in MiB, shared among the workers; 0: no cache",
    )

    group = parser.add_argument_group("lower level: the reward model")
    add = group.add_argument
    add(
        "--loss",
        choices=["bce", "mse"],
        default="bce",
        help="against the Monte-Carlo accuracy: cross-entropy, or squared error as published",
    )
    add(
        "--score_head",
        choices=["linear", "plus_minus"],
        default="linear",
        help="how a step is scored: a linear map of the logits after its prefix (DreamPRM), or the "
        "log-odds of the label + against - after it in a conversation (DreamPRM-1.5)",
    )
    add(
        "--history",
        choices=["plus", "gold"],
        default="plus",
        help="labels that plus_minus sees of earlier steps in training: + everywhere, as in "
        "selection, or those of the data, as published",
    )
    add("--lr", type=real(positive=True), default=5e-7, help="learning rate (AdamW)")
    add("--weight_decay", type=real(), default=1e-3, help="decoupled weight decay (AdamW)")
    add(
        "--scheduler_type",
        choices=["step", "cosine_with_warmup"],
        default="step",
        help="of the learning rate: cuts by a factor, or a linear rise over --warmup_share and a "
        "cosine down to 0",
    )
    add(
        "--warmup_share",
        type=real(),
        default=0.05,
        help="share of the steps in which cosine_with_warmup rises, on both levels",
    )
    add(
        "--scheduler_step_size",
        type=whole(1),
        default=5000,
        help="lower steps between two cuts of the learning rate",
    )
    add(
        "--scheduler_gamma",
        type=real(positive=True),
        default=0.5,
        help="factor of each cut; 1: constant",
    )
    add(
        "--gradiant_accumulation",
        "--gradient_accumulation",
        type=whole(1),
        default=1,
        dest="gradient_accumulation",
        help="batches a lower step; all count in the hypergradient",
    )
    add(
        "--max_grad_norm",
        type=real(),
        default=0.0,
        help="the gradient's norm is clipped to this; 0: no clipping",
    )

    group = parser.add_argument_group("cold start")
    add = group.add_argument
    add(
        "--cold_start_iterations",
        type=whole(0),
        default=0,
        help="lower steps with all weights 1 before reweighting starts; they come on top of "
        "--iteration_num (a model that is trained already goes in by --init_from)",
    )
    add("--cold_start_lr", type=real(positive=True), help="learning rate (default: --lr)")
    add("--cold_start_weight_decay", type=real(), help="weight decay (default: --weight_decay)")

    group = parser.add_argument_group("memory")
    add = group.add_argument
    add(
        "--gradient_checkpointing",
        action="store_true",
        help="keep the input of every layer only and compute the rest again in the backward pass",
    )
    add(
        "--optimizer",
        choices=["adamw", "adamw_8bit"],
        default="adamw",
        help="adamw_8bit (torchao): bf16 weights with stochastic rounding and 8-bit moments, 6 "
        "bytes a parameter instead of 16",
    )
    add(
        "--lora_rank",
        type=whole(0),
        default=0,
        help="train low-rank adapters of this rank in the language model, and the head, instead of "
        "all parameters; 0: no adapters",
    )
    add(
        "--attn_implementation",
        choices=["auto", "sdpa", "eager"],
        default="auto",
        help="attention kernels: fused where there is one (sdpa), or plain matrix products; auto "
        "takes sdpa",
    )

    group = parser.add_argument_group("upper level: the weights")
    add = group.add_argument
    add(
        "--reweighting",
        choices=["domain", "instance_table", "instance_net", "none"],
        default="domain",
        help="what is learned: a weight for every domain (DreamPRM); for every record, in a table "
        "or by a small net (DreamPRM-1.5); or nothing, which trains the vanilla reward model and "
        "uses neither --meta_json_file nor the other flags of this group",
    )
    add(
        "--baseline",
        action="store_const",
        const="none",
        dest="reweighting",
        default=argparse.SUPPRESS,
        help="the same as --reweighting none",
    )
    add(
        "--domain_weights",
        metavar="FILE",
        help="JSON file {domain: weight}, scaled to average 1: train with these and learn none, or "
        "multiply them into the instance weights, which start from there",
    )
    add(
        "--init_domain_weights",
        metavar="DIR_OR_FILE",
        help="start the domain weights from a domain_weights.pt or domain_weights.json, matched by "
        "the domains' names (a published file has none and is taken in order), instead of from 1",
    )
    add(
        "--weight_bounds",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[0.0, 3.0],
        help="of instance weights",
    )
    add(
        "--weight_activation",
        choices=["clip", "leaky_relu", "relu", "none"],
        default="clip",
        help="of the instance table's entries: kept within the bounds, or one of the published "
        "functions without bounds",
    )
    add(
        "--net_features",
        choices=["scores", "labels", "hidden"],
        default="scores",
        help="what the instance net sees of a record: probabilities of right and wrong; these and "
        "how far the record's accuracy agrees; or the model's final representation",
    )
    add("--net_width", type=whole(1), default=10, help="of the instance net's hidden layers")
    add("--net_layers", type=whole(1), default=1, help="hidden layers of the instance net")
    add(
        "--no_detach_features",
        dest="detach_features",
        action="store_false",
        help="let the lower level train the reward model through the instance net's features, as "
        "published: it can then lower its loss by lowering its own weights",
    )
    add(
        "--meta_loss",
        choices=["mse", "bce"],
        default="mse",
        help="of the aggregated score against true/false: squared error as published, or "
        "cross-entropy",
    )
    add(
        "--meta_target",
        choices=["chain", "prefix"],
        default="chain",
        help="compare the aggregated score of a chain with true/false, or (the ablation without "
        "aggregation loss) the score of every prefix by itself",
    )
    add("--meta_lr", type=real(positive=True), default=0.01, help="learning rate (AdamW)")
    add(
        "--meta_weight_decay",
        type=real(),
        default=0.0,
        help="decoupled weight decay (AdamW); pulls the raw weights to 0, the weights to 1",
    )
    add(
        "--meta_scheduler_type",
        choices=["step", "cosine_with_warmup"],
        default="step",
        help="of the upper learning rate; as --scheduler_type",
    )
    add(
        "--meta_scheduler_step_size",
        type=whole(1),
        default=5000,
        help="upper steps between two cuts of the learning rate",
    )
    add(
        "--meta_scheduler_gamma",
        type=real(positive=True),
        default=1.0,
        help="factor of each cut; 1: constant",
    )
    add(
        "--meta_max_grad_norm",
        type=real(),
        default=0.0,
        help="the hypergradient's norm is clipped to this; 0: no clipping",
    )
    add("--unroll_steps", type=whole(1), default=5, help="lower steps before each upper step")

    add(
        "--hypergradient",
        choices=["unrolled", "darts"],
        default="unrolled",
        help="exact derivative through the last lower step, or the published finite difference, "
        "computed in fp32",
    )
    add(
        "--hypergradient_batches",
        choices=["last", "all"],
        default="last",
        help="records that enter the hypergradient: of the last lower step, or of all since the "
        "last upper step",
    )

    group = parser.add_argument_group("checkpoints and reports")
    add = group.add_argument
    add(
        "--save_every_iterations",
        type=whole(1),
        default=1000,
        help="lower steps between checkpoints; one is also written at the end, on Ctrl-C and on "
        "SIGTERM",
    )
    add(
        "--resume",
        action="store_true",
        help="continue the run in --weights_path, or in a copy of it, from its newest complete "
        "checkpoint; where there is none, nothing starts",
    )
    add(
        "--eval_candidates",
        metavar="FILE",
        help="candidates of a validation set (never a test set): best-of-N accuracy is logged, and "
        "the best checkpoint kept in best/ beside the last",
    )
    add(
        "--eval_image_root",
        metavar="DIR",
        help="--image_root of --eval_candidates (default: --image_root)",
    )
    add(
        "--eval_every",
        type=whole(1),
        default=1000,
        help="lower steps between two evaluations of --eval_candidates",
    )
    add("--logging_steps", type=whole(1), default=10, help="lower steps a line of metrics.jsonl")
    add(
        "--report_to",
        choices=["none", "tensorboard", "wandb"],
        default="none",
        help="also send the metrics there; metrics.jsonl is always written",
    )
    add(
        "--dry_run",
        action="store_true",
        help="check everything, print the plan with an estimate of memory, and stop",
    )
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check; prints one sentence and exits with code 2 if the flags make no sense."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(argv)
    flags = PRESETS.get(arguments.preset, ())
    arguments = parser.parse_args([*flags, *argv])  # of two equal flags the later one counts
    check(arguments, parser.error)
    if flags:
        print(f"--preset {arguments.preset}: {shlex.join(flags)}")
    return arguments


def check(arguments: argparse.Namespace, error) -> None:
    """Call ``error(sentence)`` for flags that cannot work, with each other or on this machine."""
    a = arguments
    if a.reweighting == "none" and a.domain_weights:
        error(
            "--reweighting none (--baseline) gives every record weight 1: it cannot go with "
            "--domain_weights"
        )
    if a.init_domain_weights is not None and (a.reweighting != "domain" or a.domain_weights):
        error(
            "--init_domain_weights is where learned domain weights start: it needs --reweighting "
            "domain, without --domain_weights"
        )
    a.by_instance = a.reweighting.startswith("instance_")
    a.learn_weights = a.by_instance or (a.reweighting == "domain" and not a.domain_weights)
    low, high = a.weight_bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        error(f"--weight_bounds {low:g} {high:g}: must be two numbers, the first one smaller")
    if not a.detach_features and a.hypergradient != "unrolled":
        error("--no_detach_features needs --hypergradient unrolled")
    if not a.detach_features and a.reweighting != "instance_net":
        error("--no_detach_features is for --reweighting instance_net")
    if a.warmup_share > 1:
        error(f"--warmup_share {a.warmup_share:g}: must be at most 1")
    if a.cold_start_lr is None:
        a.cold_start_lr = a.lr
    if a.cold_start_weight_decay is None:
        a.cold_start_weight_decay = a.weight_decay
    if a.meta_json_file is None and a.learn_weights:
        error("--meta_json_file is needed to learn weights (or ask for --baseline)")
    if a.history == "gold" and a.score_head == "linear":
        error("--history gold needs --score_head plus_minus: the linear head sees no labels")
    if a.min_pixels and a.max_pixels and a.min_pixels > a.max_pixels:
        error(f"--min_pixels {a.min_pixels} is above --max_pixels {a.max_pixels}")
    if a.step_length[0] > a.step_length[1]:
        error(f"--step_length {a.step_length[0]:g} {a.step_length[1]:g}: LOW is above HIGH")
    if a.learn_weights and a.unroll_steps > a.iteration_num:
        error(
            f"--unroll_steps {a.unroll_steps} is above --iteration_num {a.iteration_num}: no upper "
            "step would ever be taken"
        )
    device = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", a.device, re.ASCII)
    if device is None:
        error(f"--device {printable(a.device)} is no device: cuda, cuda:N or cpu")
    if a.device == "cpu" and a.local_rank:
        error("--local_rank numbers CUDA devices and means nothing with --device cpu")
    if a.device != "cpu":
        if device[1] and a.local_rank:
            error(f"--device {a.device} already names a device: leave out --local_rank")
        index = int(device[1] or a.local_rank)
        if not a.dry_run:
            import torch  # takes seconds: --help and a wrong flag are answered without it

            if index >= torch.cuda.device_count():
                error(
                    f"--device {a.device}: CUDA device {index} is not there "
                    f"({torch.cuda.device_count()} found); --device cpu runs on the processor"
                )
        a.device = f"cuda:{index}"
    if not 0 <= a.seed < 2**31:
        error(f"--seed must lie in 0 ... {2**31 - 1}, is {a.seed}")
    if a.optimizer == "adamw_8bit" and a.precision != "bf16":
        error("--optimizer adamw_8bit keeps bf16 weights: it needs --precision bf16")
    for flag, package in (
        (f"--report_to {a.report_to}", a.report_to if a.report_to != "none" else None),
        (f"--optimizer {a.optimizer}", "torchao" if a.optimizer == "adamw_8bit" else None),
        (f"--lora_rank {a.lora_rank}", "peft" if a.lora_rank else None),
    ):
        if package and importlib.util.find_spec(package) is None:
            error(f"{flag} needs a package: pip install {package}")
    for name in ("image_root", "meta_image_root", "eval_image_root"):
        directory = getattr(a, name)
        if directory is not None and not os.path.isdir(directory):
            error(f"--{name} {printable(directory)} is no directory")
    problem = unwritable(a.weights_path)
    if problem:
        error(f"--weights_path {a.weights_path} cannot be written: {problem}")
