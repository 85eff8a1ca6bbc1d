"""Your own data: a table of measurements with a few labels, trained, classified and read again from its run folder.

python examples/own_data.py [FOLDER]
"""

import sys

import torch

import dgmfast
from dgmfast import evaluate, models


def measurements(n: int = 2000) -> tuple[torch.Tensor, list[str]]:
    """Rows of six sensors in two states, and the name of each row's state."""
    generator = torch.Generator().manual_seed(0)
    fault = torch.rand(n, generator=generator) < 0.4
    load = torch.rand(n, 1, generator=generator)
    rows = load * torch.tensor([3.0, 5.0, 1.0, 20.0, 8.0, 2.0]) + 0.2 * torch.randn(n, 6, generator=generator)
    rows[fault, 1] *= 0.7  # a fault lowers the second sensor and raises the fourth
    rows[fault, 3] += 4.0 * load[fault, 0]
    return rows, ["fault" if broken else "sound" for broken in fault]


def main(folder: str = "runs/own-data", epochs: int = 20) -> dgmfast.runs.TrainedRun:
    """Train an ADGM on the rows and 40 labels, and read the run."""
    dgmfast.fit(
        "adgm", measurements(), folder, latent=4, auxiliary=4, hidden=(64,), batch_norm=True, labels=40, epochs=epochs,
        learning_rate=2e-3, start_at_mean=True, figures=False,
    )  # fmt: skip
    run = dgmfast.load_run(folder)
    data = run.dataset()
    assert isinstance(run.model, models.LabelModel) and data.test.y is not None and data.class_names is not None
    error = evaluate.classification_error(run.model, data.test.x, data.test.y, k=20)
    print(f"{run.recipe.labels} labels, classes {', '.join(data.class_names)}: test error {error:.1f} %")
    print(f"last epoch: {run.metrics[-1]['elbo']:.2f} nats per row; the same run on the command line:")
    print(f"  dgmfast evaluate {folder} --iw 500")
    print(f"  dgmfast classify {folder}")
    return run


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own-data")
