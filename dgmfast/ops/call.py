"""What the ops' Python entries share.

An eager call goes straight to the extension and pays for nothing here. When the extension refuses it, `retry` widens 16-bit
tensors on the CPU, broadcasts last dimensions, serves torch.fx and torch.func, or raises a readable error. Under torch.compile,
`compiled` widens and broadcasts ahead of the call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from dgmfast import _C
from dgmfast.ops.transforms import differentiable, no_forward_mode

is_compiling = torch.compiler.is_compiling

REFUSALS = (TypeError, ValueError, RuntimeError)  # what an op catches and hands to `retry`
HALVES = (torch.bfloat16, torch.float16)


def compiled(
    op: str,
    tensors: Sequence[Any],
    *rest: Any,
    broadcast: bool = False,
    rounded: bool = True,
    pack: Callable[[Sequence[Any]], Sequence[Any]] = list,
) -> Any:
    """Call the dispatcher's op on the tensors as the kernels take them; the arguments are those of `retry`."""
    fitting, dtype = fit(tensors, broadcast)
    return round_to(dtype if rounded else None, getattr(torch.ops.dgmfast, op)(*pack(fitting), *rest))


def retry(
    function: Callable[..., Any],
    error: Exception,
    arguments: dict[str, Any],
    *rest: Any,
    optional: Collection[str] = (),
    broadcast: bool = False,
    rounded: bool = True,
    pack: Callable[[Sequence[Any]], Sequence[Any]] = list,
    functional: Callable[..., Any] | None = None,
) -> Any:
    """Call an op again after the extension raised `error`, with tensors that its kernels take, or raise.

    Args:
        function: The public op.
        error: What the extension raised.
        arguments: The tensor arguments by name, in the order of the op's schema.
        rest: The schema's other arguments.
        optional: Names of the arguments that may be None.
        broadcast: Whether numbers and tensors of last dimension 1 broadcast over the last dimension of the others.
        rounded: Whether the outputs of 16-bit arguments are rounded to 16 bits.
        pack: Makes the op's arguments of a list of the tensors.
        functional: The op with a gradient under torch.func, if it is not `differentiable`.
    """
    op, values = function.__name__, list(arguments.values())
    proxies = [value for value in values if isinstance(value, Proxy)]
    if proxies:
        return handle_torch_function(function, proxies, *pack(values), *rest)
    if isinstance(error, RuntimeError) and not under_transform(error):
        if "jvp is not implemented" not in str(error):
            raise error
        raise no_forward_mode(op) from None
    check(op, {n: v for n, v in arguments.items() if not (v is None and n in optional)}, broadcast)
    tensors, dtype = fit(values, broadcast)
    if under_jit_trace():
        if all(fitting is value for fitting, value in zip(tensors, values, strict=True)):
            raise error
        raise NotImplementedError(
            f"{op}: torch.jit.trace takes no 16-bit tensors on the CPU and no last dimension that broadcasts; "
            "convert or expand the arguments before the call, or use torch.export"
        ) from None
    try:
        outputs = getattr(_C, op)(*pack(tensors), *rest)
    except TypeError as refused:
        message = str(refused).replace("float32 or float64 on the CPU", "float32, float64, bfloat16 or float16")
        raise TypeError(message) from None
    except RuntimeError as refused:
        if not under_transform(refused):
            raise
        outputs = (functional or partial(differentiable, op, len(tensors)))(*pack(tensors), *rest)
    return round_to(dtype if rounded else None, outputs)


def check(op: str, arguments: dict[str, Any], numbers: bool = False) -> None:
    """Raise TypeError for an argument that is no tensor (`numbers` may stand beside one), and for dtypes mixed with 16 bits."""
    given = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    for name, value in arguments.items():
        if name not in given and not (numbers and given and isinstance(value, (int, float))):
            raise TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}")
    (first, like), *others = given.items()
    for name, tensor in others:
        data = op.endswith("bernoulli_log_prob") and name == "x" and tensor.dtype in (torch.bool, torch.uint8)
        if is_half_on_cpu(like) and tensor.dtype != like.dtype and not data:
            expected, got = (str(t.dtype).removeprefix("torch.") for t in (like, tensor))
            raise TypeError(f"{op}: {name} must have the dtype of {first}, {expected}; got {got}")


def fit(values: Sequence[Any], broadcast: bool = False) -> tuple[list[Any], torch.dtype | None]:
    """The arguments as the kernels take them, and the dtype that their outputs are rounded to, or None.

    On the CPU, arguments of one 16-bit dtype become float32; mixed ones stay, for the op to refuse. With `broadcast`, numbers and
    tensors of last dimension 1 get the last dimension of the others. What is neither a tensor nor a number stays.
    """
    given = [value for value in values if isinstance(value, Tensor)]
    if not given:
        return list(values), None
    dtype = given[0].dtype
    half = is_half_on_cpu(given[0]) and all(t.dtype == dtype or not t.is_floating_point() for t in given)
    if half:
        values = [v.float() if isinstance(v, Tensor) and v.dtype == dtype else v for v in values]
    if broadcast:
        dim = next((t.shape[-1] for t in given if t.dim() and t.shape[-1] != 1), 1)
        like = given[0].new_empty((), dtype=torch.float32 if half else dtype)
        values = [with_last(value, dim, like) for value in values]
    return list(values), dtype if half else None


def is_half_on_cpu(tensor: Tensor) -> bool:
    """Whether the CPU's kernels have no such dtype, and autocast does not convert it either."""
    return tensor.dtype in HALVES and tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def with_last(value: Any, dim: int, like: Tensor) -> Any:
    """A number, or a tensor that has no last dimension or one of size 1, expanded to last dimension `dim`."""
    if isinstance(value, (int, float)):
        value = like.new_full((), value)
    if isinstance(value, Tensor) and value.shape[-1:] in ((), (1,)):
        return value.expand(*value.shape[:-1], dim)
    return value


def round_to(dtype: torch.dtype | None, outputs: Any) -> Any:
    """The output, or each of several, in `dtype`; as it is for None."""
    if dtype is None:
        return outputs
    return outputs.to(dtype) if isinstance(outputs, Tensor) else tuple(out.to(dtype) for out in outputs)


def under_jit_trace() -> bool:
    """Whether torch.jit.trace runs, told by its frames: an error ends the recording, and after a retry torch would crash."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "torch.jit._trace":
        frame = frame.f_back
    return frame is not None


def under_transform(error: Exception) -> bool:
    """Whether it is torch's refusal of a C++ autograd function under torch.func."""
    return "functorch transforms" in str(error)
