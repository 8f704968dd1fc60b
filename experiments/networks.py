"""The fixed network of any genotype, at the size that flags ask for."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnas.genotypes import Encoded, Genotype
from jaxnas.networks import mobile_grid
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.nasbench201 import NASBench201Network
from jaxnas.networks.network import Network
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.search_spaces import NASBench201, morphable_cnn
from jaxnas.search_spaces.enas_macro import ENASMacro
from jaxnas.search_spaces.mnasnet import MnasNet
from jaxnas.search_spaces.nasrl import NASRL

ENCODED = ("nasbench201", "enas_macro", "nasrl", "mnasnet", "morphable_cnn")
WITHOUT_DROP_PATH = ("nasbench201", "enas_macro", "nasrl", "morphable_cnn")


def make_network(genotype: Genotype | Encoded, config: Any, num_classes: int) -> Any:
    """Build the network that a genotype stands for.

    Args:
      genotype: of any space that has networks.
      config: of `experiments.retrain`: `features`, `layers`, `auxiliary`, `pool_norm` and
        `drop_path_rate` are read. Where cells come in three equal stages, a stage has a third of
        `layers`, one at least; chains have the layers, and NASRL, MnasNet and chains that grow the
        widths, that their genotype says.
      num_classes: outputs of the classifier.

    Returns:
      A Flax module, called (images, train=..., drop_path_rate=...).

    Raises:
      ValueError: a space without networks, or an option that its networks do not have.
    """
    cells = max(1, config.layers // 3)
    if isinstance(genotype, Genotype) and genotype.space == "darts":
        return Network(
            genotype=genotype, features=config.features, layers=config.layers,
            num_classes=num_classes, auxiliary=config.auxiliary,
            pool_norm=None if config.pool_norm == "none" else config.pool_norm)
    if config.pool_norm != "none":
        raise ValueError(f"pool_norm is an option of the space darts, not of {genotype.space}.")
    if isinstance(genotype, Genotype):
        return PairNetwork(genotype, features=config.features, cells_per_stage=cells,
                           num_classes=num_classes, auxiliary=config.auxiliary)
    if genotype.space not in ENCODED:
        raise ValueError(f"there are no networks of the space {genotype.space!r}; those of "
                         f"{', '.join(ENCODED)} and of the spaces of cells can be trained.")
    if config.auxiliary:
        raise ValueError(f"networks of the space {genotype.space} have no auxiliary head.")
    if config.drop_path_rate and genotype.space in WITHOUT_DROP_PATH:
        raise ValueError(f"networks of the space {genotype.space} have no paths to drop; set "
                         "drop_path_rate to 0.")
    text = genotype.architecture
    if genotype.space == "nasbench201":
        return NASBench201Network(tuple(NASBench201().encode(text).tolist()), config.features,
                                  cells, num_classes)
    if genotype.space == "mnasnet":
        return MobileNetwork(MnasNet(mobile_grid.small_images()).model(_same(genotype, MnasNet(
            mobile_grid.small_images()))), num_classes=num_classes)
    if genotype.space == "morphable_cnn":
        growing = morphable_cnn.space_of(text)
        return growing.network(_same(genotype, growing), num_classes=num_classes)
    layers = len(text.split("|"))
    if genotype.space == "enas_macro":
        macro = ENASMacro(layers)
        return macro.network(_same(genotype, macro), features=config.features,
                             num_classes=num_classes)
    chain = NASRL(layers)
    return chain.network(_same(genotype, chain), num_classes=num_classes)


def _same(genotype: Encoded, space: Any) -> np.ndarray:
    """Read the text, which must say what the integers say.

    Raises:
      ValueError: it is no architecture of the space, or another one.
    """
    arch = space.encode(genotype.architecture)
    if arch.tolist() != list(genotype.arch):
        raise ValueError("genotype: arch and architecture are two different networks.")
    return arch
