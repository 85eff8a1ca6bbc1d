"""Data-parallel training over the processes that torchrun started. A single process needs no setup."""

from __future__ import annotations

import gc
import hashlib
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dgmfast.errors import InputError, ToldElsewhere
from dgmfast.nn import RowBatchNorm
from dgmfast.objectives import Objective

T = TypeVar("T")

RENDEZVOUS_SECONDS = "DGMFAST_RENDEZVOUS_SECONDS"  # environment variable: how long processes wait for each other at the start


@dataclass(frozen=True)
class Group:
    """The processes that train together: this process has number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def shard(self, rows: int) -> tuple[int, int]:
        """This process's rows [begin, end) of a batch of `rows` rows. The shards differ by at most one row."""
        return self.rank * rows // self.size, (self.rank + 1) * rows // self.size

    def sum(self, value: Tensor) -> Tensor:
        """Sum the value over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def broadcast_from_rank0(self, function: Callable[[], T]) -> T:
        """Call `function` in the first process only, and return its result, or raise its InputError, in every process.

        Only the first process touches the run folder.
        """
        if self.size == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except InputError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise (InputError if self.rank == 0 else ToldElsewhere)(answer[1])
        result: T = answer[0]
        return result

    def all_or_raise(self, function: Callable[[], T]) -> T:
        """Call `function` in every process, and return its result.

        If it raises InputError in one process, all processes raise it, so that none waits for another.
        """
        if self.size == 1:
            return function()
        result, error = None, None
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
        messages: list[str | None] = [None] * self.size
        dist.all_gather_object(messages, error)
        for rank, message in enumerate(messages):
            if message is not None:
                raise (InputError if self.rank == rank else ToldElsewhere)(message)
        return result  # type: ignore[return-value]

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """All `rows` rows in every process, from the `part` of them that each process has."""
        begin, end = self.shard(rows)
        whole = part.new_zeros(rows, *part.shape[1:])
        whole[begin:end] = part
        return self.sum(whole)


def rank_and_size() -> tuple[int, int]:
    """(rank, number of processes) from the environment that torchrun sets. Without WORLD_SIZE, RANK is ignored.

    Raises:
        InputError: A variable is missing or invalid.
    """
    size = _whole("WORLD_SIZE", 1)
    if size == 1:
        return 0, 1
    rank = _whole("RANK", 0)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(f"{' and '.join(missing)} must be set where WORLD_SIZE is {size}, as torchrun does; got nothing")
    if rank >= size:
        raise InputError(f"RANK must be below WORLD_SIZE, {size}; got {rank}")
    _whole("MASTER_PORT", 1)
    return rank, size


def _whole(name: str, least: int) -> int:
    """The whole number in an environment variable, or `least` if it is not set."""
    text = os.environ.get(name) or str(least)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise InputError(f"{name} in the environment must be a whole number of at least {least}; got {text!r:.50}")
    return int(text)


def is_main() -> bool:
    """True in the first process, which writes the messages for all."""
    try:
        return rank_and_size()[0] == 0
    except InputError:
        return True


def error_line(error: BaseException, message: str) -> str | None:
    """The line with which this process reports an error, or None if another process reports it.

    If the same error occurs in several processes, the first of them that reaches the store of torchrun reports it.
    """
    try:
        rank, size = rank_and_size()
    except InputError:
        return f"Error: {message}"
    if isinstance(error, ToldElsewhere):
        return None
    if size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        with suppress(RuntimeError, ValueError):
            wait = timedelta(seconds=3)
            store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, False, wait)
            if store.add(f"dgmfast/told/{hashlib.blake2b(message.encode(), digest_size=8).hexdigest()}", 1) > 1:
                return None
    return f"Error in process {rank} of {size}: {message}" if rank > 0 else f"Error: {message}"


def is_lost_process(error: RuntimeError) -> bool:
    """True if torch says with this error that another process has ended."""
    return rank_and_size()[1] > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error))


@contextmanager
def process_group(device: torch.device, patience: timedelta | None = None) -> Iterator[Group]:
    """Context manager: the group that torchrun's environment describes, with gloo on a CPU and nccl on CUDA.

    `patience` is how long a process waits for another one.
    """
    rank, size = rank_and_size()
    if size == 1 or dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _meet("nccl" if device.type == "cuda" else "gloo", rank, size, patience)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # A DistributedDataParallel is a reference cycle, and aborts the process if it outlives its group.
        gc.collect()
        dist.destroy_process_group()


def _meet(backend: str, rank: int, size: int, patience: timedelta | None) -> None:
    """Create the process group.

    Raises:
        InputError: The processes do not find each other.
    """
    wait = timedelta(seconds=_whole(RENDEZVOUS_SECONDS, 1) if os.environ.get(RENDEZVOUS_SECONDS) else 60)
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=wait))
        dist.init_process_group(backend, store=dist.PrefixStore("dgmfast", store), rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).split("\n")[0][:200]
        raise InputError(
            f"expected {size} processes (WORLD_SIZE) to meet at {address} (MASTER_ADDR, MASTER_PORT), with one RANK each, within "
            f"{wait.total_seconds():.0f} seconds ({RENDEZVOUS_SECONDS}); got {reason}"
        ) from error


def resolve_device(name: str) -> torch.device:
    """The device called `name`. Under torchrun, "cuda" is the process's own GPU.

    Raises:
        InputError: There is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be cpu or cuda; got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda; got {name!r}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return device


class Loss(nn.Module):
    """The objective as a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.unchecked_loss(self.model, *arguments)  # type: ignore[arg-type]


def parallel(model: nn.Module, objective: Objective, group: Group, device: torch.device) -> nn.Module:
    """The loss of `model` as a module whose backward pass averages the gradients over the processes."""
    if group.size == 1:
        return Loss(model, objective)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        if device.type == "cuda":
            _synchronise_batch_norm(model)
        elif group.rank == 0:
            warnings.warn("on CPU, batch normalisation takes its statistics over the rows of each process alone", stacklevel=2)
    if objective.free_bits and group.rank == 0:
        warnings.warn("free bits hold for the rows of each process, not for the whole batch", stacklevel=2)
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(Loss(model, objective), devices, gradient_as_bucket_view=True)


class RowSyncBatchNorm(nn.SyncBatchNorm):
    """RowBatchNorm over the rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> the same shape."""
        result: Tensor = super().forward(x.flatten(0, -2)).view(x.shape)
        return result


def _synchronise_batch_norm(module: nn.Module) -> None:
    """Replace every RowBatchNorm in the module by a RowSyncBatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, RowBatchNorm):
            synchronised = RowSyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            synchronised.load_state_dict(child.state_dict())
            setattr(module, name, synchronised.to(child.weight.device))
        else:
            _synchronise_batch_norm(child)
