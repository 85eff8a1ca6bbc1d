"""Tests of torch.export with a dynamic batch: the exported program must equal the model at another batch size."""

import pytest
import torch
from support.family import LABELLED, TINY, D, binary, labels, make
from torch import Tensor, nn

from dgmfast import models
from dgmfast.models import GenerativeModel

ROWS = torch.export.Dim("rows", min=2)


class Call(nn.Module):
    """Wraps a method of a model as a module, because torch.export takes modules."""

    def __init__(self, model: GenerativeModel, method: str, **settings: object) -> None:
        super().__init__()
        self.model, self.method, self.settings = model, method, settings

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        given = self.settings if y is None else {**self.settings, "y": y}
        result = getattr(self.model, self.method)(x, **given)
        return result if isinstance(result, Tensor) else result.bound


def all_models() -> dict[str, GenerativeModel]:
    image = {"x_dim": D, "image": (1, 2, 3), "maps": 4, "blocks": 1, "tail": 2, "first_kernel": 3}
    others = {"pixelcnn": models.create("pixelcnn", **image), "potential": models.create("potential", hidden=(4,))}
    return {**{name: make(name) for name in TINY}, **{name: model.double() for name, model in others.items()}}


def check(call: Call, *more: Tensor) -> None:
    dim = call.model.x_dim

    def arguments(rows: int) -> tuple[Tensor, ...]:
        return binary(rows, dim), *(t[:rows] for t in more)

    shapes = {"x": {0: ROWS}, **({"y": {0: ROWS}} if more else {})}
    program = torch.export.export(call, arguments(4), dynamic_shapes=shapes).module()
    for rows in (2, 7):
        with torch.no_grad():
            torch.testing.assert_close(program(*arguments(rows)), call(*arguments(rows)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", all_models())
@pytest.mark.parametrize("method, settings", [("elbo", {}), ("log_weights", {"k": 3})])
def test_every_model_exports_with_a_dynamic_batch(name: str, method: str, settings: dict) -> None:
    check(Call(all_models()[name].eval(), method, seed=3, **settings))


@pytest.mark.parametrize("name", LABELLED)
def test_labels_export_with_a_dynamic_batch(name: str) -> None:
    check(Call(make(name).eval(), "elbo", seed=3), labels(7))


def test_the_exact_log_prob_of_a_pixelcnn_exports_with_a_dynamic_batch() -> None:
    check(Call(all_models()["pixelcnn"].eval(), "log_prob"))
