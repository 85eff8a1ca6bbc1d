"""The labelled rows of semi-supervised training."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast import data
from dgmfast.errors import InputError
from dgmfast.models import GenerativeModel, LabelModel
from dgmfast.objectives import Labelled
from dgmfast.recipes import Recipe
from dgmfast.runs import Group
from dgmfast.seeds import derive_seed


class LabelledRows:
    """Batches of the labelled rows.

    The labelled rows have their own passes: each pass has its own order and its own draw of binary images or noise.

    Raises:
        InputError: The model takes no labels, the data set has none, the numbers of classes differ, or no unlabelled rows remain.
    """

    def __init__(self, recipe: Recipe, dataset: data.Dataset, model: GenerativeModel, device: torch.device) -> None:
        if not isinstance(model, LabelModel):
            raise InputError(f"labels must be 0 for {recipe.model['name']}, which takes none; got {recipe.labels}")
        if dataset.train.y is None or dataset.classes is None:
            raise InputError(f"labels must be 0 for {dataset.name}, whose rows have none; got {recipe.labels}")
        if dataset.classes != model.num_classes:
            raise InputError(f"model.num_classes must be {dataset.classes}, as in {dataset.name}; got {model.num_classes}")
        chosen = data.labelled_rows(dataset, recipe.labels, derive_seed(recipe.seed, "labels"))
        mask = torch.ones(len(dataset.train.x), dtype=torch.bool)
        mask[chosen] = False
        self.others = mask.nonzero().flatten()
        if len(self.others) == 0:
            raise InputError(f"labels must leave rows without one; got {recipe.labels} of {len(mask)}")
        self.x, self.y = dataset.train.x[chosen].to(device), dataset.train.y[chosen].to(device)
        self.size, self.recipe, self.dataset = recipe.labelled_batch, recipe, dataset
        self.alpha = recipe.objective.alpha * len(mask) / recipe.labels  # α = β (N_l + N_u)/N_l (App. A)
        self.passed: tuple[int, Tensor, Tensor] | None = None

    def share(self, group: Group) -> float:
        """The fraction of the labelled rows of a step that this process has."""
        begin, end = group.shard(self.size)
        return (end - begin) / self.size

    def batch(self, step: int, group: Group, unlabelled: int) -> Labelled:
        """This process's labelled rows of training step `step`, counted from the beginning of training.

        `unlabelled` is the number of unlabelled rows in the batch; the noise of the labelled rows is numbered after them.
        """
        begin, end = group.shard(self.size)
        end = max(end, begin + 1)  # a process without rows still takes part, with weight 0
        rows = range(step * self.size + begin, step * self.size + end)
        parts = []
        while rows:
            index, first = divmod(rows[0], len(self.x))
            x, y = self._pass(index)
            parts.append((x[first : first + len(rows)], y[first : first + len(rows)]))
            rows = rows[len(parts[-1][0]) :]
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
        return Labelled(x, y, self.alpha, unlabelled + begin)

    def _pass(self, index: int) -> tuple[Tensor, Tensor]:
        """The labelled rows and their labels in the order of pass `index`; the last pass is cached."""
        if self.passed is None or self.passed[0] != index:
            seed = derive_seed(self.recipe.seed, "labelled", index)
            x = data.sample_inputs(self.dataset, self.x, seed) if self.recipe.binarize else self.x
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
            self.passed = index, x[order], self.y[order]
        return self.passed[1:]
