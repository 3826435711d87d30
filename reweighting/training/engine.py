"""One run of training: problems built, Betty's engine driven, state saved and resumed.

data = load_data(arguments)
engine = ReweightingEngine(arguments, data, make_encoder(arguments, data.system))
engine.run()
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from tqdm import tqdm

from ..bilevel.batches import CollateTrain, ShuffledStream, TrainBatch, batch_loader, collate_meta
from ..bilevel.problems import ONE_WEIGHT_CLIPPED, Lower, Upper
from ..bilevel.weighting import make_meta_optimizer
from ..checkpoints import finding, opening, saving, weight_tables
from ..checkpoints.finding import CheckpointError
from ..files import write_json
from ..records.dataset import Data, total_steps, train_units
from ..reward_model.encoder import PromptEncoder
from ..reward_model.model import RewardModel
from ..terminal import printable, warning
from .build import SetupError, make_model, make_optimizer, make_scheduler, make_weighting
from .monitors import (
    ENOUGH_STEPS,
    MetaLosses,
    MovedShare,
    RecordWeights,
    WeightHistory,
    divergence,
)
from .reports import BAR_FORMAT, Reporter
from .validation import BEST_DIRECTORY, Validation

# What may change between the parts of an interrupted run: none of it alters a number.
FREE_ON_RESUME = {
    "iteration_num",
    "max_epoch",
    "save_every_iterations",
    "logging_steps",
    "num_workers",
    "image_cache_mib",
    "max_image_megapixels",
    "report_to",
    "resume",
    "dry_run",
    "device",
    "local_rank",
    "weights_path",
    "preset",  # what it set is looked at flag by flag
    "init_domain_weights",  # the checkpoint holds what became of them
    "allow_external_images",
    "allow_image_urls",
    "eval_candidates",
    "eval_image_root",
    "eval_every",
    "train_json_file",
    "meta_json_file",
}


ENOUGH = 100  # instance weights that show whether the upper level diverges


# --hypergradient to the name in Betty's table
HYPERGRADIENTS = {"unrolled": "unrolled", "darts": "finite_difference"}


def checkpoint_to_resume(arguments: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from and what is wrong with newer ones; None for a fresh start.

    Raises:
        SetupError: there is something to lose or nothing to resume.
    """
    directory = Path(arguments.weights_path)
    if not arguments.resume:
        if finding.occupied(directory):
            raise SetupError(
                f"{directory} already holds a reward model: --resume continues its run; choose "
                "another --weights_path for a new one"
            )
        return None, []
    folder, damaged = finding.survey(directory)
    if folder is None:
        reason = "holds no checkpoint to resume"
        if damaged:
            reason = "holds no complete checkpoint: " + "; ".join(damaged)
        elif finding.occupied(directory):
            reason = (
                "holds a reward model but no trainer state to resume; start from it with "
                f"--reward_model {directory} and another --weights_path"
            )
        elif not directory.exists():
            reason = "does not exist: there is nothing to resume"
        raise SetupError(f"{directory} {reason} (a fresh start is a run without --resume)")
    return folder, damaged


def check_resume(arguments: argparse.Namespace, data: Data) -> dict | None:
    """The state to resume from, or None for a fresh start.

    Raises:
        SetupError: there is something to lose, nothing to resume or something that does not fit.
        CheckpointError: a file of the checkpoint is damaged.
    """
    folder, damaged = checkpoint_to_resume(arguments)
    if folder is None:
        return None
    directory = Path(arguments.weights_path)
    before = opening.load_arguments(directory)
    free = FREE_ON_RESUME
    if "cosine_with_warmup" in (arguments.scheduler_type, arguments.meta_scheduler_type):
        free = free - {"iteration_num", "max_epoch"}  # the length shapes the cosine
    changed = [
        f"--{name} was {before[name]}, is {value}"
        for name, value in vars(arguments).items()
        if name not in free and name in before and before[name] != value
    ]
    if changed:
        raise SetupError(f"{directory} cannot be resumed: " + "; ".join(changed))
    state = opening.load_state(directory)
    if state["data"] != data.fingerprint:
        raise SetupError(
            f"{directory} cannot be resumed: the train or meta records are not those it was "
            "started with"
        )
    for problem in damaged:
        warning(f"{problem}; it is passed over")
    print(f"going on from step {state['iteration']:,} ({folder})")
    return state


