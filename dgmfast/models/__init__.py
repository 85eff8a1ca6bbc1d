"""The models of the thesis, one per file. All implement the protocol in `base`."""

import difflib
import inspect

from dgmfast.errors import InputError
from dgmfast.models.adgm import ADGM
from dgmfast.models.avae import AVAE
from dgmfast.models.base import GenerativeModel
from dgmfast.models.cagem import CaGeM
from dgmfast.models.fame import FAME
from dgmfast.models.label_lvae import LabelLVAE
from dgmfast.models.label_model import LabelModel
from dgmfast.models.labels import LABEL_SUMS, ExactSum, GumbelSoftmax, LabelEstimator, SampledLabel, SparseSum
from dgmfast.models.lvae import LVAE, AuxiliaryLVAE
from dgmfast.models.m1m2 import M1M2
from dgmfast.models.m2 import M2
from dgmfast.models.noise import Gaussian, Noise, Seed
from dgmfast.models.pixelcnn import PixelCNN
from dgmfast.models.potential import Potential
from dgmfast.models.sdgm import SDGM
from dgmfast.models.terms import Elbo, Encoding, Label, Latent, Terms
from dgmfast.models.vae import VAE

MODELS: dict[str, type[GenerativeModel]] = {
    "vae": VAE,
    "m1m2": M1M2,
    "m2": M2,
    "avae": AVAE,
    "adgm": ADGM,
    "sdgm": SDGM,
    "lvae": LVAE,
    "cagem": CaGeM,
    "fame": FAME,
    "pixelcnn": PixelCNN,
    "lvae-auxiliary": AuxiliaryLVAE,
    "lvae-label": LabelLVAE,
    "potential": Potential,
}


def create(name: str, **overrides: object) -> GenerativeModel:
    """Create the model called `name` with the thesis's defaults, except for `overrides`.

    Args:
        name: A key of `MODELS`, such as "vae" or "adgm".
        overrides: Arguments of the model's class.

    Raises:
        InputError: There is no such model or setting, a setting is out of range, or the layers do not fit into memory.
    """
    if name not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    known = list(inspect.signature(MODELS[name]).parameters)
    wrong = [setting for setting in overrides if setting not in known]
    if wrong:
        near = difflib.get_close_matches(wrong[0], known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"model {name}: no setting is called {wrong[0]!r:.60}; {hint}")
    try:
        return MODELS[name](**overrides)
    except (TypeError, RuntimeError) as error:  # torch raises RuntimeError if it cannot allocate
        reason = str(error).split("\n")[0].replace(f"{MODELS[name].__name__}.__init__()", "").strip()
        raise InputError(f"model {name}: {reason}") from error


__all__ = [
    "ADGM",
    "AVAE",
    "FAME",
    "LABEL_SUMS",
    "LVAE",
    "M1M2",
    "M2",
    "MODELS",
    "SDGM",
    "VAE",
    "AuxiliaryLVAE",
    "CaGeM",
    "Elbo",
    "Encoding",
    "ExactSum",
    "Gaussian",
    "GenerativeModel",
    "GumbelSoftmax",
    "Label",
    "LabelEstimator",
    "LabelLVAE",
    "LabelModel",
    "Latent",
    "Noise",
    "PixelCNN",
    "Potential",
    "SampledLabel",
    "Seed",
    "SparseSum",
    "Terms",
    "create",
]
