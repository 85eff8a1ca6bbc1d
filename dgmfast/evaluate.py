"""log p(x) by importance sampling: x is encoded once, any number of samples stream through constant memory, with error bars."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.models.base import Encoding, GenerativeModel, Label, LabelModel, Noise, Terms
from dgmfast.models.labels import SampledLabel
from dgmfast.ops import ImportanceState

# Rows (x, sample) that go through the decoder in one product. The shape of every product, and a row's place in it, depend on
# k and the model alone, so that no result depends on the chunk. On a CPU a block keeps the widest layer in a core's cache, but
# for at least 512 rows; narrow layers take more, because there the calls are what costs.
CACHED_NUMBERS = 2**18
CPU_ROWS = (512, 8192)
CUDA_ROWS = 65536
ENCODER_BLOCK = 512
ROWS = 1000  # of a pass without importance samples
UNKNOWN_MEMORY = 2**30  # bytes taken to be free where the system does not say


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates for each row, [N] float64, from k importance samples; nats (ess: samples).

    log_px: log (1/K) Σ w, the bound L_K (eq. 3.31). elbo: L_1, the mean of log w. ess: effective sample size.
    std_error: standard error of log_px by the delta method; its bias is about −std_error²/2.
    """

    log_px: Tensor
    elbo: Tensor
    ess: Tensor
    std_error: Tensor
    k: int

    def mean(self, name: str) -> tuple[float, float]:
        """Mean over the rows of one of the fields, and the standard error of that mean over rows."""
        values: Tensor = getattr(self, name)
        return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


