"""Tests of the ops under torch.func, torch.fx, torch.jit and make_fx: what works, and what the errors of the rest say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support import mlp_decoder
from support.op_cases import FULL, Tensors, as_tuple
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from dgmfast import ops

# torch calls an op once for each sample where there is no rule for vmap, and warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

NO_FORWARD_MODE = r"^\w+: forward-mode derivatives are not implemented; use dgmfast\.reference\.\w+ where they are needed$"
NO_SECOND = r"^\w+: the second derivative is not implemented; use dgmfast\.reference\.\w+ where it is needed"


@dataclass(frozen=True)
class Call:
    """One op as a function of its tensors, which an eager call takes by name."""

    op: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: Callable[..., Tensors]

    def outputs(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(self.function(**tensors))

    def loss(self, tensors: Tensors) -> Tensor:
        return sum((out.sin().sum() for out in self.outputs(**tensors)), torch.zeros(()))


def image(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 3, 6, 5), "weight": (4, 3, 3, 3), "bias": (4,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def decoder(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    return {name: t.roll(seed, -1) for name, t in mlp_decoder.draw(dtype=dtype).items()}


CALLS = [
    *(Call(case.op, case.call, case.tensors) for case in FULL),
    Call("masked_conv2d", lambda **t: ops.masked_conv2d(**t, mask="A"), image),
    Call("mlp_bernoulli_log_prob", lambda **t: mlp_decoder.value(t, "tanh"), decoder),
]
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)


def gradients(call: Call, tensors: Tensors) -> Tensors:
    """Returns the gradients of the loss by torch.autograd."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    return dict(zip(leaves, torch.autograd.grad(call.loss(leaves), list(leaves.values())), strict=True))


# torch.func


@every_call
def test_grad(call: Call) -> None:
    """torch.func.grad of all arguments, and of each one alone, must give the gradients of torch.autograd."""
    tensors = call.tensors()
    expected = gradients(call, tensors)
    found = torch.func.grad(call.loss)(tensors)
    for name, t in tensors.items():
        alone = torch.func.grad(lambda value, name=name: call.loss(tensors | {name: value}))(t)
        torch.testing.assert_close(found[name], expected[name])
        torch.testing.assert_close(alone, expected[name])


@every_call
def test_gradients_per_sample(call: Call) -> None:
    """torch.func.vmap of torch.func.grad must give the gradients of each sample, and grad of vmap their sum."""
    batch = [call.tensors(seed=seed) for seed in range(3)]
    stacked = {name: torch.stack([tensors[name] for tensors in batch]) for name in batch[0]}
    found = torch.func.vmap(torch.func.grad(call.loss))(stacked)
    whole = torch.func.grad(lambda given: torch.func.vmap(call.loss)(given).sum())(stacked)
    for i, tensors in enumerate(batch):
        for name, expected in gradients(call, tensors).items():
            torch.testing.assert_close(found[name][i], expected)
            torch.testing.assert_close(whole[name][i], expected)


