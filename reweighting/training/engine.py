"""The loop of a run: Betty's engine with a progress line, checkpoints and exact resumption."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import uuid
import zlib
from pathlib import Path

import torch
from betty.configs import EngineConfig
from betty.engine import Engine
from tqdm import tqdm

from ..bilevel.batches import TrainBatch, whole_size
from ..bilevel.problems import ONE_WEIGHT_CLIPPED, Lower, Upper
from ..bilevel.weighting import DomainTable
from ..records.dataset import Data, step_size
from ..system.checkpoints import finding, saving
from ..system.checkpoints.finding import CheckpointError
from ..system.files import write_json
from ..system.terminal import printable
from .build import lower_optimization
from .monitors import DomainMonitor, InstanceMonitor
from .outcome import outcome
from .progress import Progress
from .reports import BAR_FORMAT, Reporter
from .resume import resume_command
from .statistics import MovedShare
from .validation import LabelledSteps, Validation


class ReweightingEngine(Engine):
    """Takes lower steps, and after every ``unroll_steps``-th an upper step.

    Args:
        arguments: of the run.
        data: its checked records.
        progress: where it stands.
        lower: the lower level.
        upper: the upper level; None for a run with fixed weights.
        state: what :meth:`state_dict` gave when the run was interrupted; None for a fresh start.
        steps: labelled chains that are judged on the way.

    Raises:
        CheckpointError: ``state`` does not fit this run.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        data: Data,
        progress: Progress,
        lower: Lower,
        upper: Upper | None,
        state: dict | None,
        steps: LabelledSteps | None = None,
    ) -> None:
        self.arguments, self.data, self.progress = arguments, data, progress
        self.processes = lower.processes
        self.directory = Path(arguments.weights_path)
        # A run keeps its name when it is resumed: only its own checkpoints are ever deleted.
        self.loaded = finding.current(self.directory) if state else None
        self.name = (finding.run_of(self.loaded) if self.loaded else None) or uuid.uuid4().hex
        self.moved = MovedShare(lower.module)
        self.reporter = Reporter(arguments, data.domains, self.processes)
        self.validation = Validation(
            data.validation,
            arguments.eval_every,
            self.directory,
            arguments.precision,
            steps,
            self.processes,
        )
        self._said: set[str] = set()
        self._interrupted: int | None = None
        self._communicated = 0.0  # seconds, before the run
        self.monitor: DomainMonitor | InstanceMonitor | None = None
        problems, dependencies = [lower], {"u2l": {}, "l2u": {}}
        lower.on_losses = self._note_losses
        if upper is not None:
            of_domains = isinstance(upper.module, DomainTable)
            self.monitor = (DomainMonitor if of_domains else InstanceMonitor)(data, upper)
            upper.on_losses = self._note_meta_losses
            upper.on_step = lambda: self.monitor.stepped(lower)
            problems = [upper, lower]
            # α enters the lower level's loss; the reward model that follows is judged above.
            dependencies = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
        super().__init__(problems, EngineConfig(train_iters=progress.total), dependencies)
        self.upper = upper
        if state is not None:
            try:
                self.load_state_dict(state)
            except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
                raise CheckpointError(
                    f"{self.loaded / finding.STATE_FILE}: does not fit this run "
                    f"({printable(error)}); it was written for another model or is damaged"
                ) from error

    def configure_systems(self) -> dict:
        """One process on the device asked for (Betty would take any CUDA device it finds).

        Betty knows nothing of other processes either: its way of sharing work averages products of
        each process's own gradients, which is not the product of the averages.
        """
        self.device = torch.device(self.arguments.device)
        return {
            "strategy": "default",
            "backend": None,
            "world_size": 1,
            "rank": 0,
            "local_rank": self.arguments.local_rank,
        }

    def run(self) -> int:
        """Train to the end or to the first signal.

        Returns:
            the exit code of the process: 0, or 128 + the number of the signal.
        """
        self.train()
        progress = self.progress
        previous = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        if self.processes.first:
            saving.truncate_metrics(self.directory, progress.iteration)
        bar = tqdm(
            total=progress.total,
            initial=progress.iteration,
            dynamic_ncols=True,
            bar_format=BAR_FORMAT,
            disable=not self.processes.first,
        )
        started, self._communicated = time.monotonic(), self.processes.seconds()
        try:
            with bar, self.reporter:
                while not progress.finished and not self._stopping():
                    self.global_step = progress.iteration + 1
                    self.train_step()
                    progress.iteration += 1
                    self._after_step(bar, time.monotonic() - started)
                if progress.finished:
                    self._report(time.monotonic() - started)
                self.save()
            print(
                outcome(
                    progress, self.directory, self.upper, self.monitor, self.validation,
                    self.arguments.eval_candidates, self.arguments.eval_steps,
                )
            )  # fmt: skip
            if self._stopping():
                print(f"\nto go on: {resume_command()}")
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for problem in self.problems:
                problem.batches = None  # ends the data workers
        return 128 + (self._interrupted or signal.SIGTERM) if self._stopping() else 0

    def _stopping(self) -> bool:
        """Whether to stop after this step: of several processes, all stop after the same one."""
        if self.processes.count > 1:
            return self.processes.stopping
        return self._interrupted is not None

    def train_step(self) -> None:
        """One lower step, and the upper step if it is due."""
        if self.progress.cold:
            self.lower.one_step_descent()
        else:
            super().train_step()

    def _after_step(self, bar: tqdm, seconds: float) -> None:
        arguments, progress = self.arguments, self.progress
        bar.update()
        if self.validation.due(progress.iteration, progress.finished):
            self.validation.run(self.lower.module, progress.iteration, self._write_model)
        line = self.reporter.progress_line(self.latest(), progress.total, seconds)
        bar.set_postfix_str(line, refresh=False)
        if progress.iteration == progress.cold_steps:
            self.lower.end_cold_start(*lower_optimization(arguments, self.lower.module, progress))
        if self.upper is not None:
            self._notice_lost_steps()
        if progress.iteration % arguments.logging_steps == 0:
            self._report(seconds)
            if self.upper is not None and not progress.cold:
                self._notice_divergence()
        if progress.iteration % arguments.save_every_iterations == 0 and not progress.finished:
            self.save()

    def _report(self, seconds: float) -> None:
        """Write a line of metrics."""
        if self.monitor is not None:
            self.monitor.collect()
        self.reporter.write(self.numbers(), seconds)

    def _interrupt(self, number: int, frame) -> None:
        alone = self.processes.count == 1
        if self._interrupted is not None:
            if alone:  # asked twice: do not wait for the step to end
                raise KeyboardInterrupt
            return  # from the user or a scheduler, and from the launcher, which passes it on
        self._interrupted = self.processes.signal = number
        if self.processes.first:
            more = "; once more ends it at once, without saving" if alone else ""
            print(f"\nstopping after this step, then saving{more}", file=sys.stderr)

    # What is noticed on the way

    def _note_losses(self, batch: TrainBatch, losses: torch.Tensor, weights: torch.Tensor) -> None:
        self.reporter.note_losses(batch.domains, losses, whole_size([batch]))
        if self.monitor is not None and not self.progress.cold:
            self.monitor.trained(batch, weights)

    def _note_meta_losses(
        self, loss: float, losses: torch.Tensor, true_false: torch.Tensor
    ) -> None:
        self.reporter.note_meta_loss(loss)
        self.monitor.judged(losses, true_false)

    def _notice_divergence(self) -> None:
        if problem := self.monitor.divergence():
            advice = "try a smaller --meta_lr or larger batches"
            self._notice(problem.split(":")[0], f"{problem}; {advice}")

    def _notice_lost_steps(self) -> None:
        for reason in self.upper.lost:
            what = "taught nothing" if reason == ONE_WEIGHT_CLIPPED else "was skipped"
            self._notice(reason, f"an upper step {what}: {reason}; the end of the run counts them")

    def _notice(self, kind: str, text: str) -> None:
        """Warn once of each kind, without breaking the progress line."""
        if kind not in self._said and self.processes.first:
            self._said.add(kind)
            tqdm.write(f"warning: step {self.progress.iteration:,}: {text}", file=sys.stderr)

    def latest(self) -> dict:
        """The numbers of the progress line, see :meth:`~.reports.Reporter.progress_line`."""
        upper = self.monitor.latest() if self.monitor else {}
        return {"weighted_loss": self.lower.last_loss, **upper, **self.validation.latest()}

    def numbers(self) -> dict:
        """The numbers of a line of metrics, see :meth:`~.reports.Reporter.write`."""
        a, progress = self.arguments, self.progress
        numbers = {
            "iteration": progress.iteration,
            "epoch": progress.iteration * step_size(a) / progress.units,
            "weighted_loss": self.lower.last_loss,
            "learning_rate": float(self.lower.optimizer.param_groups[0]["lr"]),
        }
        if self.monitor is not None:
            numbers |= self.monitor.numbers(progress.upper_steps)
        numbers |= self.validation.latest()
        numbers["parameters_moved"] = self.moved.value()
        numbers["waited"] = sum(problem.waited for problem in self.problems)  # seconds
        numbers["communicated"] = self.processes.seconds() - self._communicated
        return numbers

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint of the present state: the first process does it for all."""
        state = self.state_dict()

        def write(folder: Path) -> None:
            self._write_model(folder)
            torch.save(state, folder / finding.STATE_FILE)

        def save() -> None:
            if self.processes.first:
                self.loaded = saving.save(
                    self.directory, self.progress.iteration, write, self.name, self.loaded
                )

        self._check_equal()
        self.processes.together(save)

    def _check_equal(self) -> None:
        """Make sure that all processes have the same model: none has lost or doubled a step.

        Raises:
            RuntimeError: they differ.
        """
        if self.processes.count == 1:
            return
        sample = zlib.crc32(self.moved.sample().numpy().tobytes())
        if len(set(self.processes.gather(sample))) > 1:
            raise RuntimeError("the processes have come to different parameters")

    def _write_model(self, folder: Path) -> None:
        self.lower.module.save_pretrained(folder)
        if self.monitor is not None:
            self.monitor.save(folder)
        write_json(folder / finding.ARGUMENTS_FILE, vars(self.arguments))

    def state_dict(self) -> dict:
        """Everything that resuming needs besides the reward model and the arguments.

        It is the same on all processes, which ask for it together.
        """
        if self.monitor is not None:
            self.monitor.collect()
        state = {
            "iteration": self.progress.iteration,
            "data": self.data.fingerprint,
            "lower": self.lower.state_dict(),
            "random": torch.get_rng_state(),
            "reporter": self.reporter.state_dict(),
            "start": self.moved.state_dict(),
            "validation": self.validation.state_dict(),
        }
        if self.arguments.lora_rank:
            state["trained"] = {
                name: parameter.detach()
                for name, parameter in self.lower.module.named_parameters()
                if parameter.requires_grad
            }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        if self.upper is not None:
            state["upper"] = self.upper.state_dict()
            state |= self.monitor.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        progress = self.progress
        self.lower.load_state_dict(state["lower"])
        # Betty's counts of steps, which decide when an upper step is due.
        self.lower._count = progress.bilevel_steps
        if self.upper is not None:
            if self.lower.window.maxlen > 1:
                features = state["upper"]["features"]
                self.lower.replay(features[len(features) - progress.since_upper_step :])
            self.upper.load_state_dict(state["upper"])
            self.upper._count = progress.upper_steps
            self.monitor.load_state_dict(state)
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.reporter.load_state_dict(state["reporter"])
        self.moved.load_state_dict(state["start"])
        self.validation.load_state_dict(state["validation"])
