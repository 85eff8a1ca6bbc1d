"""The models of the thesis, one per file, all on the protocol of `base`."""

from dgmfast.errors import InputError
from dgmfast.models.base import Elbo, GenerativeModel, Noise, Terms
from dgmfast.models.vae import VAE

MODELS: dict[str, type[GenerativeModel]] = {"vae": VAE}


def create(name: str, **overrides: object) -> GenerativeModel:
    """The model called `name` with the thesis's defaults, except for `overrides`.

    Raises:
        InputError: no such model, or no such setting.
    """
    if name not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    try:
        return MODELS[name](**overrides)
    except TypeError as error:
        raise InputError(f"model {name}: {str(error).replace(MODELS[name].__name__ + '.__init__()', '').strip()}") from error


__all__ = ["MODELS", "VAE", "Elbo", "GenerativeModel", "Noise", "Terms", "create"]
