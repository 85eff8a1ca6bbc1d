"""log p(x) by importance sampling: x is encoded once, any number of samples stream through constant memory, with error bars."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from torch import Tensor

from dgmfast.evaluate.blocks import ImportanceSampling
from dgmfast.evaluate.progress import progress_bar
from dgmfast.evaluate.streaming import RowResults, check_arguments, curve_points, stream
from dgmfast.models import GenerativeModel, Label
from dgmfast.ops import ImportanceState

HEAVY_TAIL = 0.7  # of k̂: above it the mean of so many weights is not reliable (Vehtari et al. 2024)
DOMINANT = 0.5  # of all weight: decides where there is no k̂
LEAST_SAMPLES = 25  # below, one sample always weighs much, and L_K is meant as a bound


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates for each row, [N] float64 unless said otherwise; nats (ess: samples).

    log_px: log (1/K) Σ w, the bound L_K (eq. 3.31). elbo: L_1, the mean of log w. ess: effective sample size (Σ w)²/Σ w².
    std_error: standard error of log_px by the delta method, s.e.² = K/(K−1) (Σ w²/(Σ w)² − 1/K); its bias is about
    −std_error²/2. k: the samples asked for; k_used: int64, those that each row took, fewer than k only with a tolerance.
    pareto_k: shape k̂ of the generalised Pareto distribution fitted to the min(K/5, 3√K) largest weights (Zhang & Stephens 2009,
    Vehtari et al. 2024); above 0.7 a few samples decide log_px, and std_error is too small; NaN below 25 samples, and where the
    tail allows no fit. largest: the largest weight's share of their sum.
    curve: K -> log_px of the first K samples, for K = 1, 10, 100, ... and k. The last is log_px itself; the others equal a run
    with that K up to rounding, because a run's products have shapes of its own.
    """

    log_px: Tensor
    elbo: Tensor
    ess: Tensor
    std_error: Tensor
    k: int
    k_used: Tensor
    pareto_k: Tensor
    largest: Tensor
    curve: dict[int, Tensor]

    @classmethod
    def from_states(cls, sampling: ImportanceSampling, states: Tensor, pareto_k: Tensor) -> LogLikelihood:
        """From the rows' states [N, P, 5] at the points of the sampling, and k̂ [N]."""
        each = [ImportanceState(states[:, i]) for i in range(len(sampling.points))]
        last = each[-1]
        curve = {k: state.log_px for k, state in zip(sampling.points, each, strict=True)}
        used, largest = last.values[:, 4].long(), 1.0 / last.values[:, 1]
        log_px = curve[sampling.k]
        return cls(log_px, last.elbo, last.ess, last.std_error, sampling.k, used, pareto_k, largest, curve)

    def mean(self, name: str) -> tuple[float, float]:
        """Mean over the rows of one of the fields, and the standard error of that mean over rows."""
        values: Tensor = getattr(self, name).double()
        return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan

    def dominated(self) -> Tensor:
        """Whether few samples decide a row's log_px, [N] bool: k̂ above 0.7, or, without k̂, half of all weight in one sample."""
        heavy = (self.pareto_k > HEAVY_TAIL) | (self.pareto_k.isnan() & (self.largest > DOMINANT))
        return heavy & (self.k_used >= LEAST_SAMPLES)

    def warn(self) -> None:
        """Warn where few samples dominate."""
        heavy = int(self.dominated().sum())
        if heavy:
            warnings.warn(
                f"log_likelihood: a few samples dominate {heavy} of {len(self.log_px)} rows (Pareto k̂ above {HEAVY_TAIL}), where "
                f"log_px may be too low and std_error too small: take a larger k, or call it the bound L_{self.k}",
                stacklevel=3,
            )


def log_likelihood(
    model: GenerativeModel,
    x: Tensor,
    k: int = 5000,
    seed: int = 0,
    y: Label = None,
    chunk: int | None = None,
    progress: bool = False,
    tolerance: float | None = None,
) -> LogLikelihood:
    """Estimate log p(x[, y]) of every row of x [N, D] with k importance samples, in evaluation mode (eq. 3.31).

    Each x is encoded once; its samples stream through the decoder in blocks of fixed shape and merge in float64, so that memory
    does not grow with k (but for the 3√k largest weights of the rows at work, for k̂) and the result is bit-equal for any chunk on
    one machine, build and thread count. Where memory runs out, fewer samples are drawn at once, with a warning; that changes
    rounding alone, as do the device and the number of threads. A warning tells how many rows few samples dominate.

    Args:
        x: [N, D] floating. y: [N] labels, where the model takes them; None sums over them exactly, and models.SampledLabel()
            draws one per sample, the form that most publications report (its bound is the lower one).
        seed: of the Philox noise of row, sample and dimension.
        chunk: rows × samples between two checks of the weights, rounded to whole blocks; by default as many as fit in a
            tenth of the free memory. progress: show a bar.
        tolerance: nats; a row stops at the first multiple of 250 samples at which its std_error is below it, and at k at the
            latest. None: every row takes k. Stopping when the error looks small makes it look a little too small.

    Raises:
        InputError: k or chunk below 1, a tolerance that is not positive, x or y of a wrong shape, dtype or device, or a
            non-finite value in the data or in a weight (which row and term).
    """
    check_arguments(model, x, k, y, chunk, tolerance)
    sampling, rows = ImportanceSampling(k, seed, curve_points(k), tolerance, chunk), RowResults()
    with progress_bar(len(x) * k, progress) as bar:
        stream(model, x, y, sampling, rows, advance=bar.update)
    result = LogLikelihood.from_states(sampling, *rows.tensors(len(sampling.points), x.device))
    result.warn()
    return result
