"""Splits are disjoint, stratified, complete and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas import data
from jaxnas.data import splits as splits_module

DIGITS = data.load("digits")


def with_labels(labels):
    labels = np.asarray(labels, np.int32)
    return DIGITS._replace(train_labels=labels, num_classes=int(labels.max()) + 1)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(8, 60), min_size=2, max_size=6),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**31),
    share=st.floats(0.9, 1.0),
)
def test_search_split_properties(sizes, fraction, seed, share):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    total = len(labels)
    limit = round(share * total)
    split = data.split_search(
        with_labels(labels), alphas_fraction=fraction, seed=seed, limit=limit)
    both = np.concatenate(split)
    assert len(np.unique(both)) == len(both) == limit
    assert both.min() >= 0 and both.max() < total and both.dtype == np.int32
    assert len(split.alphas) == round(fraction * limit)
    for part, share_of_part in ((split.alphas, fraction), (split.weights, 1 - fraction)):
        counts = np.bincount(labels[part], minlength=len(sizes))
        # two roundings, each off by less than one image
        assert np.all(np.abs(counts - np.array(sizes) * limit / total * share_of_part) < 3)
        assert counts.min() >= 1


def test_search_split_of_digits_is_half_and_half_in_every_class():
    split = data.split_search(DIGITS)
    assert (len(split.weights), len(split.alphas)) == (719, 718)
    counts = [np.bincount(DIGITS.train_labels[part]) for part in split]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    again = data.split_search(DIGITS)
    np.testing.assert_array_equal(split.weights, again.weights)
    other = data.split_search(DIGITS, seed=1)
    assert not np.array_equal(split.weights, other.weights)
    # random order: the first images are not of one class, nor ascending
    assert len(np.unique(DIGITS.train_labels[split.weights[:30]])) > 5
    assert not np.all(np.diff(split.weights[:30]) > 0)


def test_validation_split():
    split = data.split_validation(DIGITS, fraction=0.1, seed=3)
    assert (len(split.train), len(split.valid)) == (1293, 144)
    assert not set(split.train) & set(split.valid)
    assert np.bincount(DIGITS.train_labels[split.valid]).min() >= 14


def test_stratified_quotas_by_largest_remainder():
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    drawn, rest = splits_module.stratified(labels, 4, np.random.default_rng(0))
    # shares 2.0, 1.2, 0.8
    assert np.bincount(labels[drawn]).tolist() == [2, 1, 1]
    assert sorted([*drawn, *rest]) == list(range(10))


@pytest.mark.parametrize("options, message", [
    ({"alphas_fraction": 0.0}, r"alphas_fraction must be in \(0, 1\), got 0.0"),
    ({"alphas_fraction": float("nan")}, "alphas_fraction"),
    ({"limit": 1}, r"limit must be in \[2, 1437\]"),
    ({"limit": 1438}, "got 1438"),
    ({"limit": 12}, "without class"),
    ({"alphas_fraction": 0.001}, "without class"),
])
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        data.split_search(DIGITS, **options)
