"""Texts: what is embedded, what files give, vocabularies, windows; one sentence for the rest."""

import gzip
import importlib.resources
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data
from jaxnas.data.text import Vocabulary

PENN = {"train": "a b a\nc <unk> a", "valid": "a d\n", "test": "b\nb c\n"}


def folder(path, parts=PENN, name="ptb.{}.txt"):
    for part, text in parts.items():
        (path / name.format(part)).write_text(text, encoding="utf-8")
    return str(path)


def test_embedded_text_and_its_licence():
    text = data.load_text("shakespeare")
    parts = (text.train, text.valid, text.test)
    assert sum(map(len, parts)) == 499_950 and text.train.dtype == np.int32
    assert len(text.valid) == pytest.approx(50_000, rel=0.02) and text.name == "shakespeare"
    assert text.unknown == (0, text.unknown[1], text.unknown[2])
    assert text.vocabulary.decode(text.train[:14]) == "First Citizen:"
    assert max(part.max() for part in parts) < len(text.vocabulary.symbols) <= 64
    files = importlib.resources.files("jaxnas.data") / "files"
    raw = gzip.decompress((files / "tiny_shakespeare.txt.gz").read_bytes()).decode("ascii")
    joined = "".join(text.vocabulary.decode(part) for part in parts)
    same = sum(a == b for a, b in zip(joined, raw))
    assert len(raw) == 499_950 and same >= 499_950 - 5 * sum(text.unknown)
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert "tiny_shakespeare.txt.gz" in notice
    assert "public domain" in (files / "tiny_shakespeare.LICENSE.txt").read_text(encoding="utf-8")


def test_a_folder_of_words(tmp_path):
    text = data.load_text(folder(tmp_path), level="words")
    # By frequency, then alphabetically; d is unknown, and the training part knows <unk>.
    assert text.vocabulary.symbols == ("a", "<eos>", "<unk>", "b", "c")
    np.testing.assert_array_equal(text.train, [0, 3, 0, 1, 4, 2, 0, 1])
    np.testing.assert_array_equal(text.valid, [0, 2, 1])
    np.testing.assert_array_equal(text.test, [3, 1, 3, 4, 1])
    assert text.unknown == (0, 1, 0)
    assert text.vocabulary.decode(text.test) == "b\nb c\n"
    assert text.sha256 == data.load_text(str(tmp_path), level="words").sha256


def test_rare_words_become_unknown(tmp_path):
    text = data.load_text(folder(tmp_path), level="words", min_count=2)
    assert text.vocabulary.symbols == ("a", "<eos>", "<unk>")
    assert text.unknown == (2, 1, 3)  # b and c; d; b, b and c. What says <unk> is not counted


def test_characters_of_a_file_and_its_cut(tmp_path):
    file = tmp_path / "my.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\u00e4bc\r\n".encode() * 100)
    text = data.load_text(str(file))
    assert text.vocabulary.symbols == ("\n", "b", "c", "\u00e4") and text.name == "my"
    assert [len(part) for part in (text.train, text.valid, text.test)] == [324, 40, 36]
    assert text.vocabulary.decode(text.valid[:4]) == "\u00e4bc\n"


def test_vocabularies_are_saved_and_used_again(tmp_path):
    text = data.load_text(folder(tmp_path), level="words")
    path = tmp_path / "vocabulary.json"
    text.vocabulary.save(path)
    restored = Vocabulary.restore(path)
    assert restored == text.vocabulary
    other = tmp_path / "other"
    other.mkdir()
    again = data.load_text(folder(other, {**PENN, "train": "d d c"}), level="words",
                           vocabulary=restored)
    np.testing.assert_array_equal(again.train, [2, 2, 4, 1])
    np.testing.assert_array_equal(restored.encode("c a"), [4, 0, 1])


@pytest.mark.parametrize("text, message", [
    ("nonsense", "cannot be read as JSON"), ("[1]", "must hold format"),
    (json.dumps({"format": "jaxnas.vocabulary", "version": 1, "level": "words",
                 "symbols": ["a", "a"]}), "distinct symbols"),
    (json.dumps({"format": "jaxnas.vocabulary", "version": 1, "level": "words",
                 "symbols": [1]}), "distinct symbols"),
    ("[" * 100_000, "cannot be read as JSON")])
