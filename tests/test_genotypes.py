"""Genotypes: round trips, the published table, and the answer to hostile files."""

import copy
import json
import os
import random
import re
import time

import numpy as np
import pytest

from jaxnas import genotypes
from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge, Genotype, GenotypeError

GOOD = genotypes.to_json(PUBLISHED["DARTS_V2"])


def edited(change) -> str:
    value = json.loads(GOOD)
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_round_trip(name, tmp_path):
    genotype = PUBLISHED[name]
    assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
    assert genotypes.from_json(genotypes.to_json(genotype).encode()) == genotype
    assert genotypes.from_json_dict(genotypes.to_json_dict(genotype)) == genotype
    path = tmp_path / "cell.json"
    path.write_text(genotypes.to_json(genotype))
    assert genotypes.load(path) == genotypes.load(str(path)) == genotype
    assert genotypes.load(name.lower().replace("_", "-")) is genotype


def test_published_facts():
    """Hand-copied from the papers' repositories, not from the table under test."""
    assert PUBLISHED["DARTS_V2"].normal == CellGenotype(
        (Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1), Edge("sep_conv_3x3", 0),
         Edge("sep_conv_3x3", 1), Edge("sep_conv_3x3", 1), Edge("skip_connect", 0),
         Edge("skip_connect", 0), Edge("dil_conv_3x3", 2)), (2, 3, 4, 5))
    assert PUBLISHED["NASNET_A"].reduction.concat == (4, 5, 6)
    assert PUBLISHED["AMOEBANET_A"].reduction.edges[8] == Edge("conv_7x1_1x7", 0)
    assert {name: cells.normal.num_nodes for name, cells in PUBLISHED.items()
            if cells.normal.num_nodes != 4} == {"NASNET_A": 5, "AMOEBANET_A": 5}
    assert len(PUBLISHED) == len(set(PUBLISHED.values())) == 12


def test_random_genotypes_round_trip():
    rng = random.Random(0)

    def cell() -> CellGenotype:
        nodes = rng.randint(1, genotypes.MAX_NODES)
        edges = tuple(Edge(rng.choice(genotypes.OPERATION_NAMES[1:]), rng.randint(0, i + 1))
                      for i in range(nodes) for _ in range(2))
        return CellGenotype(edges, tuple(sorted(rng.sample(range(2, nodes + 2),
                                                           rng.randint(1, nodes)))))
    for _ in range(300):
        genotype = Genotype(cell(), cell())
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype


def test_validate_returns_python_types():
    cell = CellGenotype(tuple(("skip_connect", np.int64(i % 2)) for i in range(4)),
                        (np.int32(2), np.int32(3)))
    genotype = genotypes.validate(Genotype(cell, cell))
    assert type(genotype.normal.edges[0]) is Edge and type(genotype.normal.concat[0]) is int
    json.dumps(genotypes.to_json_dict(genotype))


@pytest.mark.parametrize("bad", [
    None, (), ((), ()), Genotype(None, None), Genotype(CellGenotype((), ()), CellGenotype((), ())),
    Genotype(CellGenotype(3, (2,)), CellGenotype(3, (2,))),
    Genotype(CellGenotype((Edge("skip_connect", 0),), (2,)), PUBLISHED["DARTS_V2"].normal),
    Genotype(CellGenotype((Edge("skip_connect", True), Edge("skip_connect", 0)), (2,)),
             PUBLISHED["DARTS_V2"].normal),
    Genotype(CellGenotype((7, 8), (2,)), PUBLISHED["DARTS_V2"].normal),
    Genotype(CellGenotype((Edge("skip_connect", 10 ** 5000), Edge("skip_connect", 0)), (2,)),
             PUBLISHED["DARTS_V2"].normal)])
def test_validate_refuses(bad):
    with pytest.raises(GenotypeError):
        genotypes.validate(bad)


def set_edge(operation, source):
    def change(value):
        value["normal"]["nodes"][2][1] = [operation, source]
    return change


def set_concat(concat):
    return lambda value: value["reduction"].update(concat=concat)


