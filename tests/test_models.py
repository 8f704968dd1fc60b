"""Published networks by name."""

import pytest

from jaxnas import costs, genotypes, models
from jaxnas.networks import mobile_stages

# Section 8 of the specification: independent of the closed forms.
PARAMETERS = {
    "nasnet_a_cifar": 3_346_538, "nasnet_a_mobile": 5_289_978, "nasnet_a_large": 88_753_150,
    "amoebanet_a_cifar": 3_218_266, "amoebanet_b_cifar": 2_839_186,
    "amoebanet_a_mobile": 5_087_699, "amoebanet_b_mobile": 5_259_661,
    "amoebanet_c_mobile": 6_354_759, "pnasnet_5_large": 86_061_989, "mnasnet_b1_mobile": 4_383_312,
    "mnasnet_a1_mobile": 3_887_038, "mnasnet_small_mobile": 2_030_264,
    "enas_micro_cifar": 3_894_372, "enas_macro_cifar": 30_947_424, "darts_v1_cifar": 3_169_414,
    "darts_v2_cifar": 3_349_342, "darts_v2_imagenet": 4_718_752,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert models.get(name).cost().parameters == PARAMETERS[name]


def test_every_published_architecture_has_a_network():
    built = {models.get(name).architecture for name in models.names()}
    assert built == {*genotypes.PUBLISHED, *mobile_stages.PUBLISHED, "ENAS_MACRO"}
    for name in models.names():
        assert models.get(name).cost().multiply_adds > 10_000_000


@pytest.mark.parametrize("name", ["mnasnet_small_mobile"])
def test_closed_form_is_the_built_network(name):
    model = models.get(name)
    assert costs.count_parameters(model.network, model.shape) == model.cost().parameters


def test_unknown_name_suggests():
    with pytest.raises(ValueError, match="did you mean nasnet_a_cifar"):
        models.get("nasnet_cifar")
    with pytest.raises(ValueError, match="experiments.architectures lists them"):
        models.get("###")
