"""Genotypes: round trips, the published table, and the answer to hostile files."""

import copy
import json
import os
import random
import time

import numpy as np
import pytest

from jaxnas import genotypes
from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge, Encoded, Genotype, GenotypeError

GOOD = genotypes.to_json(PUBLISHED["DARTS_V2"])
NASNET = genotypes.to_json(PUBLISHED["NASNET_A"])
ENCODED = Encoded("nats_size", (0, 7, 3, 1, 2), "8:64:32:16:24")
GOOD_ENCODED = genotypes.to_json(ENCODED)


def edited(change, good=GOOD) -> str:
    value = json.loads(good)
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
    assert PUBLISHED["NASNET_A_DARTS"].reduction.concat == (4, 5, 6)
    assert PUBLISHED["AMOEBANET_A_DARTS"].reduction.edges[8] == Edge("conv_7x1_1x7", 0)
    assert {name for name, cells in PUBLISHED.items() if cells.normal.num_nodes != 4} == {
        "NASNET_A_DARTS", "AMOEBANET_A_DARTS", *RELEASED, "PNASNET_5", "ENAS_MICRO"}
    assert {name: cells.space for name, cells in PUBLISHED.items() if cells.space != "darts"} == {
        "NASNET_A": "nasnet", "PNASNET_5": "pnas", "ENAS_MICRO": "enas_micro",
        **{f"AMOEBANET_{letter}": "amoebanet" for letter in "ABCD"}}
    assert len(PUBLISHED) == len(set(PUBLISHED.values())) == 19


# As the released code has them: operations and hidden states of the five blocks, and which of the
# seven states are *not* concatenated. There 0 is the output of cell k-1 and 1 that of k-2.
RELEASED = {
    "NASNET_A": (
        "sep5 sep3 sep5 sep3 avg3 none avg3 avg3 sep3 none", "0 1 1 1 0 1 1 1 0 0", "1000000",
        "sep5 sep7 max3 sep7 avg3 sep5 none avg3 sep3 max3", "0 1 0 1 0 1 3 2 2 0", "1110000"),
    "AMOEBANET_A": (
        "avg3 max3 sep3 none none avg3 sep3 sep5 avg3 sep3", "0 0 1 1 0 1 0 2 5 0", "1010010",
        "sep3 avg3 max3 sep7 max3 max3 sep3 1x7 avg3 sep7", "1 0 0 2 1 0 4 0 1 0", "1100000"),
    "AMOEBANET_B": (
        "1x1 max3 none sep3 1x1 sep3 1x1 none avg3 1x1", "1 1 1 0 1 0 2 2 1 5", "0110010",
        "max2 max3 none 3x3 dil5 max3 none sep3 avg3 1x1", "0 0 2 1 2 2 3 1 4 3", "1111100"),
    "AMOEBANET_C": (
        "avg3 sep3 none sep3 avg3 sep3 none sep3 avg3 sep3", "0 0 0 0 2 1 0 1 3 0", "1001000",
        "max3 max3 sep7 sep3 sep7 max3 sep5 sep5 max3 sep3", "0 0 2 0 0 1 4 4 1 1", "0100000"),
    "AMOEBANET_D": (
        "1x1 max3 none 1x7 1x1 1x7 max3 none avg3 1x1", "1 1 1 0 0 0 2 2 1 5", "0110010",
        "max2 max3 none 3x3 1x7 max3 none max2 avg3 1x1", "0 0 2 1 2 2 3 1 2 3", "1111000"),
}
RELEASED_NAMES = {
    "none": "skip_connect", "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5", "sep7": "sep_conv_7x7",
    "avg3": "avg_pool_3x3", "max3": "max_pool_3x3", "max2": "max_pool_2x2", "1x1": "conv_1x1",
    "3x3": "conv_3x3", "1x7": "conv_1x7_7x1", "dil5": "dil_sep_conv_5x5"}
OUR_STATE = {0: 1, 1: 0}


def released_cell(operations, sources, used) -> CellGenotype:
    edges = tuple(Edge(RELEASED_NAMES[name], OUR_STATE.get(int(source), int(source)))
                  for name, source in zip(operations.split(), sources.split(), strict=True))
    return CellGenotype(edges, tuple(sorted(
        OUR_STATE.get(state, state) for state, flag in enumerate(used) if flag == "0")))


@pytest.mark.parametrize("name", RELEASED)
def test_released_arrays(name):
    arrays = RELEASED[name]
    space = name.split("_")[0].lower()
    assert PUBLISHED[name] == Genotype(released_cell(*arrays[:3]), released_cell(*arrays[3:]),
                                       space)