REJECTED = {
    "unknown operation": (edited(set_edge("conv", 0)), r"normal\.nodes\[2\]\[1\].*max_pool_3x3"),
    "none": (edited(set_edge("none", 0)), r"normal\.nodes\[2\]\[1\]\[0\].*\"?none"),
    "itself": (edited(set_edge("skip_connect", 4)), r"nodes\[2\]\[1\]\[1\].*\[0, 3\].*got 4"),
    "forward": (edited(set_edge("skip_connect", 5)), r"nodes\[2\]\[1\]\[1\].*\[0, 3\].*got 5"),
    "negative": (edited(set_edge("skip_connect", -1)), r"\[0, 3\].*got -1"),
    "true": (edited(set_edge("skip_connect", True)), "integer.*got true"),
    "float": (edited(set_edge("skip_connect", 1.0)), "integer.*got 1.0"),
    "NaN": (edited(set_edge("skip_connect", float("nan"))), "got NaN"),
    "Infinity": (edited(set_edge("skip_connect", float("inf"))), "got Infinity"),
    "1e999": (GOOD.replace('"dil_conv_3x3", 2', '"dil_conv_3x3", 1e999'), "got Infinity"),
    "long integer": (GOOD.replace('"dil_conv_3x3", 2', f'"dil_conv_3x3", {"9" * 5000}'),
                     r"nodes\[3\]\[1\].*5000 digits"),
    "long version": (GOOD.replace('"version": 1', f'"version": {"1" * 5000}'), "5000 digits"),
    "string source": (edited(set_edge("skip_connect", "1")), "got '1'"),
    "operation is a list": (edited(set_edge([], 1)), "a list of 0"),
    "three edges": (edited(lambda v: v["normal"]["nodes"][0].append(["skip_connect", 0])),
                    r"normal\.nodes\[0\].*2 edges"),
    "long edge": (edited(lambda v: v["normal"]["nodes"][0][0].append(0)), r"nodes\[0\]\[0\]"),
    "no nodes": (edited(lambda v: v["normal"].update(nodes=[])), "1 to 16 nodes"),
    "17 nodes": (edited(lambda v: v["normal"].update(nodes=[[["skip_connect", 0]] * 2] * 17)),
                 "1 to 16 nodes, got a list of 17"),
    "concat high": (edited(set_concat([2, 6])), r"reduction\.concat\[1\].*\[2, 5\].*got 6"),
    "concat low": (edited(set_concat([1, 2])), r"reduction\.concat\[0\].*got 1"),
    "concat twice": (edited(set_concat([2, 2])), "repeats"),
    "concat unsorted": (edited(set_concat([3, 2])), "ascend"),
    "concat empty": (edited(set_concat([])), r"reduction\.concat must be a list"),
    "concat null": (edited(set_concat(None)), "got null"),
    "wrong format": (edited(lambda v: v.update(format="onnx")), "format must be 'jaxnas.genotype'"),
    "wrong version": (edited(lambda v: v.update(version=2)), "version must be 1, got 2"),
    "version true": (edited(lambda v: v.update(version=True)), "version must be 1, got true"),
    "version float": (edited(lambda v: v.update(version=1.0)), "version must be 1, got 1.0"),
    "wrong space": (edited(lambda v: v.update(space="enas")), "space must be 'darts'"),
    "missing key": (edited(lambda v: v.pop("normal")), "lacks the key 'normal'"),
    "unknown key": (edited(lambda v: v.update(__class__=1)), "unknown key '__class__'"),
    "unknown cell key": (edited(lambda v: v["normal"].update(x=1)), "normal has the unknown key"),
    "cell is a list": (edited(lambda v: v.update(normal=[])), "normal must be an object"),
    "duplicate key": (GOOD[:-1] + ', "version": 1}', "'version' appears twice"),
    "deep": ("[" * 60_000, "nest at most 8 deep"),
    "deep objects": ('{"a":' * 10_000, "nest at most 8 deep"),
    "too long": ("[" * 100_000, "at most 65536 bytes"),
    "too many bytes": (b" " * 100_000, "at most 65536 bytes"),
    "empty": ("", "not JSON"),
    "byte order mark": ("\ufeff" + GOOD, "not JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "UTF-8 text, got byte 0xff"),
    "scalar": ("3", "top level must be an object"),
    "torn": (GOOD[:100], "not JSON"),
    "quotes": ('"' + '\\"' * 30_000, "not JSON"),
    "surrogate": ('{"\\ud800": 1}', "lacks the key"),
    "python": ("Genotype(normal=[])", "not JSON"),
    "not text": (None, "expected JSON text"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_with_reason(name):
    text, message = REJECTED[name]
    start = time.perf_counter()
    with pytest.raises(GenotypeError, match=message) as error:
        genotypes.from_json(text, where="file.json")
    assert time.perf_counter() - start < 0.1
    text = str(error.value)
    assert text.startswith("file.json: ") and "\n" not in text and len(text) < 600
    text.encode()  # printable anywhere


def test_values_not_from_json():
    """`from_json_dict` takes any Python object, also those that JSON cannot make."""
    cyclic = copy.deepcopy(json.loads(GOOD))
    cyclic["normal"]["nodes"] = cyclic["normal"]["nodes"][:1] + [cyclic["normal"]]
    huge = json.loads(GOOD)
    huge["normal"]["nodes"][0][0][1] = 10 ** 5000
    for value in (cyclic, huge, object(), {1: 2}, [cyclic], set()):
        with pytest.raises(GenotypeError):
            genotypes.from_json_dict(value)


def mutate(rng: random.Random) -> bytes:
    """Damage a valid file at the level of bytes, of tokens or of values."""
    data = bytearray(rng.choice(list(PUBLISHED_BYTES)))
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(6), rng.randrange(len(data) + 1)
        if kind == 0:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:at + rng.randint(1, 200)]
        elif kind == 2:
            token = rng.choice(HOSTILE)
            data[at:at] = (token * rng.choice([1, 1, 1, 50, 20_000]))[:80_000]
        elif kind == 3:
            data[at:at] = data[rng.randrange(len(data) + 1):][:300]
        else:
            digit = re.compile(rb"[0-9]").search(data, at)
            at = digit.start() if digit else 0
            data[at:at + 1] = rng.choice(HOSTILE)
    return bytes(data)


PUBLISHED_BYTES = [genotypes.to_json(genotype).encode() for genotype in PUBLISHED.values()]
HOSTILE = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"NaN", b"-Infinity", b"1e999",
           b"true", b"null", b"9" * 5000, b"-1", b"1.0", b"\x00", b"\xff", b"\xf0\x9f\x98\x80",
           b'"\\ud800"', b'{"a":', b'"none"', b"99", b"[[[[[[[[[[", b"\n", b"__import__('os')"]


def test_fuzzed_inputs_raise_only_genotype_errors():
    rng, accepted, slowest = random.Random(1), 0, 0.0
    for _ in range(1000):
        text = mutate(rng)
        start = time.perf_counter()
        try:
            genotype = genotypes.from_json(text)
            accepted += 1
            assert genotypes.validate(genotype) == genotype
        except GenotypeError as error:
            assert "\n" not in str(error)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.1
    assert accepted < 300  # the mutator really damages


def test_load_unknown_name_lists_names_and_paths():
    with pytest.raises(GenotypeError, match=r"\.json file or one of DARTS_V1.*PT_DARTS_CIFAR10"):
        genotypes.load("DARTS_V3")


def test_load_refuses_what_is_not_a_small_file(tmp_path):
    big, binary, pipe = tmp_path / "big.json", tmp_path / "binary.json", tmp_path / "pipe"
    big.write_bytes(b" " * 10_000_000)
    binary.write_bytes(bytes(range(256)))
    os.mkfifo(pipe)
    for path, message in ((tmp_path, "directory"), (tmp_path / "missing.json", "one of DARTS_V1"),
                          (big, "at most 65536 bytes"), (binary, "UTF-8"),
                          (pipe, "not a regular file"), ("a\0b", "cannot be opened"),
                          ("x" * 5000, "cannot be opened"), ("\ud800", "genotype"),
                          ("", "no published"), (3, "name or a path"), (b"x", "name or a path")):
        start = time.perf_counter()
        with pytest.raises(GenotypeError, match=message):
            genotypes.load(path)
        assert time.perf_counter() - start < 0.1
