"""The models of the thesis, one per file. All implement the protocol in `base`."""

import difflib
import inspect
from collections.abc import Callable

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
from dgmfast.plugins import load_plugins

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


def register(name: str) -> Callable[[type[GenerativeModel]], type[GenerativeModel]]:
    """Class decorator: make a model available as models.create(`name`), and to recipes and the command line.

    The module must be imported where the name is used: by `dgmfast --import MODULE`, or by an entry point of the group
    "dgmfast.plugins" in the package that holds it.

    Raises:
        InputError: The class is not a GenerativeModel, or the name is taken by another one.
    """

    def add(kind: type[GenerativeModel]) -> type[GenerativeModel]:
        if not (isinstance(kind, type) and issubclass(kind, GenerativeModel)):
            raise InputError(f"register: expected a subclass of GenerativeModel; got {kind!r:.60}")
        known = MODELS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise InputError(f"register: {name!r} must be a new name; it is that of {known.__module__}.{known.__qualname__}")
        MODELS[name] = kind
        return kind

    return add


def registered_name(kind: type[GenerativeModel]) -> str | None:
    """The name under which `create` knows a class of models, or None."""
    return next((name for name, known in MODELS.items() if known is kind), None)


def find(name: str) -> type[GenerativeModel] | None:
    """The class of the model called `name`, or None. Plugins are imported if it is not known without them."""
    if isinstance(name, str) and name not in MODELS:
        load_plugins()
    return MODELS.get(name)


def unknown_name(name: object) -> str:
    """A sentence about a name that no model has."""
    return f"model must be one of {', '.join(MODELS)}; got {name!r}"


def create(name: str, **overrides: object) -> GenerativeModel:
    """Create the model called `name` with the thesis's defaults, except for `overrides`.

    Args:
        name: A key of `MODELS`, such as "vae" or "adgm".
        overrides: Arguments of the model's class.

    Raises:
        InputError: There is no such model or setting, a setting is out of range, or the layers do not fit into memory.
    """
    if find(name) is None:
        raise InputError(unknown_name(name))
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
    "find",
    "register",
    "registered_name",
    "unknown_name",
]