def test_wrong_vocabularies_are_named(text, message, tmp_path):
    path = tmp_path / "vocabulary.json"
    with pytest.raises(data.DatasetError, match="There is no vocabulary"):
        Vocabulary.restore(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(data.DatasetError, match=message):
        Vocabulary.restore(path)


@pytest.mark.parametrize("contents, message", [
    (b"", "is empty"), (b" \n ", "is empty"), (b"abc\xff" * 9, "not UTF-8: byte 3 is 0xff"),
    (b"a\nb\nc", "the valid part of .* must hold 2 characters")])
def test_wrong_files_are_named(contents, message, tmp_path):
    file = tmp_path / "my.txt"
    file.write_bytes(contents)
    with pytest.raises(data.DatasetError, match=message):
        data.load_text(str(file))


@pytest.mark.parametrize("options, message", [
    ({"level": "bytes"}, "level must be one of"), ({"min_count": 0}, "min_count"),
    ({"fractions": (0.5, 0.5)}, "fractions"), ({"fractions": (0.0, 0.5)}, "fractions"),
    ({"vocabulary": Vocabulary("words", ("a",))}, "level must be that of the vocabulary"),
    ({"vocabulary": Vocabulary("characters", ("a", "b"))}, "the vocabulary has neither")])
def test_wrong_options_are_named(options, message):
    with pytest.raises(data.DatasetError, match=message):
        data.load_text("shakespeare", **options)


def test_missing_texts_and_parts_are_named(tmp_path):
    with pytest.raises(data.DatasetError, match="There is no text 'nowhere.txt'"):
        data.load_text("nowhere.txt")
    with pytest.raises(data.DatasetError, match="one file whose name has 'train' in it, found non"):
        data.load_text(str(tmp_path))
    folder(tmp_path)
    (tmp_path / "train.copy").write_text("x", encoding="utf-8")
    with pytest.raises(data.DatasetError, match="'train' in it, found ptb.train.txt, train.copy"):
        data.load_text(str(tmp_path))


# ---- windows -------------------------------------------------------------------------------------


def test_columns_are_contiguous():
    found = data.columns(np.arange(11, dtype=np.int32), 3)
    np.testing.assert_array_equal(found, [[0, 3, 6], [1, 4, 7], [2, 5, 8]])
    with pytest.raises(ValueError, match="11 tokens is too short for batch_size=3 and bptt=3"):
        data.columns(np.arange(11), 3, 3)
    with pytest.raises(ValueError, match="batch_size and bptt must be 1"):
        data.columns(np.arange(11), 0)


@pytest.mark.parametrize("options", [
    {}, {"seed": 0}, {"seed": (0, 1), "deviation": 5.0}, {"seed": 1, "half_probability": 1.0}])
def test_windows_cover_every_target_once(options):
    rows, bptt = 2000, 35
    found = data.windows(rows, bptt, **options)
    np.testing.assert_array_equal(found.starts, np.append(0, np.cumsum(found.lengths)[:-1]))
    assert found.lengths.sum() == rows - 1
    largest = data.largest_length(bptt, options.get("deviation", 0.0))
    most = data.most_windows(rows, bptt, options.get("deviation", 0.0))
    assert len(found.starts) <= most and (options.get("half_probability") != 1.0
                                          or len(found.starts) == most)
    assert found.lengths.min() >= 1 and found.lengths.max() <= largest
    again = data.windows(rows, bptt, **options)
    np.testing.assert_array_equal(found.lengths, again.lengths)
    if not options:
        assert set(found.lengths[:-1]) == {35}
    if "deviation" in options:
        assert found.lengths[:-1].min() >= 5 and 3 < found.lengths[:-1].std() < 9


def test_half_windows_have_their_share():
    lengths = data.windows(400_000, 36, seed=3).lengths[:-1]
    assert set(lengths) == {18, 36} and 0.04 < np.mean(lengths == 18) < 0.06


def test_one_program_takes_windows_of_any_length():
    text = jnp.asarray(data.columns(np.arange(40, dtype=np.int32), 2))  # [20, 2]
    take = jax.jit(chex.assert_max_traces(data.take_window, n=1), static_argnums=2)
    for start, length in zip(*data.windows(20, 6, seed=0, deviation=5.0)):
        tokens, targets = take(text, start, 26)
        assert tokens.shape == targets.shape == (26, 2)
        np.testing.assert_array_equal(tokens[:length], text[start : start + length])
        np.testing.assert_array_equal(targets[:length], text[start + 1 : start + length + 1])


def test_chunks_are_filled_up():
    found = list(data.chunks(data.windows(10, 2), 2))  # 5 windows
    assert len(found) == 3
    np.testing.assert_array_equal(found[-1].lengths, [1, 0])
    with pytest.raises(ValueError, match="size must be 1"):
        next(data.chunks(found[0], 0))


@pytest.mark.parametrize("options", [{"rows": 1}, {"bptt": 0}, {"half_probability": 2.0},
                                     {"deviation": -1.0}])
def test_wrong_windows_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        data.windows(**{"rows": 10, "bptt": 2, **options})
