"""Data-parallel training over the processes that torchrun started; one process needs nothing of it."""

from __future__ import annotations

import gc
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dgmfast.errors import InputError
from dgmfast.nn import RowBatchNorm
from dgmfast.objectives import Objective

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    size: int = 1

    def part(self, rows: int) -> tuple[int, int]:
        """The rows [begin, end) of a batch of `rows` that are this process's: parts differ by one row at most."""
        return self.rank * rows // self.size, (self.rank + 1) * rows // self.size

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, function: Callable[[], T]) -> T:
        """What `function` returns, or the InputError that it raises, in the first process, which alone touches the run folder."""
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
            raise InputError(answer[1])
        result: T = answer[0]
        return result

    def everywhere(self, function: Callable[[], T]) -> T:
        """What `function` returns in each process; an InputError of one is raised in all, so that none waits for it."""
        if self.size == 1:
            return function()
        result, error = None, None
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
        told: list[str | None] = [None] * self.size
        dist.all_gather_object(told, error)
        for message in told:
            if message is not None:
                raise InputError(message)
        return result  # type: ignore[return-value]

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """All `rows` rows in every process, from each one's `part` of them."""
        begin, end = self.part(rows)
        whole = part.new_zeros(rows, *part.shape[1:])
        whole[begin:end] = part
        return self.sum(whole)


@contextmanager
def process_group(device: torch.device, patience: timedelta | None = None) -> Iterator[Group]:
    """The group that torchrun's environment describes: gloo on CPU, nccl on CUDA; patience: of one process with another."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # a DistributedDataParallel, which is a reference cycle, aborts the process if it outlives its group
        dist.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """The device called `name`; under torchrun "cuda" is the process's own card.

    Raises:
        InputError: no such device here.
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
    """The objective as a module, which DistributedDataParallel can wrap."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.unchecked_loss(self.model, *arguments)  # type: ignore[arg-type]


def parallel(model: nn.Module, objective: Objective, group: Group, device: torch.device) -> nn.Module:
    """The loss of `model`, whose backward averages the gradients over the processes."""
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
        result: Tensor = super().forward(x.flatten(0, -2)).view(x.shape)
        return result


def _synchronise_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, RowBatchNorm):
            synchronised = RowSyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            synchronised.load_state_dict(child.state_dict())
            setattr(module, name, synchronised.to(child.weight.device))
        else:
            _synchronise_batch_norm(child)
