"""Drawings of cells: files, dot text, and a layout in which nothing overlaps."""

import itertools
import random
from xml.etree import ElementTree

import pytest

from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge, Genotype, GenotypeError
from jaxnas.reporting import draw_genotype, graphs, to_dot


def test_files_and_labels(tmp_path):
    paths = draw_genotype(PUBLISHED["AMOEBANET_A_DARTS"], tmp_path / "deep" / "cell.v1",
                          title="A & <B> $x^")
    assert [path.name for path in paths] == ["cell.v1.svg", "cell.v1.png"]
    text = "".join(ElementTree.parse(paths[0]).getroot().itertext())
    for word in ("A & <B> $x^", "normal cell", "reduction cell", "conv_7x1_1x7", "avg_pool_3x3"):
        assert word in text
    assert text.count("max_pool_3x3") == 4
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_drawing_is_deterministic(tmp_path):
    first, second = (draw_genotype(PUBLISHED["DARTS_V2"], tmp_path / name)[0].read_bytes()
                     for name in ("a", "b"))
    assert first == second


def random_cell(rng: random.Random, nodes: int) -> CellGenotype:
    return CellGenotype(tuple(Edge("skip_connect", rng.randint(0, i + 1))
                              for i in range(nodes) for _ in range(2)), (nodes + 1,))


@pytest.mark.parametrize("cell", [
    *(cell for genotype in PUBLISHED.values() for cell in genotype[:2]),
    *(random_cell(random.Random(seed), nodes) for seed, nodes in enumerate((1, 2, 7, 16)))])
def test_nothing_overlaps(cell):
    items, paths = graphs._layout(cell)
    for a, b in itertools.combinations(items, 2):
        if a.layer == b.layer:
            assert abs(a.y - b.y) >= (a.height + b.height) / 2 + graphs._ITEM_GAP - 1e-9
    assert sum(path.edge is not None for path in paths) == 2 * cell.num_nodes
    for path in paths:  # strictly left to right, one layer at a time
        layers = [item.layer for item in path.items]
        assert layers == list(range(layers[0], layers[0] + len(layers)))
    boxes = [graphs._box_y(path.items[-1], path.edge) for path in paths if path.edge is not None]
    assert len({(round(y, 6), path.items[-1].layer)
                for y, path in zip(boxes, (p for p in paths if p.edge is not None))}) == len(boxes)


def test_largest_cell_draws(tmp_path):
    cell = random_cell(random.Random(1), 16)
    assert all(path.exists() for path in draw_genotype(Genotype(cell, cell), tmp_path / "big"))


def test_dot():
    text = to_dot(PUBLISHED["DARTS_V2"])
    assert text.startswith("digraph") and text.count("{") == text.count("}")
    assert text.count(" -> ") == 2 * (8 + 4)
    assert 'normal_2 -> normal_5 [label="dil_conv_3x3"' in text


def test_refuses_an_invalid_genotype(tmp_path):
    bad = Genotype(CellGenotype((Edge("eval", 0), Edge("eval", 1)), (2,)), PUBLISHED["DARTS_V2"][1])
    for function in (to_dot, lambda genotype: draw_genotype(genotype, tmp_path / "x")):
        with pytest.raises(GenotypeError):
            function(bad)
