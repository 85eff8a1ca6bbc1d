"""Base class of the models with a label y."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgmfast.errors import InputError, check_count
from dgmfast.models.base import GenerativeModel, abstract_method
from dgmfast.models.labels import ExactSum, Labels, Observed, SampledLabel
from dgmfast.models.noise import Noise, Seed
from dgmfast.models.terms import Encoding, Label

LABEL_STREAM = 1000
PRIORS = ("uniform", "learned")


class LabelModel(GenerativeModel):
    """Base class of the models with a label y. Besides the methods of `GenerativeModel`, subclasses define `label_log_probs`.

    Args:
        num_classes: Number of labels Y, at least 2.
        class_prior: p(y): "uniform", "learned", or a list of Y probabilities.

    Raises:
        InputError: num_classes is below 2, or class_prior is none of these.
    """

    num_classes: int
    clusters = False  # True if the label means something without labels: it is then a cluster

    def __init__(self, num_classes: int, class_prior: str | Sequence[float] = "uniform") -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 2:
            raise InputError(f"num_classes must be a whole number of at least 2; got {num_classes!r}")
        self.num_classes = num_classes
        logits = torch.zeros(num_classes)
        if not isinstance(class_prior, str):
            try:
                logits = torch.as_tensor(class_prior, dtype=torch.float32).log()
            except (TypeError, ValueError) as error:
                raise InputError(f"class_prior must hold {num_classes} positive probabilities; got {class_prior!r}") from error
            if logits.shape != (num_classes,) or not logits.isfinite().all():
                raise InputError(f"class_prior must hold {num_classes} positive probabilities; got {class_prior!r}")
        elif class_prior not in PRIORS:
            raise InputError(f"class_prior must be {' or '.join(PRIORS)}, or a list of probabilities; got {class_prior!r}")
        if class_prior == "learned":
            self.prior_logits = nn.Parameter(logits)
        else:
            self.register_buffer("prior_logits", logits)

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        """log q(y | latents, x), [B, k, Y], at k samples of the latents that q(y|·) depends on."""
        raise abstract_method(self, "label_log_probs")

    def log_py(self) -> Tensor:
        """log p(y), [Y]."""
        return torch.log_softmax(self.prior_logits, 0)

    def bind(self, y: Label, log_qy: Tensor, k: int, noise: Noise) -> Labels:
        """The label of a draw: y itself, or the sum over the label with log q(y|·) [B, 1 or k, Y]."""
        return Observed(y) if isinstance(y, Tensor) else (y or ExactSum()).bind(log_qy, k, noise, LABEL_STREAM)

    def cross_entropies(self, y: Label, labels: Labels, **log_probs: Tensor) -> dict[str, Tensor]:
        """−log of each classifier's probability of an observed label, [B, k] in nats, from the log-probabilities.

        The result is empty if y is not observed.
        """
        return {name: -labels.prior(log_q) for name, log_q in log_probs.items()} if isinstance(y, Tensor) else {}

    def sampled_label(self, log_py: Tensor, noise: Noise, y: Tensor | None) -> Labels:
        """The label for sampling from the model: y [n], or a draw from p(y|·), given as log p(y|·) [n, 1, Y]."""
        return self.bind(SampledLabel() if y is None else y, log_py.detach(), 1, noise)

    @torch.no_grad()
    def classify(
        self,
        x: Tensor,
        k: int = 1,
        seed: Seed = None,
        by: str = "q",
        first_row: int = 0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Class probabilities, [B, Y], from k samples of the latents.

        Args:
            x: [B, D].
            k: Number of samples per row.
            seed: Seed of the noise; None draws one from `generator`.
            by: "q" for q(y|x) = E q(y|latents, x); "p" for the Bayes classifier p(y|x) ∝ exp L(x, y), where L are the bounds;
                "both" for their normalised geometric mean. Thesis §4.7 proposes the last two.
            first_row: Coordinate of the first row in the noise.
            generator: Source of the seed; by default torch's own generator.

        Raises:
            InputError: `by` is unknown, k is below 1, or the model does not take x.
        """
        x = self.rows(x)
        self.check("classify", x, None)
        check_count("classify", "k", k)
        if by not in ("q", "p", "both"):
            raise InputError(f"classify: by must be q, p or both; got {by!r}")
        encoding, noise = self.encode(x), Noise.of("classify", seed, generator, x.device, first_row)
        if by == "q":
            return self.label_log_probs(encoding, x, k, noise).exp().mean(1)
        terms = self.draw(encoding, x, k, noise)
        if terms.log_py is None:
            raise InputError(f"classify: by must be q while {type(self).__name__} is in a stage without labels; got {by!r}")
        log_p = torch.log_softmax(terms.per_label().mean(1), -1)
        if by == "p":
            return log_p.exp()
        return torch.softmax(0.5 * (log_p + self.label_log_probs(encoding, x, k, noise).exp().mean(1).log()), -1)
