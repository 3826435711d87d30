"""Train a multimodal process reward model with learned data weights (DreamPRM).

The paper's run, on one 80 GB GPU:

    python main.py --preset paper --train_json_file train.json --meta_json_file meta.json \
        --weights_path weights/dreamprm

Minutes on a laptop:

    make demo
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from reweighting.system import terminal
from reweighting.system.processes import EndedElsewhere, Processes, ProcessLost, launched_rank
from reweighting.training.arguments import parse_arguments

if TYPE_CHECKING:  # they import torch, which takes seconds
    from reweighting.records.dataset import Data
    from reweighting.reward_model.encoder import PromptEncoder
    from reweighting.training.engine import ReweightingEngine
    from reweighting.training.validation import LabelledSteps

BETTY_INSTALL = "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"


def main(argv: list[str] | None = None) -> int:
    """Parse, check, train; returns the exit code of the process."""
    if launched_rank() > 0:  # the first process speaks for all that a launcher has started
        terminal.mute()
    arguments = parse_arguments(argv)  # torch is imported only after this, so --help is quick
    terminal.quiet()
    try:
        import betty.problems  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith("betty"):
            raise
        # Betty's metadata refuses Python 3.11 and later, where it does run, and the package called
        # "betty" on the index is another program.
        print(f"Betty is not installed. Install it with\n\n    {BETTY_INSTALL}\n", file=sys.stderr)
        return 2

    from reweighting.bilevel.problems import NonFiniteLoss
    from reweighting.records.problems import DataError
    from reweighting.system.files import FileError
    from reweighting.training.build import SetupError

    processes = Processes.of_launcher(arguments.device)
    try:
        return run(arguments, processes)
    except EndedElsewhere as error:
        return 2 if isinstance(error.__cause__, (DataError, SetupError)) else 1
    except ProcessLost as error:
        if processes.first:
            print(file=sys.stderr)
            terminal.error(f"{error}; the last checkpoint is left as it was")
        return 1
    except (DataError, SetupError, FileError) as error:
        for note in getattr(error, "notes", []):
            terminal.warning(note)
        terminal.error(error)
        return 2
    except OSError as error:  # for example a full disk
        where = f"{error.filename}: " if error.filename else ""
        terminal.error(f"{where}{error.strerror or error}; the last checkpoint is left as it was")
        return 1
    except NonFiniteLoss as error:
        if processes.first:
            print(file=sys.stderr)  # ends the progress line
            terminal.error(f"{error}; the last checkpoint is left as it was")
        return 1
    finally:
        processes.leave()


def run(arguments: argparse.Namespace, processes: Processes) -> int:
    """Check everything that can be checked before training, then train."""
    from reweighting.records.dataset import load_data
    from reweighting.system.files import DirectoryLock

    data = processes.in_turn(lambda: load_data(arguments, progress=processes.first))
    encoder, steps = processes.together(lambda: check(arguments, data))
    if arguments.dry_run:
        processes.together(lambda: plan(arguments, data, encoder) if processes.first else None)
        return 0
    if data.meta:
        print(f"{terminal.printable(arguments.meta_json_file)}: {data.meta.description()}")
    lock = processes.together(
        lambda: DirectoryLock(arguments.weights_path) if processes.first else nullcontext()
    )
    with lock:
        engine = processes.together(lambda: make_engine(arguments, data, encoder, steps, processes))
        return engine.run()


def check(arguments: argparse.Namespace, data: Data) -> tuple[PromptEncoder, LabelledSteps | None]:
    """Look at the model, the checkpoint that the run starts from, and the steps it is judged by."""
    from reweighting.training.build import check_start, make_encoder
    from reweighting.training.dry_run import advice
    from reweighting.training.resume import checkpoint_to_resume
    from reweighting.training.validation import load_eval_steps

    steps = load_eval_steps(arguments)
    for note in [*data.warnings, *advice(arguments, data)]:
        terminal.warning(note)
    encoder = make_encoder(arguments, data.system)
    checkpoint, _ = checkpoint_to_resume(arguments)
    for note in check_start(arguments, data, checkpoint):
        print(note)
    return encoder, steps


def plan(arguments: argparse.Namespace, data: Data, encoder: PromptEncoder) -> None:
    """Print what the run would do and need."""
    from reweighting.training.dry_run import print_plan
    from reweighting.training.resume import check_resume

    check_resume(arguments, data)
    print_plan(arguments, data, encoder)


def make_engine(
    arguments: argparse.Namespace,
    data: Data,
    encoder: PromptEncoder,
    steps: LabelledSteps | None = None,
    processes: Processes | None = None,
) -> ReweightingEngine:
    """The two-level problem (DreamPRM, section 3) as a pair of Betty problems, in their engine."""
    import torch
    from betty.configs import Config

    from reweighting.bilevel.hypergradient import HYPERGRADIENTS
    from reweighting.bilevel.problems import Lower, Upper
    from reweighting.training import build
    from reweighting.training.engine import ReweightingEngine
    from reweighting.training.resume import check_resume

    a = arguments
    state = check_resume(a, data)  # None for a fresh start
    progress = build.make_progress(a, data, state)
    torch.manual_seed(a.seed)
    model = build.make_model(a, encoder, state)

    # Lower level: φ*(α) = argmin_φ mean_j w_j(α) · ℓ(V_φ(prefix_j), accuracy_j)
    optimizer, lr_scheduler = build.lower_optimization(a, model, progress)
    lower = Lower(
        name="lower",
        config=Config(type=HYPERGRADIENTS[a.hypergradient], unroll_steps=a.unroll_steps),
        module=model,
        batches=build.train_batches(a, data, encoder, progress, processes),
        loss=a.loss,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        max_grad_norm=a.max_grad_norm,
        accumulation=a.gradient_accumulation,
        precision=a.precision,
        loss_scaler=build.make_loss_scaler(a),
        window=build.window(a),
        fixed_weights=build.make_fixed_weights(a, data),
        cold=progress.cold,
        compiled=a.compile,
        processes=processes,
    )
    if not a.learn_weights:
        return ReweightingEngine(a, data, progress, lower, None, state, steps)

    # Upper level: α* = argmin_α mean_m ℓ_meta( σ( mean_i z_{m,i}(φ*(α)) ), true_false_m )
    weighting = build.make_weighting(a, data, model)
    optimizer, lr_scheduler = build.upper_optimization(a, weighting, progress)
    upper = Upper(
        name="upper",
        config=Config(retain_graph=True),  # Betty asks for the direct gradient of α first
        module=weighting,
        batches=build.meta_batches(a, data, encoder, progress, processes),
        loss=a.meta_loss,
        target=a.meta_target,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        max_grad_norm=a.meta_max_grad_norm,
        precision=a.precision,
        processes=processes,
    )
    # The two meet here: α weighs the losses of `lower`, and `upper` judges the φ that follows.
    return ReweightingEngine(a, data, progress, lower, upper, state, steps)


if __name__ == "__main__":
    terminal.exit_with(main)