class ReweightingEngine(Engine):
    """Betty's engine with a progress line, checkpoints, and exact resumption.

    One iteration is one lower step; Betty takes the upper step after every ``unroll_steps``-th.
    """

    def __init__(self, arguments: argparse.Namespace, data: Data, encoder: PromptEncoder) -> None:
        self.arguments = arguments
        self.data = data
        self.directory = Path(arguments.weights_path)
        state = check_resume(arguments, data)
        # A run keeps its name over its parts: only its own checkpoints are ever deleted.
        self.loaded = finding.current(self.directory) if state else None
        self.name = (finding.run_of(self.loaded) if self.loaded else None) or uuid.uuid4().hex
        torch.manual_seed(arguments.seed)
        model = make_model(arguments, state)
        model.encoder = encoder
        self.iteration = state["iteration"] if state else 0
        self.units = train_units(arguments, data.train)
        self.cold_steps = arguments.cold_start_iterations
        self.total = self.cold_steps + total_steps(arguments, len(self.units))
        self.reporter = Reporter(arguments, data.domains)
        self.validation = Validation(
            data.validation, arguments.eval_every, self.directory, arguments.precision
        )
        self.moved = MovedShare(model)
        self.history = WeightHistory()
        self.meta_losses: MetaLosses | None = None
        if arguments.learn_weights:
            right = sum(sample.true_false for sample in data.meta)
            self.meta_losses = MetaLosses(right / len(data.meta), arguments.meta_loss)
        self.records: RecordWeights | None = None
        if arguments.by_instance:
            rows = max(sample.record for sample in data.train)
            self.records = RecordWeights(rows, data.domains)
        self._said: set[str] = set()
        self._interrupted: int | None = None

        lower = self._make_lower(model.to(arguments.device))
        problems, dependencies = [lower], {"u2l": {}, "l2u": {}}
        if arguments.learn_weights:
            upper = self._make_upper(model)
            upper.on_losses = self._note_meta_losses
            upper.on_step = self._note_upper_step
            problems = [upper, lower]
            dependencies = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
        super().__init__(problems, EngineConfig(train_iters=self.total), dependencies)
        if state is not None:
            try:
                self._restore(state)
            except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
                raise CheckpointError(
                    f"{self.loaded / finding.STATE_FILE}: does not fit this run "
                    f"({printable(error)}); it was written for another model or is damaged"
                ) from error

    def _make_lower(self, model: RewardModel) -> Lower:
        a = self.arguments
        stream = ShuffledStream(
            len(self.units),
            a.batch_size,
            seed=2 * a.seed,
            start=(self.iteration - self._replayed()) * a.gradient_accumulation,
        )
        optimizer, scheduler = self._lower_optimizer(model)
        lower = Lower(
            name="lower",
            config=Config(type=HYPERGRADIENTS[a.hypergradient], unroll_steps=a.unroll_steps),
            module=model,
            optimizer=optimizer,
            batches=self._batches(
                self.units, model.encoder, CollateTrain(self.data.domains), stream
            ),
            precision=a.precision,
            loss=a.loss,
            accumulation=a.gradient_accumulation,
            max_grad_norm=a.max_grad_norm,
            window=self._window(),
            lr_scheduler=scheduler,
            loss_scaler=torch.amp.GradScaler(
                torch.device(a.device).type, enabled=a.precision == "fp16"
            ),
        )
        if self.data.fixed_weights is not None:
            lower.fixed_weights = torch.tensor(self.data.fixed_weights, device=a.device)
        lower.cold = self.cold
        lower.on_losses = self._note_losses
        return lower

    @property
    def cold(self) -> bool:
        """Whether the run is still in its cold start, before reweighting."""
        return self.iteration < self.cold_steps

    @property
    def bilevel_steps(self) -> int:
        """Lower steps done since reweighting started."""
        return max(0, self.iteration - self.cold_steps)

    def _lower_optimizer(self, model: RewardModel):
        """Optimizer and scheduler of the part of the run that comes next."""
        a = self.arguments
        optimizer = make_optimizer(a, model, self.cold)
        if self.cold:
            return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
        return optimizer, make_scheduler(
            optimizer,
            a.scheduler_type,
            self.total - self.cold_steps,
            a.warmup_share,
            a.scheduler_step_size,
            a.scheduler_gamma,
        )

    def _end_cold_start(self) -> None:
        lower = self.lower
        lower.cold = False
        lower.window.clear()
        lower.optimizer, lower.lr_scheduler = self._lower_optimizer(lower.module)

    def train_step(self) -> None:
        """One lower step, and the upper step if it is due."""
        if self.cold:
            self.lower.one_step_descent()
        else:
            super().train_step()

    def _window(self) -> int:
        """Lower steps whose records enter the hypergradient."""
        return self.arguments.unroll_steps if self.arguments.hypergradient_batches == "all" else 1

    def _replayed(self) -> int:
        """Batches of steps already done that the next hypergradient still needs."""
        since_upper_step = self.bilevel_steps % self.arguments.unroll_steps
        return since_upper_step if self._window() > 1 else 0

    def _make_upper(self, model: RewardModel) -> Upper:
        a = self.arguments
        weighting = make_weighting(a, self.data, model).to(a.device)
        optimizer = make_meta_optimizer(weighting, a.meta_lr, a.meta_weight_decay)
        stream = ShuffledStream(
            len(self.data.meta),
            a.meta_batch_size,
            seed=2 * a.seed + 1,
            start=self.bilevel_steps // a.unroll_steps,
        )
        return Upper(
            name="upper",
            # Betty first asks for the direct gradient of α, which would free the graph.
            config=Config(retain_graph=True),
            module=weighting,
            optimizer=optimizer,
            max_grad_norm=a.meta_max_grad_norm,
            lr_scheduler=make_scheduler(
                optimizer,
                a.meta_scheduler_type,
                (self.total - self.cold_steps) // a.unroll_steps,
                a.warmup_share,
                a.meta_scheduler_step_size,
                a.meta_scheduler_gamma,
            ),
            batches=self._batches(
                [[sample] for sample in self.data.meta], self.encoder, collate_meta, stream
            ),
            precision=a.precision,
            loss=a.meta_loss,
            target=a.meta_target,
        )

    def _batches(self, units, encoder, collate, stream):
        self.encoder = encoder
        return iter(
            batch_loader(
                units,
                encoder,
                collate,
                stream,
                self.arguments.num_workers,
                pin_memory=torch.device(self.arguments.device).type == "cuda",
            )
        )

    def configure_systems(self) -> dict:
        """One process on the device asked for (Betty would take CUDA whenever it is there)."""
        self.device = torch.device(self.arguments.device)
        return {
            "strategy": self.arguments.strategy,
            "backend": None,
            "world_size": 1,
            "rank": 0,
            "local_rank": self.arguments.local_rank,
        }

    def run(self) -> int:
        """Train to the end or to the first signal.

        Returns:
            the process's exit code: 0, or 128 + the signal's number.
        """
        self.train()
        previous = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        saving.truncate_metrics(self.directory, self.iteration)
        bar = tqdm(
            total=self.total, initial=self.iteration, dynamic_ncols=True, bar_format=BAR_FORMAT
        )
        started = time.monotonic()
        try:
            with bar, self.reporter:
                while self.iteration < self.total and self._interrupted is None:
                    self.global_step = self.iteration + 1
                    self.train_step()
                    self.iteration += 1
                    self._after_step(bar, time.monotonic() - started)
                if self.iteration == self.total:
                    self.reporter.write(self, time.monotonic() - started)
                self.save()
            print(self.outcome())
            if self._interrupted is not None:
                print(f"\nto go on: {resume_command()}")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for problem in self.problems:
                problem.batches = None  # ends the data workers
        return 0 if self._interrupted is None else 128 + self._interrupted

    def outcome(self) -> str:
        """Where the run stands and, with reweighting, what every domain weighs."""
        lines = [
            f"{self.iteration:,} of {self.total:,} lower steps done, saved in {self.directory}"
        ]
        if self.arguments.learn_weights:
            lines += ["", *self._weight_table(), *self._verdict()]
        if best := self.validation.best:
            lines += [
                "",
                f"best of N on {self.arguments.eval_candidates}: {100 * best['accuracy']:.1f} % "
                f"after {best['iteration']:,} steps, kept in {self.directory / BEST_DIRECTORY}; "
                f"last {100 * self.validation.history[-1]['accuracy']:.1f} %"
                + (f"; {self.validation.note}" if self.validation.note else ""),
            ]
        return "\n".join(lines)

    @property
    def upper_steps(self) -> int:
        """Upper steps done, those included that were left out for lack of a hypergradient."""
        return self.bilevel_steps // self.arguments.unroll_steps

    def _weight_table(self) -> list[str]:
        records = Counter(sample.domain for sample in self.data.train)
        weights, history = self.named_weights(), self.history
        lines = [f"{'domain':<24}{'records':>8}{'weight':>9}"]
        if len(history):
            lines[0] += f"{'average':>9}{'signal/noise':>14}"
            average, ratio = history.average(), history.signal_to_noise()
        for domain in sorted(weights, key=weights.get, reverse=True):
            lines.append(f"{printable(domain):<24}{records[domain]:>8,}{weights[domain]:>9.3f}")
            if len(history):
                index = self.data.domains.index(domain)
                known = "-" if ratio[index].isnan() else f"{ratio[index]:.1f}"
                lines[-1] += f"{average[index]:>9.3f}{known:>14}"
        if len(history):
            about = (
                f"of the last {history.looked_back} hypergradients, below 2 is what chance gives"
                if history.looked_back >= ENOUGH_STEPS
                else f"not before {ENOUGH_STEPS} upper steps"
            )
            lines.append(
                f"average: over the last quarter of the upper steps; signal/noise: {about}"
            )
        return lines

    def _verdict(self) -> list[str]:
        """What there is to say against the weights."""
        lines = []
        if self.upper_steps < ENOUGH_STEPS:
            lines.append(
                f"weights after {counted(self.upper_steps, 'upper step')} are not learned yet: "
                f"fewer than {ENOUGH_STEPS} cannot be told from noise"
            )
        compared = self.meta_losses.compared()
        if compared is not None and compared.at_chance:
            lines.append(
                "the meta loss is at chance: these weights mean nothing. Over the last "
                f"{compared.chains:,} meta chains it is {compared.loss:.4f}, and one score for all "
                f"has {compared.constant:.4f}"
            )
        for reason, count in self.upper.lost.items():
            steps = f"{count:,} of {counted(self.upper_steps, 'upper step')}"
            what = "taught nothing" if reason == ONE_WEIGHT_CLIPPED else "skipped"
            lines.append(f"{steps} {what}: {reason}")
        return lines

    def _after_step(self, bar: tqdm, seconds: float) -> None:
        bar.update()
        bar.set_postfix_str(self.reporter.progress_line(self, seconds), refresh=False)
        last = self.iteration == self.total
        if self.data.validation and self.validation.due(self.iteration, last):
            self.validation.run(self.lower.module, self.iteration, self._write_model)
        if self.iteration == self.cold_steps:
            self._end_cold_start()
        if self.arguments.learn_weights:
            self._notice_lost_steps()
        if self.iteration % self.arguments.logging_steps == 0:
            self.reporter.write(self, seconds)
            if self.arguments.learn_weights and not self.cold:
                self._notice_divergence()
        if self.iteration % self.arguments.save_every_iterations == 0 and not last:
            self.save()

    def _interrupt(self, number: int, frame) -> None:
        if self._interrupted is not None:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        self._interrupted = number
        print("\nstopping after this step, then saving ...", file=sys.stderr)

    def _note_losses(self, batch: TrainBatch, losses: torch.Tensor, weights: torch.Tensor) -> None:
        self.reporter.note_losses(batch.domains, losses)
        if self.records is not None and not self.cold:
            self.records.visit(batch.records, weights)

    def _note_meta_losses(
        self, loss: float, losses: torch.Tensor, true_false: torch.Tensor
    ) -> None:
        self.reporter.note_meta_loss(loss)
        self.meta_losses.add(losses, true_false)

    def _note_upper_step(self) -> None:
        if self.records is None:
            table = self.upper.module
            self.history.add(table.raw_weights.grad, table.weights())
            return
        for batch in (batch for step in self.lower.window for batch in step):
            weights = self.lower.weights(batch, batch.features)
            self.records.update(batch.records, batch.domains, weights)

    def named_weights(self) -> dict[str, float]:
        """{domain: weight}; of instance weights, means over the last records learned from."""
        return self.records.by_domain() if self.records else self.upper.module.named_weights()

    def weight_sample(self) -> torch.Tensor:
        """All domain weights, or the instance weights of the last records learned from, ``[n]``."""
        return self.records.recent() if self.records else self.upper.module.weights().detach()

    def _notice_divergence(self) -> None:
        weights = self.weight_sample()
        if self.records is not None and len(weights) < min(ENOUGH, len(self.data.train)):
            return
        if problem := divergence(weights, self.upper.module.bounds()):
            self._notice(
                problem.split(":")[0], f"{problem}; try a smaller --meta_lr or larger batches"
            )

    def _notice_lost_steps(self) -> None:
        for reason in self.upper.lost:
            what = "taught nothing" if reason == ONE_WEIGHT_CLIPPED else "was skipped"
            self._notice(reason, f"an upper step {what}: {reason}; the end of the run counts them")

    def _notice(self, kind: str, text: str) -> None:
        """Warn, of each kind once, without tearing the progress line."""
        if kind not in self._said:
            self._said.add(kind)
            tqdm.write(f"warning: step {self.iteration:,}: {text}", file=sys.stderr)

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        self.loaded = saving.save(
            self.directory, self.iteration, self._write, self.name, self.loaded
        )

    def _write_model(self, folder: Path) -> None:
        self.lower.module.save_pretrained(folder)
        if self.records is not None:
            module, records = self.upper.module, self.records
            weight_tables.save_instance_weights(folder, module, self.data.train, records)
        elif self.arguments.learn_weights:
            average = self.history.average().tolist() if len(self.history) else None
            weight_tables.save_domain_weights(folder, self.upper.module, average)
        write_json(folder / finding.ARGUMENTS_FILE, vars(self.arguments))

    def _write(self, folder: Path) -> None:
        self._write_model(folder)
        state = {
            "iteration": self.iteration,
            "data": self.data.fingerprint,
            "lower": {
                "optimizer": self.lower.optimizer.state_dict(),
                "scheduler": self.lower.lr_scheduler.state_dict(),
                "loss_scaler": self.lower.loss_scaler.state_dict(),
            },
            "random": torch.get_rng_state(),
            "reporter": self.reporter.state_dict(),
            "history": self.history.state_dict(),
            "start": self.moved.start,
            "validation": self.validation.history,
        }
        if self.arguments.lora_rank:
            state["trained"] = {
                name: parameter.detach()
                for name, parameter in self.lower.module.named_parameters()
                if parameter.requires_grad
            }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        if self.arguments.learn_weights:
            state["meta_losses"] = self.meta_losses.state_dict()
            state["records"] = self.records.state_dict() if self.records else None
            state["upper"] = {
                "module": self.upper.module.state_dict(),
                "optimizer": self.upper.optimizer.state_dict(),
                "scheduler": self.upper.lr_scheduler.state_dict(),
                "features": [[b.features for b in step] for step in self.lower.window],
                "last_loss": self.upper.last_loss,
                "hypergradient_norm": self.upper.hypergradient_norm,
                "loss_scale": self.upper.loss_scale,
                "lost": dict(self.upper.lost),
            }
        torch.save(state, folder / finding.STATE_FILE)

    def _restore(self, state: dict) -> None:
        lower = self.lower
        lower.optimizer.load_state_dict(state["lower"]["optimizer"])
        lower.lr_scheduler.load_state_dict(state["lower"]["scheduler"])
        lower.loss_scaler.load_state_dict(state["lower"]["loss_scaler"])
        features = state["upper"]["features"] if self.arguments.learn_weights else []
        for index in range(-self._replayed(), 0):
            step = lower.get_batch()
            for batch, seen in zip(step, features[index], strict=True):
                batch.features = None if seen is None else seen.to(self.device)
            lower.window.append(step)
        lower._count = (
            self.bilevel_steps
        )  # Betty's step counter: decides when the upper step is due
        if self.arguments.learn_weights:
            if "meta_losses" in state:  # checkpoints of before version 0.1.0 have none
                self.meta_losses.load_state_dict(state["meta_losses"])
            self.upper.module.load_state_dict(state["upper"]["module"])
            self.upper.optimizer.load_state_dict(state["upper"]["optimizer"])
            self.upper.lr_scheduler.load_state_dict(state["upper"]["scheduler"])
            if self.records is not None:
                self.records.load_state_dict(state["records"])
            self.upper.last_loss = state["upper"]["last_loss"]
            self.upper.hypergradient_norm = state["upper"]["hypergradient_norm"]
            self.upper.loss_scale = state["upper"].get("loss_scale", self.upper.loss_scale)
            self.upper.lost.update(state["upper"].get("lost", {}))
            self.upper._count = self.bilevel_steps // self.arguments.unroll_steps
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.reporter.load_state_dict(state["reporter"])
        self.history.load_state_dict(state["history"])
        self.moved.start = state["start"]
        self.validation.history = state["validation"]


def resume_command() -> str:
    """What to type to continue this process's run."""
    resume = [] if "--resume" in sys.argv else ["--resume"]
    return shlex.join(["python", *sys.argv, *resume])


def counted(count: int, what: str) -> str:
    """``1 upper step``, ``2 upper steps``."""
    return f"{count:,} {what}" + "s" * (count != 1)
