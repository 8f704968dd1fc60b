"""What is special of the space of chains that grow; the contract of all spaces is elsewhere."""

import jax
import numpy as np
import pytest

from jaxnas import conv_chains, genotypes
from jaxnas.conv_chains import Connect, Deepen, Widen
from jaxnas.networks import MorphableNetwork, MorphableSlots
from jaxnas.search_spaces import MorphableCNN, morphable_cnn

SPACE = MorphableCNN(MorphableSlots(2, 2, (1, 3, 5), (4, 8)))


def test_text_by_hand():
    text = "3x4,-4|5x8,1x4;0+2;1&3"
    arch = SPACE.encode(text)
    # kernels 1, 3, 5 and absent; widths 4 and 8; pairs (0, 1), (0, 2), (1, 2), (0, 3), (1, 3) ...
    assert arch.tolist() == [1, 0, 3, 0, 2, 1, 0, 0, 0, 1, 0, 0, 2, 0]
    assert SPACE.decode(arch) == text
    assert str(SPACE.network(arch).chain) == "3x4|5x8,1x4;0+1"  # a skip from an absent slot is none


def test_canonical_brings_all_forms_of_a_network_together():
    forms = ["3x4,-4|5x8,-8;0+2;1&3", "3x4,-8|5x8,-4;0+2", "3x4,-4|5x8,-4;0+2;2&3"]
    found = {tuple(np.asarray(SPACE.canonical(SPACE.encode(form))).tolist()) for form in forms}
    assert found == {tuple(SPACE.encode("3x4,-4|5x8,-4;0+2").tolist())}


def test_random_archs_have_the_skips_that_are_said():
    archs = np.asarray(jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(0), 2000)))
    kinds = archs[:, 8:]
    assert abs((kinds > 0).sum(1).mean() - morphable_cnn.MEAN_SKIPS) < 0.1
    assert abs((kinds == 1).sum() / (kinds > 0).sum() - 0.5) < 0.05


def test_files_tell_the_network_alone():
    chain = conv_chains.initial_chain(width=4)
    for operation in (Deepen(0, 5), Widen(1, 16), Connect(0, 2, "add"), Connect(1, 3, "concat")):
        chain = conv_chains.transform(chain, operation)
        found = morphable_cnn.encoded(chain)
        assert genotypes.from_json(genotypes.to_json(found)) == found
        space = morphable_cnn.space_of(found.architecture)
        arch = space.encode(found.architecture)
        assert arch.tolist() == list(found.arch)
        assert space.network(arch) == MorphableNetwork(chain)


@pytest.mark.parametrize("text", ["", "3x4", "3x4,-4", "3x4|-4", "ax4", "3x4;0+1;;", "-4|3x4"])
def test_wrong_texts_of_files_are_refused(text):
    with pytest.raises(ValueError):
        morphable_cnn.space_of(text).encode(text + "|x")
