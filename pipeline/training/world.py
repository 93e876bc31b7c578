"""Who trains together: rank, number of ranks, device, and the collectives the loop needs."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

# Its functions keep the group of the moment at which they are imported as a default, for ever. DDP
# imports them; imported here, before there is a group, they keep none.
import torch.distributed.nn.functional
from torch import Tensor


class PendingSum:
    """A sum over all ranks that is under way."""

    def __init__(self, total: Tensor, work: torch.distributed.Work | None) -> None:
        self._total, self._work = total, work

    def result(self) -> Tensor:
        """The sum, the same bits on each rank."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._total


@dataclass(frozen=True)
class World:
    """One rank's place among `size` ranks; without a process group a world of one."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, the same bits on each; `values` itself is kept."""
        return self.begin_sum(values).result()

    def begin_sum(self, values: Tensor) -> PendingSum:
        """The same, without waiting for the other ranks; all ranks begin their sums in one order.

        A rank that waits at every message waits for the slowest at every message.
        """
        total = values.detach().clone()
        if self.size == 1:
            return PendingSum(total, None)
        return PendingSum(total, torch.distributed.all_reduce(total, async_op=True))

    def share(self, values: Tensor, source: int) -> Tensor:
        """Rank `source`'s values, on every rank; the others give a tensor of the same shape."""
        if self.size == 1:
            return values
        shared = values.detach().clone()
        torch.distributed.broadcast(shared, source)
        return shared

    def broadcast(self, value: int) -> int:
        """Rank 0's `value`, on every rank."""
        mine = torch.tensor([value if self.rank == 0 else 0], device=self.device)
        return int(self.sum(mine).item())


def current_world(device: torch.device | None = None) -> World:
    """The world of the process group that is initialised in this process, if any.

    `device` None: this process's current GPU if there is one, else the CPU.
    """
    if device is None:
        device = (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    if not torch.distributed.is_initialized():
        return World(0, 1, device)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def leave_process_group() -> None:
    """Destroys this process's group, and ends its threads.

    A thread of gloo's that is left when the interpreter ends aborts the process, now and then:
    https://github.com/pytorch/pytorch/pull/179291
    """
    gc.collect()  # DDP's modules hold the group in cycles
    torch.distributed.destroy_process_group()


@contextmanager
def process_group(stall_seconds: float) -> Iterator[None]:
    """torchrun's process group while the block runs; nothing outside torchrun.

    A rank that waits for the others for `stall_seconds` ends with an error.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=stall_seconds)
    )
    try:
        yield
    finally:
        leave_process_group()
