"""The processes of one run, and what they tell each other.

A launcher (``torchrun``, ``accelerate launch``) starts one command several times, and ``--strategy
distributed`` makes one run of it: every process computes its share of every batch, and what one
process would sum over the whole batch is summed over the processes here. Alone, a process sends,
copies and waits for nothing: all of this is the identity.

All processes must call the methods that communicate, in the same order.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # it takes seconds: the command line is read without it
    import torch

T = TypeVar("T")
BUCKET = 2**24  # numbers that are summed together: 64 MiB of fp32


class EndedElsewhere(Exception):
    """Another process has failed and says why; this one ends without a word."""


class ProcessLost(Exception):
    """Another process of the run has ended in the middle of it."""


def launched() -> int:
    """How many processes a launcher has started with this one; 1 without a launcher."""
    return _variable("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def launched_here() -> int:
    """How many of them are on this machine."""
    return _variable("LOCAL_WORLD_SIZE", 1)


def launched_rank() -> int:
    """The number of this process among them, from 0."""
    return _variable("RANK", 0)


def launched_local_rank() -> int:
    """The number of this process among those on this machine, from 0."""
    return _variable("LOCAL_RANK", 0)


def restarts() -> int:
    """How often the launcher starts the processes again when one of them fails."""
    return _variable("TORCHELASTIC_MAX_RESTARTS", 0)


def _variable(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


class Processes:
    """The processes of a run, seen from one of them.

    Args:
        rank: the number of this process, from 0.
        count: how many there are.
        local_rank: the number of this process among those of its machine.
        device: where tensors are sent from.

    Attributes:
        calls, sent: collective operations so far, and the bytes of this process that entered them.
        signal: the number of a signal that this process has received; 0 if none.
        stopping: whether any of the processes had received one when the last lower step was taken.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, local_rank: int = 0, device: str = "cpu"
    ) -> None:
        self.rank, self.count, self.local_rank, self.device = rank, count, local_rank, device
        self.calls = self.sent = self.signal = 0
        self.stopping = False
        self._seconds = 0.0
        self._spans: list[tuple[Any, Any]] = []  # on a GPU, of which the times are not known yet

    @classmethod
    def of_launcher(cls, device: str) -> Processes:
        """Join the group of processes that the launcher has started (accelerate's, with its
        configuration): NCCL between GPUs, gloo between CPUs. Without a launcher, this one alone.
        """
        if launched() == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu", **_store_of_restart())
        return cls(state.process_index, state.num_processes, state.local_process_index, device)

    @property
    def first(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    def leave(self) -> None:
        """Leave the group, at the end of the program."""
        if self.count > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    # Sums and lists over all processes

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum ``tensors`` over the processes, in place, a bucket of them at a time."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = self._flat(bucket)
            self._sum(flat)
            if flat.data_ptr() != bucket[0].data_ptr():
                _write(flat, bucket)

    def sum_step(self, gradients: Sequence[torch.Tensor], losses: torch.Tensor) -> list[float]:
        """Sum the gradients of a lower step in place, and its ``losses`` ``[n]``, which it returns.

        Whether a process was told to stop travels along, so that all stop after the same step.
        """
        if self.count == 1:
            return losses.tolist()
        import torch

        values = torch.cat([losses.float(), losses.new_tensor([self.signal], dtype=torch.float32)])
        self.sum_([values, *gradients])
        *found, signal = values.tolist()
        self.stopping = signal > 0
        return found

    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of all processes' ``tensor`` ``[n, ...]``, in the order of the processes."""
        if self.count == 1:
            return tensor
        import torch
        import torch.distributed as dist

        own = tensor.to(self.device)
        sizes = self.gather(len(own))
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        with self._counted(padded):
            dist.all_gather(parts, padded)
        joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return joined.to(tensor.device)

    def join_sparse(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the processes of a sparse ``[rows, 1]``, by its entries alone."""
        if self.count == 1:
            return tensor
        import torch

        row, value = tensor._indices()[0].double(), tensor._values()[:, 0].double()
        rows, values = self.join(torch.stack([row, value], dim=1)).unbind(1)
        entries = values.to(tensor.dtype)[:, None]
        return torch.sparse_coo_tensor(rows.long()[None], entries, tensor.shape)

    def gather(self, value: T) -> list[T]:
        """The ``value`` of every process, which can be pickled, in their order."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with self._counted():
            dist.all_gather_object(found, value)
        return found

    # Work that may fail

    def together(self, work: Callable[[], T]) -> T:
        """``work()``, which communicates with nobody.

        Raises:
            EndedElsewhere: it has failed on another process, the first of which says why.
        """
        if self.count == 1:
            return work()
        result, error = None, None
        try:
            result = work()
        except Exception as problem:
            error = problem
        failed = [rank for rank, bad in enumerate(self.gather(error is not None)) if bad]
        if failed and (error is None or failed[0] != self.rank):
            raise EndedElsewhere from error
        if error is not None:
            raise error
        return result

    def in_turn(self, work: Callable[[], T]) -> T:
        """``work()`` on the first process, then on the first of every machine, then on the others.

        So that they find what the first has kept in a cache.

        Raises:
            EndedElsewhere: as for :meth:`together`.
        """
        turn = 0 if self.rank == 0 else 1 if self.local_rank == 0 else 2
        results = [
            self.together(work if turn == number else lambda: None)
            for number in range(3 if self.count > 1 else 1)
        ]
        return results[turn]

    # Counting and timing

    def seconds(self) -> float:
        """Seconds spent so far on communication and on waiting for the other processes."""
        for start, end in self._spans:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._spans.clear()
        return self._seconds

    @property
    def _kind(self) -> str:
        return self.device.partition(":")[0]

    def _flat(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """All numbers of ``tensors`` in a row; a single tensor is not copied if it need not be."""
        import torch

        flat = [tensor.reshape(-1) for tensor in tensors]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)).to(self.device)

    def _sum(self, tensor: torch.Tensor) -> None:
        import torch.distributed as dist

        with self._counted(tensor):
            dist.all_reduce(tensor)

    @contextlib.contextmanager
    def _counted(self, tensor: torch.Tensor | None = None) -> Iterator[None]:
        """Count a collective operation, and turn the end of another process into one error."""
        self.calls += 1
        self.sent += 0 if tensor is None else tensor.numel() * tensor.element_size()
        start = self._now()
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost("another process of this run has ended") from error
        end = self._now()
        if isinstance(start, float):
            self._seconds += end - start
        else:  # a GPU works through it later
            self._spans.append((start, end))

    def _now(self) -> Any:
        if self._kind != "cuda":
            return time.monotonic()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class StreamedSum:
    """Sums tensors over the processes while they are being made, so that no list of them exists.

    The order of the sums must be the same everywhere, and a process may never get to some of the
    tensors, for example if its share of a batch has no image. The buckets are therefore fixed
    beforehand, the last tensors first, as a backward pass makes them.

    Args:
        processes: alone, a tensor is handed on at once.
        like: tensors of the shapes to come.
        take: is called with the number and the sum of every tensor, in any order.
    """

    def __init__(
        self,
        processes: Processes,
        like: Sequence[torch.Tensor],
        take: Callable[[int, torch.Tensor], None],
    ) -> None:
        self._processes, self._like, self._take = processes, like, take
        self._held: dict[int, torch.Tensor] = {}
        self._buckets: list[list[int]] = []
        if processes.count > 1:
            last, start = list(reversed(range(len(like)))), 0
            for bucket in _buckets(like[::-1]):
                self._buckets.append(last[start : start + len(bucket)])
                start += len(bucket)

    def add(self, number: int, tensor: torch.Tensor) -> None:
        """Give this process's part of tensor ``number``."""
        if self._processes.count == 1:
            self._take(number, tensor)
            return
        self._held[number] = tensor
        while self._buckets and all(number in self._held for number in self._buckets[0]):
            self._send()

    def missing(self) -> list[int]:
        """The tensors that are still to be given; none if the process is alone."""
        return [n for bucket in self._buckets for n in bucket if n not in self._held]

    def finish(self) -> None:
        """Take what is :meth:`missing` as zero, and sum what is left."""
        import torch

        while self._buckets:
            for number in self._buckets[0]:
                if number not in self._held:
                    self._held[number] = torch.zeros_like(self._like[number])
            self._send()
        self._like = ()  # they are not kept alive

    def _send(self) -> None:
        numbers = self._buckets.pop(0)
        tensors = [self._held.pop(number) for number in numbers]
        flat = self._processes._flat(tensors)
        self._processes._sum(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for number, part, tensor in zip(numbers, parts, tensors, strict=True):
            self._take(number, part.view(tensor.shape))


def _store_of_restart() -> dict[str, Any]:
    """Where processes that were started again find each other, as options of accelerate.

    torchrun keeps its store, in which the addresses of the processes before are still written.
    """
    restart = _variable("TORCHELASTIC_RESTART_COUNT", 0)
    if restart == 0:
        return {}
    import torch.distributed as dist

    store, rank, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restart}", store)
    return {"store": store, "rank": rank, "world_size": count}


def _write(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Write the numbers of ``flat``, one after another, to ``tensors``."""
    import torch

    parts = flat.to(tensors[0].device).split([tensor.numel() for tensor in tensors])
    shaped = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), shaped)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Successive tensors of one type, with at most :data:`BUCKET` numbers or one tensor."""
    bucket: list[torch.Tensor] = []
    room = BUCKET
    for tensor in tensors:
        if bucket and (tensor.numel() > room or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, room = [], BUCKET
        bucket.append(tensor)
        room -= tensor.numel()
    if bucket:
        yield bucket