@torch.no_grad()
def log_likelihood(
    model: GenerativeModel,
    x: Tensor,
    k: int = 5000,
    seed: int = 0,
    y: Label = None,
    chunk: int | None = None,
    progress: bool = False,
) -> LogLikelihood:
    """Estimate log p(x[, y]) of every row of x [N, D] with k importance samples, in evaluation mode (eq. 3.31).

    Each x is encoded once; its samples stream through the decoder in blocks of fixed shape and merge in float64, so that memory
    does not grow with k and the result is bit-equal for any chunk on one machine, build and thread count.

    Args:
        x: [N, D] floating. y: [N] labels, where the model takes them; None sums over them exactly, and models.SampledLabel()
            draws one per sample, the form that most publications report (its bound is the lower one).
        seed: of the Philox noise of row, sample and dimension.
        chunk: rows × samples between two checks of the weights, rounded to whole blocks; by default as many as fit in a
            tenth of the free memory. progress: show a bar.

    Raises:
        InputError: k or chunk below 1, x or y of a wrong shape, dtype or device, or a non-finite value in the data or in a weight
            (which row and term).
    """
    _check(model, x, k, y, chunk)
    rows, samples = _block_shape(model, k, x.device)
    steps = max(1, (chunk or _chunk_from_memory(model, x)) // (rows * samples))
    states: list[ImportanceState] = []
    training = model.training
    model.eval()
    try:
        with _progress_bar(len(x), progress) as bar:
            for first in range(0, len(x), ENCODER_BLOCK):
                part = slice(first, first + ENCODER_BLOCK)
                encoding = model.encode(_pad(x[part], ENCODER_BLOCK), _pad_labels(y, part, ENCODER_BLOCK))
                count = len(x[part])
                for row in range(0, count, rows):
                    block = slice(row, row + rows)
                    block_x = _pad(x[part][block], rows)
                    block_y = _pad_labels(y[part] if isinstance(y, Tensor) else y, block, rows)
                    block_encoding = {name: value[block] for name, value in encoding.items()}
                    state = _stream(model, block_encoding, block_x, block_y, k, samples, seed, first + row, steps)
                    states.append(ImportanceState(state.values[: count - row]))
                    bar.update(len(states[-1].values))
    finally:
        model.train(training)
    values = torch.cat([s.values for s in states]) if states else x.new_zeros(0, 5, dtype=torch.float64)
    total = ImportanceState(values)
    return LogLikelihood(total.log_px, total.elbo, total.ess, total.std_error, k)


@torch.no_grad()
def class_probabilities(model: LabelModel, x: Tensor, k: int = 10, seed: int = 0, by: str | None = None) -> Tensor:
    """`model.classify` of the rows x [N, D], in evaluation mode and in blocks: [N, Y]."""
    chosen = {} if by is None else {"by": by}
    return _in_blocks(model, x, lambda part, first: model.classify(part, k, seed, first_row=first, **chosen))


def classification_error(model: LabelModel, x: Tensor, y: Tensor, k: int = 10, seed: int = 0, by: str | None = None) -> float:
    """The share of the rows x [N, D] whose most probable class is not y [N], in percent."""
    wrong = class_probabilities(model, x, k, seed, by).argmax(1) != y
    return 100.0 * wrong.double().mean().item()


@torch.no_grad()
def kl_units(model: GenerativeModel, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The mean over the rows x [N, D] of the KL of each unit of each latent, [D_i] nats, one draw per row.

    Analytic where it is exact, else log q − log p at the sample, whose mean may be negative. A label is drawn from q(y|·).
    """
    label: Label = SampledLabel() if model.num_classes else None

    def units(part: Tensor, first: int) -> Tensor:
        terms = model.draw(model.encode(part, label), part, 1, Noise(seed, first), label)
        sizes.update({name: latent.z.shape[-1] for name, latent in terms.latents.items()})
        return torch.cat([latent.kl_units().flatten(1) for latent in terms.latents.values()], 1)

    sizes: dict[str, int] = {}
    means = _in_blocks(model, x, units).mean(0)
    return dict(zip(sizes, means.split(list(sizes.values())), strict=True))


def active_units(units: dict[str, Tensor], threshold: float = 0.01) -> dict[str, int]:
    """How many units of each latent have a mean KL above `threshold` nats."""
    return {name: int((kl > threshold).sum()) for name, kl in units.items()}


def _in_blocks(model: GenerativeModel, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    training = model.training
    model.eval()
    try:
        return torch.cat([function(x[first : first + ROWS], first) for first in range(0, len(x), ROWS)])
    finally:
        model.train(training)


def _stream(
    model: GenerativeModel, encoding: Encoding, x: Tensor, y: Label, k: int, samples: int, seed: int, row: int, steps: int
) -> ImportanceState:
    """The state of k weights of each row of x, `samples` at a time, checked every `steps` blocks."""
    state = ImportanceState()
    for step, sample in enumerate(range(0, k, samples)):
        terms = model.draw(encoding, x, samples, Noise(seed, row, sample), y)
        # the last block may draw more than k: the surplus is dropped
        state.update(terms.log_weights()[:, : k - sample])
        if (step + 1) % steps == 0 or sample + samples >= k:
            _check_finite(state, terms, row)
    return state


def _check_finite(state: ImportanceState, terms: Terms, row: int) -> None:
    bad = state.values[:, :3].isfinite().logical_not().any(1)
    if not bad.any():
        return
    first = int(bad.nonzero()[0])
    named = {"log p(x|z)": terms.log_px, **{f"log p({n})": latent.log_p() for n, latent in terms.latents.items()}}
    named |= {f"log q({n})": latent.log_q for n, latent in terms.latents.items()}
    if terms.labels is not None and terms.log_py is not None:
        named["log p(y)"] = terms.log_py.expand(len(state.values), *terms.log_py.shape[-2:])
        if terms.labels.log_qy is not None:
            named["log q(y)"] = terms.labels.log_qy
    guilty = [name for name, term in named.items() if not term[first].isfinite().all()]
    raise InputError(
        f"log_likelihood: the weights of row {row + first} are not finite; look at {' and '.join(guilty) or 'log w'}"
    )


def _check(model: GenerativeModel, x: Tensor, k: int, y: Label, chunk: int | None) -> None:
    if k < 1:
        raise InputError(f"log_likelihood: k must be at least 1; got {k}")
    if chunk is not None and chunk < 1:
        raise InputError(f"log_likelihood: chunk must be at least 1; got {chunk}")
    model.check("log_likelihood", x, y)
    bad = x.isfinite().all(1).logical_not()
    if bad.any():
        raise InputError(f"log_likelihood: x must be finite; row {int(bad.nonzero()[0])} is not")


def _widths(model: GenerativeModel) -> list[int]:
    return [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)] or [1]


def _block_shape(model: GenerativeModel, k: int, device: torch.device) -> tuple[int, int]:
    """(rows, samples) of a block: nearly equal shares of k, and a power of two of rows to fill the block."""
    least, most = CPU_ROWS
    size = max(least, min(most, CACHED_NUMBERS // max(_widths(model)))) if device.type == "cpu" else CUDA_ROWS
    samples = math.ceil(k / math.ceil(k / size))
    return min(ENCODER_BLOCK, 2 ** int(math.log2(max(1, size // samples)))), samples


def _pad(t: Tensor, rows: int) -> Tensor:
    return t if len(t) == rows else torch.cat([t, t.new_zeros(rows - len(t), *t.shape[1:])])


def _pad_labels(y: Label, part: slice, rows: int) -> Label:
    return _pad(y[part], rows) if isinstance(y, Tensor) else y


def _chunk_from_memory(model: GenerativeModel, x: Tensor) -> int:
    """Rows whose activations would take about a tenth of the free memory."""
    if x.is_cuda:
        free, _ = torch.cuda.mem_get_info(x.device)
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # macOS and Windows do not say
            free = UNKNOWN_MEMORY
    return max(1, int(free / 10 / (4 * sum(_widths(model)))))


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def _progress_bar(total: int, show: bool):
    if not show:
        return _NoBar()
    from tqdm import tqdm  # not a dependency of the ops and models

    return tqdm(total=total, unit="row", desc="log p(x)")
