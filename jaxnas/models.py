"""Published architectures as networks, by name: the cells, in the sizes that papers report.

    model = models.get("nasnet_a_mobile")
    model.cost()                                     # parameters and multiply-adds, nothing built
    variables = model.network.init(key, images, train=False)

A name is the architecture's and the form's: `cifar` forms take 32x32 images and have 10 classes,
`mobile` ones 224x224, `large` ones 331x331, both 1,000 or, with a class for "none", 1,001.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxnas import costs
from jaxnas.costs import Cost
from jaxnas.genotypes import PUBLISHED, Genotype
from jaxnas.networks import mobile_stages
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.network import Network
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.search_spaces import enas_macro, mnasnet_costs
from jaxnas.search_spaces.enas_macro import ENASMacro

Shape = tuple[int, int, int]


class Model(NamedTuple):
    """A published network."""

    network: Any             # Flax module, called (images [N, H, W, C], train=...)
    shape: Shape             # H, W, C of an image
    architecture: str        # name in `genotypes.PUBLISHED`, or of a network that has no cells
    genotype: Genotype | None  # its two cells, if it has

    def cost(self) -> Cost:
        """Return parameters and multiply-adds, by closed form; auxiliary heads are not counted."""
        if isinstance(self.network, MobileNetwork):
            found = mnasnet_costs.model_costs(
                self.network.model, num_classes=self.network.num_classes,
                image_size=self.shape[0], channels=self.shape[2])
            return Cost(int(found.parameters), int(found.multiply_adds))
        return costs.cost(self.network, self.shape)


def names() -> tuple[str, ...]:
    """Return the names that `get` knows, in order."""
    return tuple(sorted((*_DARTS, *_PAIRS, *_OTHERS)))


def get(name: str) -> Model:
    """Build a published network by name; nothing is allocated.

    Raises:
      ValueError: an unknown name; near ones are suggested.
    """
    if name in _DARTS:
        architecture, options, size = _DARTS[name]
        genotype = PUBLISHED[architecture]
        return Model(Network(genotype=genotype, **options), (size, size, 3), architecture, genotype)
    if name in _PAIRS:
        architecture, options, size = _PAIRS[name]
        genotype = PUBLISHED[architecture]
        return Model(PairNetwork(genotype, **options), (size, size, 3), architecture, genotype)
    if name in _OTHERS:
        network, size = _OTHERS[name]
        return Model(network, (size, size, 3), name.rpartition("_")[0].upper(), None)
    near = difflib.get_close_matches(name, names(), 3, 0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "experiments.architectures lists them."
    raise ValueError(f"there is no model {name!r}; {hint}")


Entry = tuple[str, Mapping[str, Any], int]


def _darts() -> dict[str, Entry]:
    """Every cell of the DARTS family, as retrained: C = 36, L = 20; C = 48, L = 14."""
    entries: dict[str, Entry] = {}
    for architecture, genotype in PUBLISHED.items():
        if genotype.space == "darts":
            name = architecture.lower()
            entries[f"{name}_cifar"] = (architecture, {
                "features": 36, "layers": 20, "auxiliary": False}, 32)
            entries[f"{name}_imagenet"] = (architecture, {
                "features": 48, "layers": 14, "num_classes": 1000, "stem": "imagenet",
                "auxiliary": False}, 224)
    return entries


def _pair(architecture: str, features: int, cells: int, classes: int = 10, size: int = 32,
          wide: int | None = None, **options: Any) -> Entry:
    imagenet = {} if size == 32 else {"stem": "imagenet", "stem_features": wide or 32}
    return architecture, {"features": features, "cells_per_stage": cells, "num_classes": classes,
                          **imagenet, **options}, size


_DARTS: Mapping[str, Entry] = MappingProxyType(_darts())
_PAIRS: Mapping[str, Entry] = MappingProxyType({
    "nasnet_a_cifar": _pair("NASNET_A", 32, 6),
    "nasnet_a_mobile": _pair("NASNET_A", 44, 4, 1000, 224),
    "nasnet_a_large": _pair("NASNET_A", 168, 6, 1000, 331, 96, skip_reduction_input=True),
    "amoebanet_a_cifar": _pair("AMOEBANET_A", 36, 6),
    "amoebanet_b_cifar": _pair("AMOEBANET_B", 36, 6),
    "amoebanet_c_cifar": _pair("AMOEBANET_C", 36, 6),
    "amoebanet_d_cifar": _pair("AMOEBANET_D", 36, 6),
    "amoebanet_a_mobile": _pair("AMOEBANET_A", 50, 4, 1001, 224),
    "amoebanet_b_mobile": _pair("AMOEBANET_B", 62, 3, 1001, 224),
    "amoebanet_c_mobile": _pair("AMOEBANET_C", 50, 4, 1001, 224),
    "amoebanet_a_large": _pair("AMOEBANET_A", 190, 6, 1001, 331),
    "amoebanet_c_large": _pair("AMOEBANET_C", 228, 6, 1001, 331),
    "pnasnet_5_cifar": _pair("PNASNET_5", 48, 3),
    "pnasnet_5_mobile": _pair("PNASNET_5", 54, 3, 1001, 224),
    "pnasnet_5_large": _pair("PNASNET_5", 216, 4, 1001, 331, 96),
    "enas_micro_cifar": _pair("ENAS_MICRO", 36, 5),
})
_OTHERS: Mapping[str, tuple[Any, int]] = MappingProxyType({
    "enas_macro_cifar": (ENASMacro(24).network(np.array(enas_macro.PUBLISHED["ENAS_MACRO"])), 32),
    **{f"{name.lower()}_mobile": (MobileNetwork(model), 224)
       for name, model in mobile_stages.PUBLISHED.items()},
})