@every_call
def test_vjp_and_jacrev(call: Call) -> None:
    tensors = call.tensors(dtype=torch.float64)
    first = next(iter(tensors))

    def output(value: Tensor) -> Tensor:
        return call.outputs(**(tensors | {first: value}))[0]

    jacobian = torch.func.jacrev(output)(tensors[first])
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(output, tensors[first]))
    out, pullback = torch.func.vjp(output, tensors[first])
    torch.testing.assert_close(pullback(torch.ones_like(out))[0], jacobian.flatten(0, out.dim() - 1).sum(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_call
def test_grad_in_16_bits(call: Call, dtype: torch.dtype) -> None:
    tensors = call.tensors(dtype=dtype)
    expected = gradients(call, tensors)
    for name, value in torch.func.grad(call.loss)(tensors).items():
        assert value.dtype == dtype
        torch.testing.assert_close(value, expected[name])


def test_grad_of_a_number_that_broadcasts() -> None:
    mean = torch.randn(4, 5)
    found = torch.func.vmap(torch.func.grad(ops.gaussian_kl, argnums=1), in_dims=(0, None))(mean, torch.tensor(0.3))
    torch.testing.assert_close(found, torch.full((4,), 0.5 * 5 * (torch.tensor(0.3).exp().item() - 1.0)))


def test_grad_with_data_that_has_no_gradient() -> None:
    logits = torch.randn(3, 5)
    for x in (torch.randn(3, 5) > 0, (torch.randn(3, 5) > 0).byte()):
        found = torch.func.grad(lambda value, x=x: ops.bernoulli_log_prob(value, x).sum())(logits)
        torch.testing.assert_close(found, x.float() - torch.sigmoid(logits))


def test_noise_under_vmap() -> None:
    """vmap wants to be told whether the seed is the same for all; torch's own message says how."""
    mean = torch.zeros(2, 3, 4)
    sample = torch.func.vmap(lambda m: ops.gaussian_sample(m, 0.0)[0], randomness="different")(mean)
    assert not torch.equal(sample[0], sample[1])
    same = torch.func.vmap(lambda m: ops.gaussian_sample(m, 0.0)[0], randomness="same")(mean)
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda m: ops.gaussian_sample(m, 0.0)[0])(mean)


@every_call
def test_forward_mode_raises(call: Call) -> None:
    tensors = call.tensors()
    first = next(iter(tensors))

    def loss(value: Tensor) -> Tensor:
        return call.loss(tensors | {first: value})

    value = tensors[first]
    for transform in (
        lambda f: torch.func.jvp(f, (value,), (value,)),
        lambda f: torch.func.jacfwd(f)(value),
        lambda f: torch.func.hessian(f)(value),
        lambda f: torch.func.linearize(f, value),
    ):
        with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
            transform(loss)


@every_call
def test_second_derivative_raises(call: Call) -> None:
    first = torch.func.grad(call.loss)
    with pytest.raises(NotImplementedError, match=NO_SECOND):
        torch.func.grad(lambda tensors: sum(grad.square().sum() for grad in first(tensors).values()))(call.tensors())


def test_importance_state_has_no_gradient() -> None:
    log_w = torch.randn(3, 5)
    assert torch.equal(torch.func.vmap(ops.importance_state)(log_w), ops.importance_state(log_w))
    with pytest.raises(RuntimeError, match="derivative for dgmfast::importance_state is not implemented"):
        torch.func.grad(lambda value: ops.importance_state(value).sum())(log_w)


def test_compiled_grad_raises() -> None:
    """The page says that torch.compile does not take a function with torch.func.grad inside."""
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(lambda mean: ops.gaussian_kl(mean, mean).sum()), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"cannot use C\+\+ torch::autograd::Function with functorch transforms"):
        compiled(torch.randn(2, 3))


# torch.fx


def with_arguments(call: Call, tensors: Tensors) -> Callable[..., object]:
    """Returns the call as a function of as many positional arguments as there are tensors, which torch.fx can trace."""
    names = list(tensors)
    arguments = ", ".join(names)
    scope: dict[str, object] = {"call": call}
    exec(f"def function({arguments}): return call.function({', '.join(f'{n}={n}' for n in names)})", scope)
    return scope["function"]  # type: ignore[return-value]


@every_call
def test_symbolic_trace(call: Call) -> None:
    """A traced graph must hold one node per op, and give the eager outputs."""
    tensors = call.tensors()
    if call.op in [case.op for case in FULL]:  # whose call counts its outputs
        case = next(case for case in FULL if case.op == call.op)
        call = Call(call.op, lambda **t: getattr(ops, case.op)(**t, **case.kwargs), case.tensors)
    traced = torch.fx.symbolic_trace(with_arguments(call, tensors))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [getattr(ops, call.op)]
    for a, b in zip(as_tuple(traced(**tensors)), call.outputs(**tensors), strict=True):
        assert torch.equal(a, b)


