"""Two-dimensional toy data: the half moons, and placeholder rows for fitting a density that has no data."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast.data.dataset import Dataset, Split
from dgmfast.data.files import label_rows
from dgmfast.errors import InputError

MOONS_ROWS = 10_000
MOONS_NOISE = 0.1
MOONS_SEEDS = 0, 1
# The left end, the middle and the right end of each half circle.
MOONS_LABELLED = ((-0.9, 0.1), (0.0, 1.0), (1.1, 0.1)), ((0.0, 0.4), (1.1, -0.5), (1.9, 0.4))
POTENTIAL_ROWS = 10_000, 1_000


def load_moons() -> Dataset:
    """Two half moons in the plane: 10000 training and 10000 test rows, 2 classes, always the same points.

    It needs scikit-learn and no files. Three rows per class are labelled: those nearest to the left end, the middle and the right
    end of each half circle, where the authors' public code places its labels. Source: `sklearn.datasets.make_moons(noise=0.1)`;
    Maaløe et al. (2016), section 4.2.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import make_moons
    except ImportError as error:
        raise InputError(f"load('moons'): the half moons come from scikit-learn, which must be installed; got {error}") from error

    def split(seed: int) -> Split:
        points, labels = make_moons(MOONS_ROWS, noise=MOONS_NOISE, random_state=seed)  # [N, 2], [N]
        return Split(torch.from_numpy(points).float(), label_rows(labels))

    train, test = (split(seed) for seed in MOONS_SEEDS)
    nearest = [_nearest(train, label, torch.tensor(points)) for label, points in enumerate(MOONS_LABELLED)]
    note = f"scikit-learn's half moons with noise {MOONS_NOISE}: the thesis does not give its noise"
    return Dataset("moons", train, None, test, None, kind="real", classes=2, note=note, labelled=torch.cat(nearest).sort().values)


def _nearest(split: Split, label: int, points: Tensor) -> Tensor:
    """The row of class `label` that is nearest to each of the points [n, 2]: [n]."""
    assert split.y is not None
    return torch.cdist(points, split.x).masked_fill(split.y != torch.tensor(label), torch.inf).argmin(1)


def load_potential() -> Dataset:
    """Placeholder rows for fitting q(z) to an unnormalised density exp(−U(z)): one column of zeros, without labels.

    Such a fit has no data. The potential takes the place of log p(x|z) + log p(z), and x is constant. Only the number of rows
    matters: each of the 10000 training rows is one sample of q in an epoch, and the 1000 test rows are the samples that estimate
    the bound on log Z. It needs no files.
    """
    train, test = (Split(torch.zeros(rows, 1), None) for rows in POTENTIAL_ROWS)
    note = "no data: each row is one draw from q against an unnormalised density, and bounds are bounds on log Z"
    return Dataset("potential", train, None, test, image_shape=None, kind="real", classes=None, note=note)
