"""Decisions by name: of every space, unique, and there and back."""

import numpy as np
import pytest

from jaxnas import search_spaces
from jaxnas.integrations import choices, decisions, parameters, read_choices
from jaxnas.networks.mobile_grid import MobileGrid

SPACES = [
    search_spaces.AmoebaNet(), search_spaces.NASNet(2), search_spaces.PNAS(),
    search_spaces.ENASMicro(2), search_spaces.DARTS(num_nodes=2), search_spaces.DARTSRNN(),
    search_spaces.ENASRNN(3), search_spaces.NASRLRNN(), search_spaces.ENASMacro(4),
    search_spaces.NASRL(4), search_spaces.MnasNet(MobileGrid((8, 16), (1, 2), (1, 2))),
    search_spaces.MorphableCNN(), search_spaces.NASBench101(), search_spaces.NASBench201(),
    search_spaces.NASBenchMacro(), search_spaces.NATSSize(), search_spaces.Product((2, 5, 1))]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_space_has_names(space):
    found = decisions(space)
    assert tuple(len(decision.choices) for decision in found) == space.num_choices
    assert len({decision.name for decision in found}) == len(found)
    assert all(len(set(decision.choices)) == len(decision.choices) for decision in found)
    known = not isinstance(space, search_spaces.Product)
    assert known == (found[0].name != "decision_0"), "a space of ours has words"
    draw = np.random.default_rng(0)
    for _ in range(20):
        arch = draw.integers(space.num_choices)
        assert np.array_equal(read_choices(space, choices(space, arch)), arch)


def test_all_spaces_of_the_library_are_here():
    missing = {search_spaces.GrowingPNAS, search_spaces.PairCellSpace,
               search_spaces.IndependentDecisions}
    ours = {getattr(search_spaces, name) for name in search_spaces.__all__}
    assert ours - missing == {type(space) for space in SPACES}


def test_words_say_what_the_texts_of_spaces_say():
    cell = search_spaces.NASBench201()
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
    assert choices(cell, cell.encode(text)) == {
        "edge_0_to_1": "nor_conv_3x3", "edge_0_to_2": "none", "edge_1_to_2": "skip_connect",
        "edge_0_to_3": "none", "edge_1_to_3": "none", "edge_2_to_3": "avg_pool_3x3"}
    chain = search_spaces.ENASMacro(3)
    found = choices(chain, chain.encode("conv_3x3|sep_conv_5x5:1|max_pool_3x3:01"))
    assert found == {
        "layer0_operation": "conv_3x3", "layer1_operation": "sep_conv_5x5",
        "layer1_reads_stem": "yes", "layer2_operation": "max_pool_3x3", "layer2_reads_stem": "no",
        "layer2_reads_layer0": "yes"}
    layers = search_spaces.NASRL(2)
    assert choices(layers, layers.encode("3x5x24|7x1x64:1")) == {
        "layer0_height": "3", "layer0_width": "5", "layer0_filters": "24", "layer1_height": "7",
        "layer1_width": "1", "layer1_filters": "64", "layer1_reads_layer0": "yes"}
    growing = search_spaces.MorphableCNN()
    start = np.array(growing.num_choices) - 1
    words = choices(growing, start)
    first = growing.decode(start).split(",")[0]
    assert first == f"{words['slot0_kernel']}x{words['slot0_width']}"


def test_cells_say_what_their_genotype_says():
    space = search_spaces.AmoebaNet(2)
    arch = np.random.default_rng(1).integers(space.num_choices)
    words, states = choices(space, arch), ["cell_k-2", "cell_k-1", "block_0", "block_1"]
    edges = space.decode(arch).reduction.edges
    for block in range(2):
        for half, edge in zip("ab", edges[2 * block:2 * block + 2]):
            assert words[f"reduction_block{block}_operation_{half}"] == edge.operation
            assert words[f"reduction_block{block}_source_{half}"] == states[edge.source]


def test_growing_cells_name_what_is_missing():
    growing = search_spaces.GrowingPNAS(search_spaces.PNAS(2))
    assert parameters.decisions(growing)[1].choices[-1] == "absent"
    assert tuple(len(found.choices) for found in decisions(growing)) == growing.num_choices


@pytest.mark.parametrize("arch", [(0, 1), (0, 5, 0), (0, -1, 0), (0.0, 1.0, 0.0)])
def test_archs_that_are_none(arch):
    with pytest.raises(ValueError, match="must be"):
        choices(search_spaces.Product((2, 5, 1)), arch)


@pytest.mark.parametrize("words", [{}, {"decision_0": "2", "decision_1": "0"}])
def test_words_that_are_none(words):
    with pytest.raises(ValueError, match="decision_0 must be one of 0, 1, got"):
        read_choices(search_spaces.Product((2, 5)), words)
