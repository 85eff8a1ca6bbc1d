"""A check that a module is unmodified, so that a fused op may use its parameters instead of calling it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _module

# Names of instance attributes that would replace a method, a parameter or a statistic of the class.
_SHADOWS = frozenset(
    {
        *("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "log_prob"),
        *("weight", "bias", "logits", "running_mean", "running_var"),
    }
)


def is_plain(module: nn.Module, kind: type[nn.Module], *parameters: str) -> bool:
    """True if calling `module` runs the forward of the class `kind` on the module's own parameters, and does nothing else.

    Only then may an op read the parameters instead of calling the module. The result is false in these cases:

    - the module is of a subclass of `kind`, such as an adapter or a module with a parametrisation;
    - a forward or backward hook of any kind is registered, on the module or on all modules (the old-style `weight_norm`,
      `spectral_norm` and `prune` are forward pre-hooks);
    - a method was patched, or `module.compile()` was called;
    - the parameters are not exactly those in `parameters`, each of them an nn.Parameter or None.

    Submodules are not checked.
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