def test_pnasnet_5_in_the_order_of_its_code():
    cell = released_cell("sep5 max3 sep7 max3 sep5 sep3 sep3 max3 sep3 none",
                         "1 1 0 0 0 0 4 0 1 0", "1100000")
    assert PUBLISHED["PNASNET_5"] == Genotype(cell, cell, "pnas")


def test_operations_of_the_spaces():
    assert set().union(*genotypes.CELL_OPERATIONS.values()) == set(
        genotypes.OPERATION_NAMES) - {"none"}
    assert [len(names) for names in genotypes.CELL_OPERATIONS.values()] == [9, 13, 12, 9, 5]
    for names in genotypes.CELL_OPERATIONS.values():
        assert len(set(names)) == len(names)


def test_random_genotypes_round_trip():
    rng = random.Random(0)

    def cell(space) -> CellGenotype:
        nodes = rng.randint(1, genotypes.MAX_NODES)
        edges = tuple(Edge(rng.choice(genotypes.CELL_OPERATIONS[space]), rng.randint(0, i + 1))
                      for i in range(nodes) for _ in range(2))
        states = range(2 if space in ("darts", "pnas") else 0, nodes + 2)
        return CellGenotype(edges, tuple(sorted(rng.sample(states, rng.randint(1, len(states))))))

    for _ in range(300):
        space = rng.choice(list(genotypes.CELL_OPERATIONS))
        genotype = Genotype(cell(space), cell(space), space)
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype


def test_encoded_round_trip(tmp_path):
    value = json.loads(GOOD_ENCODED)
    assert value == {"format": "jaxnas.genotype", "version": 1, "space": "nats_size",
                     "arch": [0, 7, 3, 1, 2], "architecture": "8:64:32:16:24"}
    assert genotypes.from_json(GOOD_ENCODED) == ENCODED
    path = tmp_path / "genotype.json"
    path.write_text(GOOD_ENCODED)
    assert genotypes.load(path) == ENCODED
    with pytest.raises(GenotypeError, match="expected two cells.*'nats_size'"):
        genotypes.load_cells(path)
    path.write_text(NASNET)
    assert genotypes.load_cells(path) == genotypes.load_cells("nasnet-a") == PUBLISHED["NASNET_A"]
    numpy = Encoded("a", (np.int32(3), np.int64(4)), "two\nlines")
    assert genotypes.from_json(genotypes.to_json(numpy)) == Encoded("a", (3, 4), "two\nlines")
    rng = random.Random(0)
    for _ in range(300):
        arch = tuple(rng.randrange(65536) for _ in range(rng.randint(1, 300)))
        text = "".join(rng.choice('abc"\\\n{[äЖ漢😀 ') for _ in range(rng.randint(1, 300)))
        encoded = Encoded(rng.choice(["x", "My-space.2"]), arch, text)
        assert genotypes.from_json(genotypes.to_json(encoded)) == encoded


@pytest.mark.parametrize("bad, message", [
    (ENCODED._replace(space="darts"), "written as its two cells"),
    (ENCODED._replace(space="a b"), "space must be 1 to 64"),
    (ENCODED._replace(space=None), "space must be 1 to 64"),
    (ENCODED._replace(arch=()), "1 to 4096 decisions"), (ENCODED._replace(arch=3), "decisions"),
    (ENCODED._replace(arch=(1, True)), r"arch\[1\]"), (ENCODED._replace(arch=(-1,)), "got -1"),
    (ENCODED._replace(architecture=""), "printable"), (ENCODED._replace(architecture=7), "got 7"),
    (ENCODED._replace(architecture="\ud800"), "printable"),
    (PUBLISHED["NASNET_A"]._replace(space="darts"), "concat"),
    (PUBLISHED["AMOEBANET_B"]._replace(space="nasnet"), "max_pool_2x2"),
    (PUBLISHED["DARTS_V2"]._replace(space=["darts"]), "space of two cells")])
