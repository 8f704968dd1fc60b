"""Which drawing fits which architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxnas import reporting
from jaxnas.genotypes import Encoded, Genotype
from jaxnas.models import Model
from jaxnas.networks.chain import MacroNetwork
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.nasbench201 import EDGES, OPERATIONS
from jaxnas.search_spaces import NASBench201, morphable_cnn
from jaxnas.search_spaces.enas_macro import ENASMacro


def draw(what: Model | Genotype | Encoded, stem: Path, title: str) -> list[Path]:
    """Draw cells as graphs, chains of layers as chains, anything else as its text.

    Returns:
      The paths of the svg and the png.
    """
    if isinstance(what, Model):
        if what.genotype is not None:
            return reporting.draw_genotype(what.genotype, stem, title)
        return reporting.draw_chain(*_chain(what), stem, title)
    if isinstance(what, Genotype):
        return reporting.draw_genotype(what, stem, title)
    if what.space == "nasbench201":
        arch = NASBench201().encode(what.architecture)
        edges = [(i, j, OPERATIONS[op]) for (i, j), op in zip(EDGES, arch)]
        return reporting.draw_dag(edges, stem, title)
    if what.space == "enas_macro":
        return reporting.draw_chain(*_macro(what.arch), stem, title)
    if what.space == "morphable_cnn":
        return reporting.draw_chain(*_growing(what), stem, title)
    return reporting.draw_chain(what.architecture.split("|"), (), stem, title)


def _chain(model: Model) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the labels of the layers of a network without cells, and its skips."""
    if isinstance(model.network, MacroNetwork):
        labels, skips = _macro(model.network.arch)
        return labels, skips
    if not isinstance(model.network, MobileNetwork):
        raise ValueError(f"there is no drawing for {type(model.network).__name__}.")
    mobile = model.network.model
    labels, inputs = [f"conv 3x3, {mobile.stem_filters}, stride {mobile.stem_stride}"], 0
    skips = []
    for stage in mobile.stages:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            kind = "conv" if stage.operation == "conv" else f"mbconv{stage.expansion}"
            squeeze = f", SE {stage.se_ratio:g}" if stage.se_ratio else ""
            if stride == 1 and stage.filters == inputs and stage.skip != "none":
                skips.append((len(labels) - 1, len(labels)))
            labels.append(f"{kind} {stage.kernel}x{stage.kernel}, {stage.filters}"
                          + (f", stride {stride}" if stride > 1 else "") + squeeze)
            inputs = stage.filters
    labels.append(f"conv 1x1, {mobile.head_filters}")
    return labels, skips


def _growing(what: Encoded) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the layers and pools of a chain that grows, and its skips."""
    space = morphable_cnn.space_of(what.architecture)
    chain = space.slots.chain(np.array(what.arch))
    labels: list[str] = []
    places: list[int] = []
    for stage in chain.stages:
        for kernel, width in stage:
            places.append(len(labels))
            into = [skip.kind for skip in chain.into(len(places) - 1)]
            labels.append(f"conv {kernel}x{kernel}, {width}" + "".join(
                f", {into.count(kind)} {kind}" for kind in dict.fromkeys(into)))
        labels.append("max_pool 2x2")
    return labels, [(places[skip.source], places[skip.target]) for skip in chain.skips]


def _macro(arch: tuple[int, ...]) -> tuple[list[str], list[tuple[int, int]]]:
    num_layers = int((np.sqrt(8 * len(arch) + 1) - 1) / 2)  # L + L (L - 1) / 2 decisions
    labels, skips = ["conv 3x3 (stem)"], []
    for number, text in enumerate(ENASMacro(num_layers).decode(np.array(arch)).split("|"), 1):
        operation, _, bits = text.partition(":")
        labels.append(operation)
        skips += [(source, number) for source, bit in enumerate(bits) if bit == "1"]
    return labels, skips
