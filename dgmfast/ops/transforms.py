"""The ops as Python autograd functions, which torch.func takes. It does not take the ones in C++, which are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def differentiable(op: str, count: int, *arguments: Any) -> Any:
    """The op of its schema's arguments, with gradients to the first `count` of them under torch.func."""
    return _Forward.apply(op, count, *arguments)


def _backward_arguments(op: str, arguments: Sequence[Any], outputs: Sequence[Tensor], wanted: list[bool]) -> tuple[Any, ...]:
    """What follows the gradients of the outputs in the schema of the backward op."""
    if op == "importance_bound":
        return tuple(arguments)
    if op == "label_linear":
        return (*outputs, *arguments, wanted)
    if op == "linear_bernoulli_log_prob":
        return (*arguments, None, wanted)
    if op == "masked_conv2d":
        x, weight, _, *rest = arguments
        return (x, weight, *rest, wanted)
    return (*arguments, wanted)


def no_forward_mode(op: str) -> NotImplementedError:
    """The error of a forward-mode derivative."""
    return NotImplementedError(
        f"{op}: forward-mode derivatives are not implemented; use dgmfast.reference.{op} where they are needed"
    )


class _Forward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(op: str, count: int, *arguments: Any) -> Any:
        return getattr(torch.ops.dgmfast, op)(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op, ctx.count, *arguments = inputs
        ctx.size = len(arguments)
        kept = [*arguments, *((output,) if isinstance(output, Tensor) else output)]
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in kept]
        ctx.save_for_backward(*(value for value in kept if isinstance(value, Tensor)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tensors = iter(ctx.saved_tensors)
        kept = [next(tensors) if other is None else other[0] for other in ctx.others]
        wanted = list(ctx.needs_input_grad[2 : 2 + ctx.count])
        found = _Backward.apply(ctx.op, *grads, *_backward_arguments(ctx.op, kept[: ctx.size], kept[ctx.size :], wanted))
        each = (found,) if isinstance(found, Tensor) else found
        of_tensors = (grad if want else None for grad, want in zip(each, wanted, strict=True))
        return (None, None, *of_tensors, *[None] * (ctx.size - ctx.count))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise no_forward_mode(ctx.op)


class _Backward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(op: str, *arguments: Any) -> Any:
        return getattr(torch.ops.dgmfast, f"{op}_backward")(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            f"{ctx.op}: the second derivative is not implemented; use dgmfast.reference.{ctx.op} where it is needed"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise no_forward_mode(ctx.op)
