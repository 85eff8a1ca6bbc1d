"""Whether a module is exactly what its type says, so that a fused op may do its work."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _module

# Instance attributes that take the place of a method, a parameter or a statistic of the class.
_SHADOWS = frozenset(
    {
        *("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "log_prob"),
        *("weight", "bias", "logits", "running_mean", "running_var"),
    }
)


def is_plain(module: nn.Module, kind: type[nn.Module], *parameters: str) -> bool:
    """True if a call of `module` runs the forward of `kind` on the module's own parameters, and nothing else.

    Only then may an op read the parameters instead of calling the module. It is false for a subclass of `kind`, such as an
    adapter or a module with a parametrisation; with a forward or backward hook of any kind, on the module or on all modules
    (`weight_norm`, `spectral_norm` and `prune` of the old style are forward pre-hooks); where a method was patched; after
    `module.compile()`; and where the parameters are not exactly those named, each an nn.Parameter itself or None. Submodules
    are not looked at.
    """
    if type(module) is not kind:
        return False
    state, own = module.__dict__, module._parameters
    for name in parameters:
        if name not in own or not (own[name] is None or type(own[name]) is nn.Parameter):
            return False
    return not (
        len(own) > len(parameters)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
        or module._compiled_call_impl is not None
        or not _SHADOWS.isdisjoint(state)
    )
