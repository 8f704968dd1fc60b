"""The macro space of NAS-Bench-Macro, whose isomorphic networks share their accuracies."""

import itertools
from importlib import resources

import jax
import numpy as np
import pytest

from jaxnas.search_spaces import NASBenchMacro

SPACE = NASBenchMacro()
TABLE = resources.files("jaxnas.data") / "files" / "nasbench_macro.npz"


@pytest.fixture(scope="module")
def all_archs():
    return np.array(list(itertools.product(range(3), repeat=8)), np.int32)


@pytest.fixture(scope="module")
def canonical(all_archs):
    return np.asarray(jax.jit(jax.vmap(SPACE.canonical))(all_archs))


def test_number_of_networks(all_archs, canonical):
    assert SPACE.size == len(all_archs) == 6561
    assert len(np.unique(canonical, axis=0)) == 3969 == 3 ** 4 * 7 ** 2


@pytest.mark.parametrize("text, smallest", [
    ("22212220", "22212202"),  # both hold the benchmark's best accuracy, 93.13%
    ("00010010", "00001001"), ("11120112", "11102112"), ("12010000", "12001000"),
    ("20020210", "20002201"), ("10101101", "10101101"), ("00000000", "00000000")])
def test_identity_moves_within_layers_of_one_shape(text, smallest):
    assert SPACE.decode(SPACE.canonical(SPACE.encode(text))) == smallest


def test_same_class_if_and_only_if_same_results(all_archs, canonical):
    """Three trainings give three accuracies, which different networks do not share by chance."""
    if not TABLE.is_file():
        pytest.skip("the table is not shipped")
    with TABLE.open("rb") as file, np.load(file, allow_pickle=False) as table:
        np.testing.assert_array_equal(table["ops"], all_archs)
        results = table["test_acc"]
    of_class = np.unique(canonical, axis=0, return_inverse=True)[1].reshape(-1)
    of_result = np.unique(results, axis=0, return_inverse=True)[1].reshape(-1)
    pairs = np.unique(np.stack([of_class, of_result], -1), axis=0)
    assert len(pairs) == of_class.max() + 1 == of_result.max() + 1 == 3969


@pytest.mark.parametrize("text, message", [
    ("0000000", "8 numbers, got 7"), ("000000000", "got 9"), ("00000003", "number 7 must be 0 to"),
    ("0000-000", "number 4"), ("00000 00", "number 5")])
def test_wrong_texts(text, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode(text)
