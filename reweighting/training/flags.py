"""The flags of ``main.py``, one function for each group; docs/flags.md is written from them."""

from __future__ import annotations

import argparse

from ..records.flags import DEFAULT_SIZE, RULES, add_record_flags
from ..system.terminal import HelpFormatter, Parser, real, whole
from .presets import PRESETS

POSITIVE = real(positive=True)


def build_parser() -> argparse.ArgumentParser:
    """All flags of training."""
    parser = Parser(
        prog="main.py",
        description="Train a multimodal process reward model on weighted data, and learn the "
        "weights (DreamPRM, arXiv 2505.20241; DreamPRM-1.5, arXiv 2509.05542).",
        formatter_class=HelpFormatter,
    )
    _add_data(parser)
    _add_model(parser)
    _add_run(parser)
    _add_batches(parser)
    _add_lower_level(parser)
    _add_cold_start(parser)
    _add_memory(parser)
    _add_weights(parser)
    _add_upper_level(parser)
    _add_reports(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    sentence = "The records that training reads, and their images."
    add = parser.add_argument_group("data", sentence).add_argument
    add("--train_json_file", required=True, help="train records: a JSON array or JSON Lines")
    add(
        "--meta_json_file",
        help="meta records: whole chains marked right or wrong; needed unless --baseline is given",
    )
    add_record_flags(add)
    add(
        "--meta_image_root",
        metavar="DIR",
        help="directory of the meta images (default: --image_root)",
    )
    add(
        "--max_image_size",
        type=whole(28),
        default=512,
        help="longest image side in pixels; longer ones are shrunk",
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
        choices=RULES,
        default="all",
        help="which train records to use, for data-selection baselines: all; random, single "
        "records; random_chains, whole chains; s1, steps of medium length and uncertain accuracy "
        "(arXiv 2501.19393); bis, the chains with the most balanced information (arXiv "
        "2602.04145); car, the best questions of clusters of similar ones (CaR, arXiv 2402.18191); "
        "or outcome, whole chains only, which trains an outcome reward model",
    )
    add(
        "--subset_size",
        type=whole(1),
        help="records that --train_subset keeps, for s1 those of each step index; random_chains "
        "and bis keep the same share of the chains of every domain, rounded down, but at least one "
        f"chain of each (default: {DEFAULT_SIZE}, unless --subset_share is given)",
    )
    add(
        "--subset_share",
        type=real(positive=True, most=1.0),
        help="part of the records that --train_subset keeps, instead of --subset_size: 0.1 is a "
        "tenth (of all records; of the chains of every domain; for s1, of each step index)",
    )
    add(
        "--upsample_wrong",
        type=whole(1),
        default=1,
        metavar="TIMES",
        help="how often an epoch shows a record with a step that no continuation got right "
        "(accuracy 0), so that wrong steps are less rare (as in Athena, arXiv 2506.09532); it "
        "applies to what --train_subset keeps",
    )
    add(
        "--step_length",
        type=real(),
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[200.0, 300.0],
        help="shortest and longest step, in characters, that --train_subset s1 keeps",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    sentence = "The reward model: where it starts, and how it scores a step."
    add = parser.add_argument_group("model", sentence).add_argument
    add(
        "--reward_model",
        "--init_from",
        default="Qwen/Qwen2-VL-2B-Instruct",
        help="model to start from: a hub name, a checkpoint directory, or a directory written by "
        "training (base_model/, LN_weights.pt)",
    )
    add(
        "--processor",
        metavar="DIR",
        help="directory or hub name of the processor, for checkpoints without one, such as those "
        "of the published code (default: the checkpoint's, or that of the base model it names)",
    )
    add(
        "--score_head",
        choices=["linear", "plus_minus"],
        default="linear",
        help="how a step is scored: by a linear map of the logits after its prefix (DreamPRM); or "
        "plus_minus, the log-odds of the label + against - in a conversation (DreamPRM-1.5)",
    )
    add(
        "--history",
        choices=["plus", "gold"],
        default="plus",
        help="labels of earlier steps that plus_minus sees in training: plus, + everywhere, as in "
        "selection; or gold, those of the data, as published",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    sentence = "Where a run is kept, how long it lasts, and what it computes on."
    add = parser.add_argument_group("run", sentence).add_argument
    add(
        "--preset",
        choices=list(PRESETS),
        help="settings of DreamPRM, of DreamPRM-1.5 with an instance table, or of the demo; they "
        "are printed, and flags given beside --preset overrule them",
    )
    add("--weights_path", required=True, help="directory for checkpoints, weights and metrics")
    add("--iteration_num", type=whole(1), default=10000, help="lower optimizer steps")
    add(
        "--max_epoch",
        type=whole(1),
        default=120,
        help="largest number of passes over the train records; the run ends at this or at "
        "--iteration_num, whichever comes first",
    )
    add(
        "--resume",
        action="store_true",
        help="continue the run in --weights_path, or in a copy of it, from its newest complete "
        "checkpoint; without one, nothing starts",
    )
    add(
        "--dry_run",
        action="store_true",
        help="check everything, print the plan with an estimate of memory, and stop",
    )
    add(
        "--seed",
        type=int,
        default=1,
        help="seed of the initial head and of the order of the data",
    )
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add(
        "--local_rank",
        type=whole(0),
        default=0,
        help="number of the device that plain 'cuda' means",
    )
    add(
        "--precision",
        choices=["bf16", "fp16", "fp32"],
        default="bf16",
        help="number format of the computation; parameters and reward head stay in fp32",
    )
    add(
        "--strategy",
        choices=["default", "distributed"],
        default="default",
        help="default: one process on one device; distributed: all processes that torchrun or "
        "accelerate launch starts train one model, each on its share of every batch, with the "
        "numbers of one process that has the whole batch",
    )


def _add_batches(parser: argparse.ArgumentParser) -> None:
    sentence = "How many records are processed together, and who prepares them."
    add = parser.add_argument_group("batches", sentence).add_argument
    add(
        "--batch_size",
        type=whole(1),
        default=1,
        help="train records (or chains) per forward pass, on each process",
    )
    add(
        "--batch_by",
        choices=["record", "cot"],
        default="record",
        help="what --batch_size counts: single train records; or cot, all records of a chain of "
        "thought together, which share one prefix tree and cost a fraction of the tokens",
    )
    add(
        "--meta_batch_size",
        type=whole(1),
        default=1,
        help="meta chains per upper step, on each process",
    )
    add(
        "--num_workers",
        type=whole(0),
        default=2,
        help="processes that read images and tokenise; with 0 the training process does it",
    )
    add(
        "--image_cache_mib",
        type=whole(0),
        default=1024,
        help="memory for processed images in MiB, shared among the workers; 0: no cache",
    )


def _add_lower_level(parser: argparse.ArgumentParser) -> None:
    sentence = "How the reward model is trained on the weighted train records."
    add = parser.add_argument_group("lower level", sentence).add_argument
    add(
        "--loss",
        choices=["bce", "mse"],
        default="bce",
        help="loss of a step's score against its Monte-Carlo accuracy: bce, cross-entropy; or mse, "
        "squared error, as published",
    )
    add("--lr", type=POSITIVE, default=5e-7, help="learning rate of AdamW")
    add("--weight_decay", type=real(), default=1e-3, help="decoupled weight decay of AdamW")
    add(
        "--scheduler_type",
        choices=["step", "cosine_with_warmup"],
        default="step",
        help="schedule of the learning rate: step, cuts by a factor; or a linear rise over "
        "--warmup_share of the steps and a cosine down to 0",
    )
    add(
        "--warmup_share",
        type=real(),
        default=0.05,
        help="share of the steps over which cosine_with_warmup rises, on both levels",
    )
    add(
        "--scheduler_step_size",
        type=whole(1),
        default=5000,
        help="lower steps between two cuts of the learning rate",
    )
    add("--scheduler_gamma", type=POSITIVE, default=0.5, help="factor of each cut; 1: constant")
    add(
        "--gradiant_accumulation",
        "--gradient_accumulation",
        type=whole(1),
        default=1,
        dest="gradient_accumulation",
        help="batches per lower step; all of them count in the hypergradient",
    )
    add(
        "--max_grad_norm",
        type=real(),
        default=0.0,
        help="clip the gradient to this norm; 0: do not",
    )


def _add_cold_start(parser: argparse.ArgumentParser) -> None:
    sentence = "Training before reweighting starts, with all weights 1."
    add = parser.add_argument_group("cold start", sentence).add_argument
    add(
        "--cold_start_iterations",
        type=whole(0),
        default=0,
        help="lower steps of the cold start, on top of --iteration_num (a model that is already "
        "trained goes in by --init_from)",
    )
    add("--cold_start_lr", type=POSITIVE, help="learning rate (default: --lr)")
    add("--cold_start_weight_decay", type=real(), help="weight decay (default: --weight_decay)")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    sentence = (
        "What makes a run fit into memory, and fast; --dry_run estimates how much memory it needs."
    )
    add = parser.add_argument_group("memory", sentence).add_argument
    add(
        "--gradient_checkpointing",
        action="store_true",
        help="keep only the input of each layer, and compute the rest again in the backward pass",
    )
    add(
        "--compile",
        action="store_true",
        help="fuse the layers with torch.compile: the first steps take minutes; with several "
        "chains a step the others take less time and memory on a GPU",
    )
    add(
        "--optimizer",
        choices=["adamw", "adamw_8bit"],
        default="adamw",
        help="adamw_8bit (torchao) has bf16 weights with stochastic rounding and 8-bit moments: 6 "
        "bytes per parameter instead of 16",
    )
    add(
        "--lora_rank",
        type=whole(0),
        default=0,
        help="rank of low-rank adapters in the language model, which are trained with the head "
        "instead of all parameters; 0: no adapters",
    )
    add(
        "--attn_implementation",
        choices=["auto", "sdpa", "eager"],
        default="auto",
        help="attention kernels: sdpa, fused where possible; or eager, plain matrix products; auto "
        "takes sdpa",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    sentence = "What is weighted, where the weights start, and how far they may go."
    add = parser.add_argument_group("weights", sentence).add_argument
    add(
        "--reweighting",
        choices=["domain", "instance_table", "instance_net", "none"],
        default="domain",
        help="what is learned: a weight for each domain (DreamPRM); a weight for each record, in a "
        "table or by a small net (DreamPRM-1.5); or none, which trains the vanilla reward model "
        "without --meta_json_file and the other flags of weights and upper level",
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
        help="JSON file {domain: weight}, scaled to average 1: with --reweighting domain these "
        "weights are kept and none are learned; instance weights start from them and are "
        "multiplied by them",
    )
    add(
        "--init_domain_weights",
        metavar="DIR_OR_FILE",
        help="start the domain weights from a domain_weights.pt or domain_weights.json instead of "
        "from 1; domains are matched by name, or in order for a published file, which has no names",
    )
    add(
        "--weight_bounds",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[0.0, 3.0],
        help="smallest and largest instance weight",
    )
    add(
        "--weight_activation",
        choices=["clip", "leaky_relu", "relu", "none"],
        default="clip",
        help="how a table entry becomes a weight: clip keeps it within --weight_bounds; the others "
        "are the published functions, without bounds",
    )
    add(
        "--net_features",
        choices=["scores", "labels", "hidden"],
        default="scores",
        help="what the instance net sees of a record: scores, probabilities of right and wrong; "
        "labels, these and how far the accuracy agrees; or hidden, the model's final hidden state",
    )
    add("--net_width", type=whole(1), default=10, help="width of the instance net's hidden layers")
    add("--net_layers", type=whole(1), default=1, help="hidden layers of the instance net")
    add(
        "--no_detach_features",
        dest="detach_features",
        action="store_false",
        help="let the lower level train the reward model through the instance net's features, as "
        "published: it can then lower its loss by lowering its own weights",
    )


def _add_upper_level(parser: argparse.ArgumentParser) -> None:
    sentence = "How the weights are learned from the meta records."
    add = parser.add_argument_group("upper level", sentence).add_argument
    add(
        "--meta_loss",
        choices=["mse", "bce", "rank"],
        default="mse",
        help="loss of the aggregated scores: mse, squared error against true/false, as published; "
        "bce, cross-entropy against true/false; or rank, which wants every right chain above every "
        "wrong chain of the same question and does not look at how high both are",
    )
    add(
        "--meta_target",
        choices=["chain", "prefix"],
        default="chain",
        help="what is compared with true/false: the aggregated score of a chain; or the score of "
        "each prefix by itself (the ablation without aggregation loss)",
    )
    add("--meta_lr", type=POSITIVE, default=0.01, help="learning rate of AdamW")
    add(
        "--meta_weight_decay",
        type=real(),
        default=0.0,
        help="decoupled weight decay of AdamW; it pulls the raw weights to 0, the weights to 1",
    )
    add(
        "--meta_scheduler_type",
        choices=["step", "cosine_with_warmup"],
        default="step",
        help="schedule of the upper learning rate, as --scheduler_type",
    )
    add(
        "--meta_scheduler_step_size",
        type=whole(1),
        default=5000,
        help="upper steps between two cuts of the learning rate",
    )
    add(
        "--meta_scheduler_gamma", type=POSITIVE, default=1.0, help="factor of each cut; 1: constant"
    )
    add(
        "--meta_max_grad_norm",
        type=real(),
        default=0.0,
        help="clip the hypergradient to this norm; 0: do not",
    )
    add("--unroll_steps", type=whole(1), default=5, help="lower steps before each upper step")
    add(
        "--hypergradient",
        choices=["unrolled", "darts"],
        default="unrolled",
        help="exact derivative through the last lower step; or darts, the published finite "
        "difference, computed in fp32",
    )
    add(
        "--hypergradient_batches",
        choices=["last", "all"],
        default="last",
        help="records that enter the hypergradient: those of the last lower step, or all since the "
        "last upper step, as far as AdamW still remembers their gradients",
    )


def _add_reports(parser: argparse.ArgumentParser) -> None:
    sentence = "What is written during a run, and how often."
    add = parser.add_argument_group("checkpoints and reports", sentence).add_argument
    add(
        "--save_every_iterations",
        type=whole(1),
        default=1000,
        help="lower steps between checkpoints; one is also written at the end, on Ctrl-C and on "
        "SIGTERM",
    )
    add(
        "--eval_candidates",
        metavar="FILE",
        help="candidates of a validation set (never a test set): best-of-N accuracy is logged, and "
        "the best checkpoint is kept in best/ beside the last",
    )
    add(
        "--eval_steps",
        metavar="FILE",
        help="validation chains with labelled steps (never a test set), in any layout that "
        "reweighting.evaluate reads: AUROC and F1 at 0.5 of the steps are logged; without "
        "--eval_candidates the checkpoint with the best AUROC is kept in best/",
    )
    add(
        "--eval_image_root",
        metavar="DIR",
        help="directory of the images of --eval_candidates and --eval_steps (default: "
        "--image_root)",
    )
    add("--eval_every", type=whole(1), default=1000, help="lower steps between two evaluations")
    add("--logging_steps", type=whole(1), default=10, help="lower steps per line of metrics.jsonl")
    add(
        "--report_to",
        choices=["none", "tensorboard", "wandb"],
        default="none",
        help="where metrics go besides metrics.jsonl, which is always written",
    )
