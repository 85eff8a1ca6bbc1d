"""The targets that the project set before measuring: how many times faster than each rival ours should be."""

from __future__ import annotations

from dataclasses import dataclass

FORWARD, TRAINING, STEP = "forward", "forward+backward", "training step"


@dataclass(frozen=True)
class Target:
    """The ratios to reach: at least this many times faster than each rival.

    bandwidth: the share of the measured ceiling to reach.
    floor: the most that the time may be, as a multiple of the time of the multiplications alone.
    """

    ratios: dict[str, float]
    bandwidth: float | None = None
    floor: float | None = None


def _both(forward: tuple[float, float], training: tuple[float, float]) -> dict[str, Target]:
    rivals = ("eager", "compile")
    return {
        FORWARD: Target(dict(zip(rivals, forward, strict=True))),
        TRAINING: Target(dict(zip(rivals, training, strict=True))),
    }


_SMALL = _both((4, 4), (2.5, 3))
_LARGE = _both((5, 1.5), (3, 1.4)) | {FORWARD: Target({"eager": 5, "compile": 1.5}, bandwidth=0.55)}
_BERNOULLI = _both((5, 4), (3, 3))
_EXACT_STEP = Target({"eager": 1.15, "compile": 1.15, "repeated batch": 2}, floor=1.3)
_SPARSE_STEP = Target({"eager": 2.5, "compile": 2.5})

# (case, shape) -> mode -> target, on two threads
CPU: dict[tuple[str, str], dict[str, Target]] = {
    ("gaussian_kl", "100x64"): _SMALL,
    ("gaussian_kl", "100x64 to N(0,I)"): _SMALL,
    ("gaussian_log_prob", "100x64"): _SMALL,
    ("gaussian_kl", "10000x784"): _LARGE,
    ("gaussian_kl", "10000x784 to N(0,I)"): _LARGE,
    ("gaussian_log_prob", "10000x784"): _LARGE,
    ("bernoulli_log_prob", "100x784"): _BERNOULLI,
    ("bernoulli_log_prob", "10000x784"): _BERNOULLI,
    ("importance_bound", "100x5000"): _both((3, 2), (3, 2)),
    # The time should be at most 0.85 of that of the product, which writes its output.
    ("linear_bernoulli_log_prob", "20000x784 from 200"): {
        FORWARD: Target({"eager": 3, "compile": 1.6, "plain product": 1 / 0.85}),
        TRAINING: Target({"eager": 2, "compile": 1.5}),
    },
    ("label_linear", "100x784 to 500, 10 classes"): {
        TRAINING: Target({"eager": 1.2, "repeated batch": 7, "compiled repeated batch": 5})
    },
    ("masked_conv2d", "16x64x28x28 to 64, 3x3 B"): _both((1.45, 1.4), (1.35, 1.3)),
    ("masked_conv2d", "16x1x28x28 to 64, 7x7 A, no gradient of x"): _both((1.3, 1.25), (1.3, 1.2)),
    **{("steps", f"{model}, exact sum, 10 classes"): {STEP: _EXACT_STEP} for model in ("ADGM", "SDGM")},
    **{("steps", f"{model}, sparse sum, 10 classes"): {STEP: _SPARSE_STEP} for model in ("ADGM", "SDGM")},
    ("classes", "ADGM, sparse sum, 100 classes"): {STEP: Target({"exact sum": 15})},
    ("L_5000", "784-200-200-50"): {FORWARD: Target({"eager": 1.6, "compile": 1.5, "pythae": 4, "Pyro": 3})},
    ("sampling", "PixelCNN 28x28, batch 16"): {FORWARD: Target({"cached in PyTorch": 5, "full pass per pixel": 300})},
}

_WIDE = {FORWARD: Target({"eager": 5}, bandwidth=0.85), TRAINING: Target({"eager": 5}, bandwidth=0.85)}
_GPU_SMALL = {FORWARD: Target({"compile": 3}), TRAINING: Target({"compile": 3})}
_REDUCTIONS = ("gaussian_kl", "gaussian_log_prob", "bernoulli_log_prob")
GPU: dict[tuple[str, str], dict[str, Target]] = {
    **{(case, shape): _WIDE for case in _REDUCTIONS for shape in ("10000x784", "100000x784")},
    **{(case, "100x64"): _GPU_SMALL for case in _REDUCTIONS[:2]},
    ("bernoulli_log_prob", "100x784"): _GPU_SMALL,
}


# The target of L_5000 on one thread.
SINGLE_THREAD = Target({"eager": 1.35, "compile": 1.5, "pythae": 4, "Pyro": 3})


def target_of(device: str, case: str, shape: str, mode: str, threads: int) -> Target | None:
    """Returns the target of a piece of work, or None."""
    target = (CPU if device == "cpu" else GPU).get((case, shape), {}).get(mode)
    return SINGLE_THREAD if target and case == "L_5000" and device == "cpu" and threads == 1 else target
