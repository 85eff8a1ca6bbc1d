"""Your own loop: a VAE with convolutions, trained on images by torch's optimizer, then evaluated.

python examples/own_loop.py
"""

import torch

from dgmfast import data, evaluate, models
from dgmfast.objectives import Objective


def main(epochs: int = 10) -> models.GenerativeModel:
    """Train and evaluate the model."""
    torch.manual_seed(0)
    digits = data.load("digits")  # scikit-learn's images of 8 x 8
    x = digits.train.x.view(-1, 1, 8, 8)  # [1500, 1, 8, 8], grey levels in [0, 1]
    test = data.binarize(digits.test.x, seed=1).view(-1, 1, 8, 8)
    encoder = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Conv2d(1, 16, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Flatten()
    )
    decoder = torch.nn.Sequential(
        torch.nn.Linear(8, 256), torch.nn.ReLU(), torch.nn.Unflatten(1, (16, 4, 4)), torch.nn.ConvTranspose2d(16, 8, 4, 2, 1)
    )
    model = models.create("vae", x_dim=64, latent=(8,), hidden=((),), encoder=encoder, decoder=decoder)
    model.init_output_mean(digits.train.x.mean(0))
    objective = Objective(k=5)  # the importance-weighted bound of five samples
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(100):
            loss, _ = objective.loss(model, torch.bernoulli(x[rows]))  # binary images, drawn anew in every epoch
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}: L_5 {-total / len(x):.2f} nats per image")
    model.eval()
    result = evaluate.log_likelihood(model, test, k=500)
    mean, error = result.mean("log_px")
    print(f"test: L_500 {mean:.2f} ± {error:.2f} nats per image")
    return model


if __name__ == "__main__":
    main()
