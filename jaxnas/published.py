"""The published cells as compact text; `genotypes.PUBLISHED` is the parsed table.

One line a cell: `operation source` an edge, `,` between the two edges of a node, `|` between
nodes. Sources: 0 is the output of cell k-2, 1 of cell k-1, s >= 2 is node s - 2 (the encoding of
Liu et al., 2019, https://arxiv.org/abs/1806.09055). The released code of NASNet, AmoebaNet and
PNASNet counts the other way, 0 for cell k-1: its 0 and 1 are swapped here. The number beside each
is its arXiv id.

`concat` is what the released code concatenates. It is not what a rule would derive: NASNet-A's
normal cell reads the output of cell k-2 six times and still concatenates it, and AmoebaNet-A's
reduction cell concatenates nodes that others read.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

SHORT_NAMES: Mapping[str, str] = MappingProxyType({
    "max": "max_pool_3x3", "avg": "avg_pool_3x3", "skip": "skip_connect",
    "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5", "sep7": "sep_conv_7x7",
    "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5", "conv7": "conv_7x1_1x7",
    "conv1": "conv_1x1", "conv3": "conv_3x3", "conv17": "conv_1x7_7x1", "max2": "max_pool_2x2",
    "dilsep5": "dil_sep_conv_5x5"})


class PublishedText(NamedTuple):
    """A pair of cells in the compact notation of this file, and the states each concatenates."""

    normal: str
    reduction: str
    normal_concat: tuple[int, ...] = (2, 3, 4, 5)
    reduction_concat: tuple[int, ...] = (2, 3, 4, 5)
    space: str = "darts"


PNASNET_5_CELL = "sep5 0, max 0 | sep7 1, max 1 | sep5 1, sep3 1 | sep3 4, max 1 | sep3 0, skip 1"

PUBLISHED_TEXT: Mapping[str, PublishedText] = MappingProxyType({
    "DARTS_V1": PublishedText(  # first order, 1806.09055, quark0/darts
        "sep3 1, sep3 0 | skip 0, sep3 1 | skip 0, sep3 1 | sep3 0, skip 2",
        "max 0, max 1 | skip 2, max 0 | max 0, skip 2 | skip 2, avg 0"),
    "DARTS_V2": PublishedText(  # second order, 1806.09055, quark0/darts
        "sep3 0, sep3 1 | sep3 0, sep3 1 | sep3 1, skip 0 | skip 0, dil3 2",
        "max 0, max 1 | skip 2, max 1 | max 0, skip 2 | skip 2, max 1"),
    "PC_DARTS_CIFAR": PublishedText(  # 1907.05737
        "sep3 1, skip 0 | sep3 0, dil3 1 | sep5 0, sep3 1 | avg 0, dil3 1",
        "sep5 1, max 0 | sep5 1, sep5 2 | sep3 0, sep3 3 | sep3 1, sep3 2"),
    "PC_DARTS_IMAGENET": PublishedText(  # 1907.05737
        "skip 1, sep3 0 | sep3 0, skip 1 | sep3 1, sep3 3 | sep3 1, dil5 4",
        "sep3 0, skip 1 | dil5 2, max 1 | sep3 2, sep3 1 | sep5 0, sep3 3"),
    "P_DARTS": PublishedText(  # 1904.12760
        "skip 0, dil3 1 | skip 0, sep3 1 | sep3 1, sep3 3 | sep3 0, dil5 4",
        "avg 0, sep5 1 | sep3 0, dil5 2 | max 0, dil3 1 | dil3 1, dil5 3"),
    "DRNAS_CIFAR10": PublishedText(  # 2006.10355
        "sep3 0, sep5 1 | sep3 1, sep3 2 | skip 0, sep3 1 | sep3 2, dil5 3",
        "max 0, sep5 1 | dil5 2, sep5 1 | sep5 1, dil5 3 | skip 4, sep5 1"),
    "DRNAS_IMAGENET": PublishedText(  # 2006.10355
        "sep3 1, sep3 0 | sep3 0, sep3 1 | sep3 0, dil3 3 | skip 0, sep3 1",
        "max 0, sep3 1 | sep3 0, skip 2 | sep3 0, sep3 2 | sep3 3, sep3 1"),
    "DARTS_MINUS": PublishedText(  # 2009.01027, cifar10_s0_best of Meituan-AutoML/DARTS-
        "sep3 0, sep5 1 | sep3 1, dil3 2 | skip 1, sep3 0 | skip 1, sep3 0",
        "sep3 0, max 1 | skip 2, max 0 | skip 2, skip 3 | skip 2, skip 3"),
    "GDAS_V1": PublishedText(  # 1910.04465, D-X-Y/AutoDL-Projects
        "skip 0, skip 1 | skip 0, sep5 2 | sep3 3, skip 0 | sep5 4, sep3 3",
        "sep5 0, sep3 1 | sep5 2, sep5 1 | dil5 2, sep3 1 | sep5 0, sep5 1"),
    "NASNET_A": PublishedText(  # 1707.07012, tensorflow/models slim
        "sep5 1, sep3 0 | sep5 0, sep3 0 | avg 1, skip 0 | avg 0, avg 0 | sep3 1, skip 1",
        "sep5 1, sep7 0 | max 1, sep7 0 | avg 1, sep5 0 | skip 3, avg 2 | sep3 2, max 1",
        (0, 2, 3, 4, 5, 6), (3, 4, 5, 6), "nasnet"),
    "AMOEBANET_A": PublishedText(  # 1802.01548, tensorflow/tpu, as those below
        "avg 1, max 1 | sep3 0, skip 0 | skip 1, avg 0 | sep3 1, sep5 2 | avg 5, sep3 1",
        "sep3 0, avg 1 | max 1, sep7 2 | max 0, max 1 | sep3 4, conv17 1 | avg 0, sep7 1",
        (0, 3, 4, 6), (2, 3, 4, 5, 6), "amoebanet"),
    "AMOEBANET_B": PublishedText(
        "conv1 0, max 0 | skip 0, sep3 1 | conv1 0, sep3 1 | conv1 2, skip 2 | avg 0, conv1 5",
        "max2 1, max 1 | skip 2, conv3 0 | dilsep5 2, max 2 | skip 3, sep3 0 | avg 4, conv1 3",
        (1, 3, 4, 6), (5, 6), "amoebanet"),
    "AMOEBANET_C": PublishedText(
        "avg 1, sep3 1 | skip 1, sep3 1 | avg 2, sep3 0 | skip 1, sep3 0 | avg 3, sep3 1",
        "max 1, max 1 | sep7 2, sep3 1 | sep7 1, max 0 | sep5 4, sep5 4 | max 0, sep3 0",
        (0, 2, 4, 5, 6), (1, 2, 3, 4, 5, 6), "amoebanet"),
    "AMOEBANET_D": PublishedText(  # not in the paper
        "conv1 0, max 0 | skip 0, conv17 1 | conv1 1, conv17 1 | max 2, skip 2 | avg 0, conv1 5",
        "max2 1, max 1 | skip 2, conv3 0 | conv17 2, max 2 | skip 3, max2 0 | avg 2, conv1 3",
        (1, 3, 4, 6), (4, 5, 6), "amoebanet"),
    "PNASNET_5": PublishedText(  # 1712.00559, one cell for both strides
        PNASNET_5_CELL, PNASNET_5_CELL, (2, 3, 4, 5, 6), (2, 3, 4, 5, 6), "pnas"),
    "ENAS_MICRO": PublishedText(  # 1802.03268, melodyguan/enas scripts/cifar10_micro_final.sh
        "avg 0, sep3 0 | skip 0, sep5 0 | skip 0, sep5 1 | sep3 1, sep5 0 | avg 0, sep5 1",
        "sep3 1, sep3 1 | max 0, avg 0 | sep5 1, sep5 3 | sep3 1, skip 0 | max 0, sep5 1",
        (2, 3, 4, 5, 6), (2, 4, 5, 6), "enas_micro"),
    "NASNET_A_DARTS": PublishedText(  # as quark0/darts has it, which concatenates less
        "sep5 1, sep3 0 | sep5 0, sep3 0 | avg 1, skip 0 | avg 0, avg 0 | sep3 1, skip 1",
        "sep5 1, sep7 0 | max 1, sep7 0 | avg 1, sep5 0 | skip 3, avg 2 | sep3 2, max 1",
        normal_concat=(2, 3, 4, 5, 6), reduction_concat=(4, 5, 6)),
    "AMOEBANET_A_DARTS": PublishedText(  # as quark0/darts has it, after a figure since corrected
        "avg 0, max 1 | sep3 0, sep5 2 | sep3 0, avg 3 | sep3 1, skip 1 | skip 0, avg 1",
        "avg 0, sep3 1 | max 0, sep7 2 | sep7 0, avg 1 | max 0, max 1 | conv7 0, sep3 5",
        normal_concat=(4, 5, 6), reduction_concat=(3, 4, 6)),
    "PT_DARTS_CIFAR10": PublishedText(  # 1806.09055 as rerun by khanrc/pt.darts
        "sep3 0, dil5 1 | skip 0, dil3 2 | sep3 1, skip 0 | sep3 1, skip 0",
        "max 0, max 1 | max 0, skip 2 | skip 3, max 0 | skip 2, max 0"),
})

# Recurrent cells: `activation source` a node, source 0 is the state made of input and hidden state;
# and the nodes whose mean is the output, None for all.
RECURRENT_TEXT: Mapping[str, tuple[str, tuple[int, ...] | None]] = MappingProxyType({
    "DARTS_RNN_V1": (  # first order, 1806.09055, quark0/darts rnn/genotypes.py
        "relu 0|relu 1|tanh 2|relu 3|relu 4|identity 1|relu 5|relu 1", None),
    "DARTS_RNN_V2": (  # second order
        "sigmoid 0|relu 1|relu 1|identity 1|tanh 2|sigmoid 5|tanh 3|relu 5", None),
    "ENAS_RNN": (  # 1802.03268, the arc 0 2 1 0 2 1 2 2 4 0 5 0 3 2 6 2 of enas_lm
        "sigmoid 0|tanh 1|relu 2|sigmoid 2|tanh 4|tanh 5|sigmoid 3|sigmoid 6", None),
    "ENAS_RNN_DARTS": (  # the paper's cell as quark0/darts has it
        "tanh 0|tanh 1|relu 1|tanh 3|tanh 3|relu 3|relu 4|relu 7|relu 8|relu 8|relu 8",
        (2, 5, 6, 9, 10, 11)),
})
