"""The models of the thesis, one per file, all on the protocol of `base`."""

from dgmfast.errors import InputError
from dgmfast.models.base import Elbo, GenerativeModel, Noise, Terms
from dgmfast.models.vae import VAE

MODELS: dict[str, type[GenerativeModel]] = {"vae": VAE}


def create(name: str, **overrides: object) -> GenerativeModel:
    """The model called `name` with the thesis's defaults, except for `overrides`.

    Raises:
        InputError: no such model, no such setting, or one out of range (layers that do not fit into memory, too).
    """
    if name not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    try:
        return MODELS[name](**overrides)
    except (TypeError, RuntimeError) as error:  # of Python, and of torch for a size that it cannot allocate
        reason = str(error).split("\n")[0].replace(f"{MODELS[name].__name__}.__init__()", "").strip()
        raise InputError(f"model {name}: {reason}") from error


__all__ = ["MODELS", "VAE", "Elbo", "GenerativeModel", "Noise", "Terms", "create"]
