"""log p(x) by importance sampling with standard errors. x is encoded once; any number of samples takes constant memory."""

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

HEAVY_TAIL = 0.7  # threshold of k̂; above it, the mean of the weights is not reliable (Vehtari et al. 2024)
DOMINANT = 0.5  # threshold of the largest weight's share of the sum; used if there is no k̂
LEAST_SAMPLES = 25  # with fewer samples, one always has a large weight, and L_K is meant as a bound


@dataclass(frozen=True)
class LogLikelihood:
    """The estimates of each row, [N] float64 unless stated otherwise, in nats.

    Args:
        log_px: log (1/K) Σ w, the bound L_K (eq. 3.31).
        elbo: L_1, the mean of log w.
        ess: The effective sample size (Σ w)²/Σ w², a number of samples.
        std_error: The standard error of log_px by the delta method, s.e.² = K/(K−1) (Σ w²/(Σ w)² − 1/K). The bias of log_px is
            about −std_error²/2.
        k: The number of samples that was asked for.
        k_used: The number of samples that each row used, int64. It is below k only with a tolerance.
        pareto_k: The shape k̂ of the generalised Pareto distribution fitted to the min(K/5, 3√K) largest weights (Zhang &
            Stephens 2009, Vehtari et al. 2024). Above 0.7 a few samples decide log_px, and std_error is too small. NaN for fewer
            than 25 samples, and where the tail allows no fit.
        largest: The largest weight as a share of the sum of the weights.
        curve: Maps K to log_px of the first K samples, for K = 1, 10, 100, ... and k. The entry of k is log_px itself. The others
            equal a run with that K up to rounding, because the matrix products of that run have other shapes.
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
        """The estimates from the rows' states [N, P, 5] at the points of the sampling, and k̂ [N]."""
        each = [ImportanceState(states[:, i]) for i in range(len(sampling.points))]
        last = each[-1]
        curve = {k: state.log_px for k, state in zip(sampling.points, each, strict=True)}
        used, largest = last.values[:, 4].long(), 1.0 / last.values[:, 1]
        log_px = curve[sampling.k]
        return cls(log_px, last.elbo, last.ess, last.std_error, sampling.k, used, pareto_k, largest, curve)

    def mean(self, name: str) -> tuple[float, float]:
        """The mean over the rows of the field `name`, and the standard error of that mean over the rows."""
        values: Tensor = getattr(self, name).double()
        return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan

    def dominated(self) -> Tensor:
        """[N] bool: true if a few samples decide the row's log_px.

        That is the case if k̂ is above 0.7 or, without k̂, if one sample has more than half of the total weight.
        """
        heavy = (self.pareto_k > HEAVY_TAIL) | (self.pareto_k.isnan() & (self.largest > DOMINANT))
        return heavy & (self.k_used >= LEAST_SAMPLES)

    def warn(self) -> None:
        """Warn if there are rows that a few samples dominate."""
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

    Each x is encoded once. Its samples go through the decoder in blocks of fixed shape and are merged in float64. Memory
    therefore does not grow with k, except for the 3√k largest weights of the rows in flight, which k̂ needs. Results are
    bit-equal for any chunk size on one machine, build and number of threads, and agree to rounding across devices and numbers of
    threads. If memory runs out, fewer samples are drawn at once, with a warning; this changes results by rounding only. A second
    warning counts the rows that a few samples dominate.

    Args:
        model: The model; its mode is restored afterwards.
        x: [N, D], floating point.
        k: Number of samples per row.
        seed: Seed of the Philox noise of each row, sample and dimension.
        y: [N] labels, if the model takes them. None sums over the label exactly. models.SampledLabel() draws one label per
            sample, as most publications do; its bound is the lower one.
        chunk: Number of rows × samples between two checks of the weights, rounded to whole blocks; by default as many as fit in a
            tenth of the free memory.
        progress: If true, show a progress bar.
        tolerance: In nats. A row stops at the first multiple of 250 samples at which its std_error is below the tolerance, and at
            k samples at the latest. None uses k samples for every row. Stopping when the error looks small makes it look a little
            too small.

    Returns:
        The estimates of each row.

    Raises:
        InputError: k or chunk is below 1, the tolerance is not positive, x or y has a wrong shape, dtype or device, or a value of
            the data or a weight is not finite (the message names the row and the term).
    """
    x = model.rows(x)
    check_arguments(model, x, k, y, chunk, tolerance)
    sampling, rows = ImportanceSampling(k, seed, curve_points(k), tolerance, chunk), RowResults()
    with progress_bar(len(x) * k, progress) as bar:
        stream(model, x, y, sampling, rows, advance=bar.update)
    result = LogLikelihood.from_states(sampling, *rows.tensors(len(sampling.points), x.device))
    result.warn()
    return result
