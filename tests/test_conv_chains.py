"""Operations on chains without weights."""

import pytest

from jaxnas import conv_chains
from jaxnas.conv_chains import Connect, ConvChain, Deepen, Layer, Skip, Widen, transform

START = conv_chains.initial_chain(width=4)


def test_the_first_network_is_that_of_autokeras():
    assert str(conv_chains.initial_chain()) == "3x64|3x64|3x64"


def test_a_layer_is_inserted_behind_the_end_of_skips():
    chain = transform(transform(START, Connect(0, 1, "add")), Connect(1, 2, "concat"))
    assert str(chain) == "3x4|3x4|3x4;0+1;1&2"
    # Behind layer 1: what ends or starts there stays, what lies behind moves on.
    assert str(transform(chain, Deepen(1, 5))) == "3x4|3x4,5x4|3x4;0+1;1&3"
    assert str(transform(chain, Deepen(0, 1))) == "3x4,1x4|3x4|3x4;0+2;2&3"
    assert str(transform(chain, Deepen(2, 1))) == "3x4|3x4|3x4,1x4;0+1;1&2"
    assert str(transform(chain, Widen(1, 8))) == "3x4|3x8|3x4;0+1;1&2"


def test_operations_are_all_within_bounds_and_different():
    found = list(conv_chains.operations(START, max_layers=2, max_width=8))
    # 3 layers with 3 kernels, 3 widths, 3 pairs with 2 kinds
    assert len(found) == len(set(found)) == 9 + 3 + 6
    assert len({transform(START, operation) for operation in found}) == len(found)
    full = transform(START, Deepen(0, 3))
    assert Deepen(0, 1) not in list(conv_chains.operations(full, max_layers=2, max_width=8))
    assert not any(isinstance(operation, Widen) for operation in
                   conv_chains.operations(START, max_layers=2, max_width=7))


@pytest.mark.parametrize("operation, message", [
    (Deepen(3, 3), "must be in"), (Deepen(-1, 3), "must be in"), (Deepen(0, 2), "odd"),
    (Widen(0, 4), "above 4"), (Connect(1, 1, "add"), "forward"), (Connect(0, 3, "add"), "forward"),
    (Connect(0, 1, "mul"), "kind")])
def test_impossible_operations_are_refused(operation, message):
    with pytest.raises(ValueError, match=message):
        transform(START, operation)


@pytest.mark.parametrize("chain, message", [
    (ConvChain(()), "stage"), (ConvChain(((),)), "layer"),
    (ConvChain(((Layer(3, 0),),)), "width"),
    (START._replace(skips=(Skip(1, 2, "add"), Skip(0, 1, "add"))), "ascend"),
    (START._replace(skips=(Skip(0, 1, "add"), Skip(0, 1, "concat"))), "one a pair")])
def test_wrong_chains_are_refused(chain, message):
    with pytest.raises(ValueError, match=message):
        conv_chains.check(chain)


def test_num_stages_is_checked():
    with pytest.raises(ValueError, match="num_stages"):
        conv_chains.initial_chain(num_stages=0)