def test_symbolic_trace_of_the_other_forms() -> None:
    probs, x, log_w = torch.rand(3, 5), torch.rand(3, 5).round(), torch.randn(3, 5)
    traced = torch.fx.symbolic_trace(lambda probs, x: ops.bernoulli_log_prob(probs=probs, x=x))
    assert torch.equal(traced(probs, x), ops.bernoulli_log_prob(probs=probs, x=x))
    assert torch.equal(torch.fx.symbolic_trace(ops.importance_state)(log_w, None), ops.importance_state(log_w))
    fresh = torch.fx.symbolic_trace(lambda mean, log_var: ops.gaussian_sample(mean, log_var)[0])
    assert not torch.equal(fresh(probs, x), fresh(probs, x))  # each call of the graph draws
    number = torch.fx.symbolic_trace(lambda log_var: ops.gaussian_sample(0.0, log_var, seed=1)[0])
    assert torch.equal(number(x), ops.gaussian_sample(0.0, x, seed=1)[0])


# torch.jit


@pytest.mark.filterwarnings("ignore:`torch.jit")
@every_call
def test_jit_trace(call: Call) -> None:
    """A traced function must give the eager outputs and gradients for other values."""
    tensors, others = call.tensors(seed=0), call.tensors(seed=1)
    names = list(tensors)
    traced = torch.jit.trace(lambda *args: call.outputs(**dict(zip(names, args, strict=True))), tuple(tensors.values()))
    again = Call(call.op, lambda **t: traced(*t.values()), call.tensors)
    for a, b in zip(again.outputs(**others), call.outputs(**others), strict=True):
        torch.testing.assert_close(a, b)
    for name, expected in gradients(call, others).items():
        torch.testing.assert_close(gradients(again, others)[name], expected)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_jit_trace_refuses_what_it_cannot_record() -> None:
    """A retry under torch.jit.trace would crash the process, so that it must be refused."""
    mean = torch.randn(2, 3)
    message = r"^gaussian_kl: torch\.jit\.trace takes no 16-bit tensors .* use torch\.export$"
    for given in ((mean, torch.tensor(0.5)), (mean, mean[:, :1]), (mean.bfloat16(), mean.bfloat16())):
        with pytest.raises(NotImplementedError, match=message):
            torch.jit.trace(lambda a, b: ops.gaussian_kl(a, b), given)
    with pytest.raises(NotImplementedError, match=message):
        torch.jit.trace(lambda a: ops.gaussian_kl(a, 0.5), (mean,))
    with pytest.raises(ValueError, match=r"^gaussian_kl: log_var_q must have the last dimension of mean_q"):
        torch.jit.trace(lambda a, b: ops.gaussian_kl(a, b), (mean, torch.zeros(5)))


def test_make_fx() -> None:
    """make_fx must trace usual calls; a call that is retried leaves a node in the graph that raises, as the page says."""
    mean, log_var = torch.randn(2, 3), torch.randn(2, 3)

    def kl(mean: Tensor, log_var: Tensor) -> Tensor:
        return ops.gaussian_kl(mean, log_var)

    assert torch.equal(make_fx(kl)(mean, log_var)(mean, log_var), ops.gaussian_kl(mean, log_var))
    with pytest.raises(ValueError, match="log_var_q must have shape"):
        make_fx(kl)(mean, torch.tensor(0.5))(mean, torch.tensor(0.5))


def scripted(mean: Tensor, log_var: Tensor) -> Tensor:
    return torch.ops.dgmfast.gaussian_kl(mean, log_var)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_jit_script() -> None:
    """torch.jit.script must take the ops of torch.ops.dgmfast; it does not take the functions of dgmfast.ops."""
    mean, log_var = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(torch.jit.script(scripted)(mean, log_var), ops.gaussian_kl(mean, log_var))
    with pytest.raises(torch.jit.frontend.NotSupportedError, match=re.escape("try blocks aren't supported")):
        torch.jit.script(ops.gaussian_kl)
