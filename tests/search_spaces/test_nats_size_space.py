"""The size space of NATS-Bench."""

import numpy as np
import pytest

from jaxnas.search_spaces import NATSSize

SPACE = NATSSize()


def test_size_and_text():
    assert SPACE.size == 32_768 and SPACE.num_choices == (8,) * 5
    assert SPACE.decode(np.array([0, 1, 7, 3, 5])) == "8:16:64:32:48"
    np.testing.assert_array_equal(SPACE.encode("64:64:64:64:64"), [7] * 5)


@pytest.mark.parametrize("text, message", [
    ("8:8:8:8", "5 numbers with ':' between, got 4"), ("8:8:8:8:12", "8 to 64 in steps of 8"),
    ("0:8:8:8:8", "number 0"), ("8:8:72:8:8", "number 2 .* got '72'"), ("8:08:8:8:8", "got '08'")])
def test_wrong_texts(text, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode(text)
