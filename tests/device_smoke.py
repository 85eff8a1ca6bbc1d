"""Checks every op, forward and backward, on one device against float64: python device_smoke.py [cuda] [--tiny]

Run this first on a new machine: it takes a few seconds and needs no test framework. It prints one line per check. --tiny takes
only small shapes, so that a memory checker can run it. The exit code is 1 if any line says something other than ok.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator

import torch
from support.op_cases import CASES, Case, assert_matches_reference, assert_within_tolerance, dtypes_of, evaluate, output_weights

from dgmfast import ops, reference

Check = Callable[[str, torch.dtype], None]


def of_case(case: Case, dim: int, rows: int) -> Check:
    def check(device: str, dtype: torch.dtype) -> None:
        assert_matches_reference(case, case.tensors(dim, (rows, *case.leading[1:]), device=device, dtype=dtype))

    return check


def of_state(device: str, dtype: torch.dtype) -> None:
    log_w = torch.randn(7, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device, dtype)
    found = ops.importance_state(log_w[:, 100:], ops.importance_state(log_w[:, :100]))
    exact = reference.importance_state(log_w.double())
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def of_conv(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (3, 6, 7, 5), "weight": (9, 6, 3, 3), "bias": (9,)}
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for name, shape in shapes.items()
    }

    def run(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
        return lambda **named: (function(named["x"], named["weight"], named["bias"], "B"),)

    exact = {name: t.double() for name, t in tensors.items()}
    weights = output_weights(list(run(reference.masked_conv2d)(**tensors)))
    truth = evaluate(run(reference.masked_conv2d), exact, [w.double() for w in weights])
    own = evaluate(run(reference.masked_conv2d), tensors, weights)
    assert_within_tolerance(evaluate(run(ops.masked_conv2d), tensors, weights), own, truth)


def of_decoder(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return (0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    arguments = drawn(4, 5, 8), [drawn(16, 8), drawn(70, 16)], [drawn(16), drawn(70)], drawn(4, 70).sigmoid()
    exact = [[t.double() for t in a] if isinstance(a, list) else a.double() for a in arguments]
    found, truth = ops.mlp_bernoulli_log_prob(*arguments, "tanh"), reference.mlp_bernoulli_log_prob(*exact, "tanh")
    half = dtype in (torch.float16, torch.bfloat16)
    torch.testing.assert_close(found.double(), truth, rtol=0.0, atol=70 * (8 if half else 4) * torch.finfo(dtype).eps)


def checks(tiny: bool) -> Iterator[tuple[str, Check]]:
    for case in CASES:
        yield case.id, of_case(case, 33, 3)
        if not tiny:
            yield f"{case.id}, long rows", of_case(case, 4097, 3)
            yield f"{case.id}, many rows", of_case(case, 130, 300)
    yield from {"importance_state": of_state, "masked_conv2d": of_conv, "mlp_bernoulli_log_prob": of_decoder}.items()


def main() -> int:
    tiny, names = "--tiny" in sys.argv, [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    device, wrong, start = (names or ["cuda"])[0], 0, time.perf_counter()
    for name, check in checks(tiny):
        said = []
        for dtype in dtypes_of(device):
            try:
                check(device, dtype)
                if device == "cuda":
                    torch.cuda.synchronize()
                said.append("ok")
            except Exception as error:
                wrong += 1
                traceback.print_exc(limit=2)
                said.append(f"WRONG ({type(error).__name__}: {str(error).splitlines()[0][:120]})")
        print(f"{name:<32}" + ", ".join(f"{str(d)[6:]} {s}" for d, s in zip(dtypes_of(device), said, strict=True)), flush=True)
    print(f"{wrong} wrong, {time.perf_counter() - start:.1f} s on {device}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