def test_writing_refuses(bad, message):
    with pytest.raises(GenotypeError, match=message):
        genotypes.to_json(bad)


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
    Genotype(CellGenotype((7, 8), (2,)), PUBLISHED["DARTS_V2"].normal), ENCODED,
    PUBLISHED["DARTS_V2"][:2], Genotype("normal", "reduction", "space"),
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
    "wrong space": (edited(lambda v: v.update(space="enas")), "must be one of darts, .*got 'enas'"),
    "space is a list": (edited(lambda v: v.update(space=["darts"])), "got a list of 1"),
    "another space's operation": (edited(lambda v: v.update(space="nasnet"), GOOD).replace(
        "dil_conv_3x3", "dil_conv_5x5"), r"\[0\] must be one of skip_connect.*got 'dil_conv_5x5'"),
    "input concatenated": (edited(lambda v: v.update(space="darts"), NASNET),
                           r"normal\.concat\[0\]|1 to 5 states"),
    "too much concatenated": (edited(lambda v: v["normal"].update(concat=[0] * 8), NASNET),
                              r"1 to 7 states, got a list of 8"),
    "both forms": (edited(lambda v: v.update(arch=[1], architecture="1")),
                   "unknown key 'normal'"),
    "cells encoded": (edited(lambda v: v.update(space="darts"), GOOD_ENCODED), "two cells"),
    "no decisions": (edited(lambda v: v.update(arch=[]), GOOD_ENCODED), "1 to 4096 decisions"),
    "many decisions": (edited(lambda v: v.update(arch=[0] * 4097), GOOD_ENCODED), "list of 4097"),
    "decision high": (edited(lambda v: v.update(arch=[65536]), GOOD_ENCODED), r"\[0, 65535\]"),
    "decision low": (edited(lambda v: v.update(arch=[0, -1]), GOOD_ENCODED), r"arch\[1\].*got -1"),
    "decision float": (edited(lambda v: v.update(arch=[0.0]), GOOD_ENCODED), r"arch\[0\].*got 0.0"),
    "decision true": (edited(lambda v: v.update(arch=[True]), GOOD_ENCODED), "got true"),
    "decision nested": (edited(lambda v: v.update(arch=[[0]]), GOOD_ENCODED), "a list of 1"),
    "arch is text": (edited(lambda v: v.update(arch="0 1"), GOOD_ENCODED), "got '0 1'"),
    "text missing": (edited(lambda v: v.pop("architecture"), GOOD_ENCODED),
                     "lacks the key 'architecture'"),
    "text empty": (edited(lambda v: v.update(architecture=""), GOOD_ENCODED), "printable"),
    "text long": (edited(lambda v: v.update(architecture="x" * 40_000), GOOD_ENCODED), "32768"),
    "text control": (edited(lambda v: v.update(architecture="\x1b[2J"), GOOD_ENCODED), "printable"),
    "text surrogate": (GOOD_ENCODED.replace("8:64", "\\ud800"), "printable"),
    "text number": (edited(lambda v: v.update(architecture=1), GOOD_ENCODED), "got 1"),
    "space path": (edited(lambda v: v.update(space="../x"), GOOD_ENCODED), "got '../x'"),
    "space long": (edited(lambda v: v.update(space="x" * 65), GOOD_ENCODED), "1 to 64"),
    "space line": (edited(lambda v: v.update(space="x\n"), GOOD_ENCODED), "1 to 64"),
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


def test_rules_of_a_space_of_ones_own():
    rules = genotypes.cell_rules("mine", ("blur",), concat_inputs=False)
    assert rules == ("mine", (*genotypes.OPERATION_NAMES[1:], "blur"), False)
    for space, names in genotypes.CELL_OPERATIONS.items():
        assert genotypes.cell_rules(space, ("blur",)).operations == (*names, "blur")
    for name, (text, _) in REJECTED.items():
        with pytest.raises(GenotypeError) as error:  # the space is another one, whatever else is
            genotypes.from_json(text, "file.json", rules)
        assert len(str(error.value)) < 600 and "\n" not in str(error.value), name
    with pytest.raises(GenotypeError, match=r"concat\[0\].*\[2, 5\]"):
        text = GOOD.replace('"darts"', '"mine"').replace("[2, 3", "[0, 3")
        genotypes.from_json(text, rules=rules)


@pytest.mark.parametrize("space, own, concat, message", [
    ("a b", (), None, "name of a space"), (None, (), None, "name of a space"),
    ("mine", ("a\n",), None, "name of an own operation"), ("mine", (1,), None, "got 1"),
    ("mine", ("none",), None, "'none' is taken"), ("mine", ("a", "a"), None, "'a' is taken"),
    ("pnas", (), True, "concat_inputs must be False")])
def test_rules_refuse(space, own, concat, message):
    with pytest.raises(GenotypeError, match=message):
        genotypes.cell_rules(space, own, concat_inputs=concat)
