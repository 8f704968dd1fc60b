"""Official NATS-Bench files: what is read from four real records, and that nothing is executed.

`pickle` is imported here to write files, hostile ones among them; nothing is read with it.
"""

import bz2
import collections
import copyreg
import math
import os
import pickle
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from jaxnas import data
from jaxnas.data import nats_bench, safe_unpickler

FILES = Path(__file__).parent / "files"
TSS = FILES / "NATS-tss-v1_0-3ffb9-simple"
SSS = FILES / "NATS-sss-v1_0-50262-simple"


@pytest.fixture(scope="module")
def topology():
    return data.read_nats_bench(TSS)


@pytest.fixture(scope="module")
def size():
    return data.read_nats_bench(SSS)


def record(number):
    return safe_unpickler.loads(bz2.decompress((TSS / f"{number:06}.pickle.pbz2").read_bytes()))


# ---- real records --------------------------------------------------------------------------------


def test_topology_records(topology):
    assert topology.name == TSS.name and topology.ids.tolist() == [0, 11, 284]
    assert topology.num_choices == (5,) * 6
    assert topology.archs.tolist() == [[4, 2, 1, 2, 1, 1], [3, 3, 4, 0, 3, 4], [1, 1, 1, 0, 2, 0]]
    assert topology.default_metric == "cifar10_valid_accuracy_e12"
    assert topology.default_report_metric == "cifar10_test_accuracy_e200"
    first = {name: values[0] for name, values in topology.metrics.items()}
    assert math.isclose(first["cifar10_test_accuracy_e200"], (85.79 + 85.62 + 86.18) / 3)
    assert abs(first["cifar10_valid_accuracy_e12"] - (62.712 + 64.016) / 2) < 1e-6
    assert first["cifar10_params"] == 129_306
    assert math.isclose(first["cifar10_flops_m"], 15.64737)
    # 12 epochs of 7.221 s, and one of the validations of 2.549 s
    assert abs(first["cifar10_seconds_e12"] - (12 * 7.221093 + 2.548979)) < 1e-4
    assert abs(first["cifar10_latency_ms"] - 13.935976) < 1e-5
    assert not any(np.isnan(values).any() for values in topology.metrics.values())


def test_records_agree_with_the_embedded_table(topology):
    # Two independent ways from the authors' trainings to numbers: this proves what columns are.
    embedded = data.nasbench201()
    rows = topology.ids
    np.testing.assert_array_equal(topology.archs, embedded.archs[rows])
    shared = set(topology.metrics) & set(embedded.metrics)
    assert len(shared) == 13
    for metric in shared:
        np.testing.assert_allclose(
            topology.metric(metric), embedded.metric(metric)[rows], rtol=0, atol=1e-6,
            err_msg=metric)
    one_seed = [record(number)["200"]["all_results"]["cifar10-valid", 888]["eval_acc1es"][
        "ori-test@199"] for number in rows]
    np.testing.assert_allclose(
        embedded.metric("cifar10_half_test_accuracy_e200_s888")[rows], one_seed, atol=1e-6)


def test_size_record(size):
    assert size.ids.tolist() == [11] and size.num_choices == (8,) * 5
    assert size.archs.tolist() == [[0, 0, 0, 1, 3]]  # 8:8:8:16:32
    assert size.default_report_metric == "cifar10_test_accuracy_e90"
    assert size.metric("cifar10_params") == 49_202
    np.testing.assert_allclose(size.metric("cifar10_flops_m"), 6.84065, rtol=1e-12)
    epochs = {int(name.rpartition("_e")[2]) for name in size.metrics if "accuracy" in name}
    assert epochs == {1, 12, 90}
    assert abs(size.metric("cifar10_test_accuracy_e12")[0] - (80.11 + 79.23 + 80.1) / 3) < 1e-9
    assert size.metric("cifar10_test_accuracy_e90") == 85.77
    assert abs(size.metric("cifar10_seconds_e12")[0] - (12 * 2.939917 + 1.363302)) < 1e-4


def test_load_table_reads_folders(topology, tmp_path):
    table = data.load_table(str(TSS), metric="cifar100_valid_accuracy_e200")
    assert table.default_metric == "cifar100_valid_accuracy_e200"
    assert table.default_report_metric == topology.default_report_metric
    assert table.sha256 == topology.sha256
    shutil.copy(TSS / "000011.pickle.pbz2", tmp_path)
    (tmp_path / "meta.pickle.pbz2").write_bytes(b"never opened")
    part = data.load_table(tmp_path)
    assert part.ids.tolist() == [11] and part.sha256 != topology.sha256
    for metric, values in part.metrics.items():
        assert values[0] == topology.metric(metric)[1], metric


# ---- incomplete and mistaken records -------------------------------------------------------------


def write(folder, value, number=0):
    packed = value if isinstance(value, bytes) else pickle.dumps(value, protocol=4)
    (folder / f"{number:06}.pickle.pbz2").write_bytes(bz2.compress(packed))


def tiny(number=0, **changes):
    run = {"train_times": {e: 2.0 for e in range(12)}, "params": np.float64(0.25), "flop": 3.0,
           "latency": [np.float64(-1.0)], "eval_acc1es": {"x-valid@11": 50.0, "ori-test@11": 40.0},
           "eval_times": {f"x-valid@{e}": 1.0 + e for e in range(12)}}
    part = {"arch_index": number, "arch_str": "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
            "all_results": {("cifar10-valid", 777): run, ("cifar10", 777): run}} | changes
    return {"12": part, "200": {**part, "all_results": {("cifar10", 777): {
        "eval_acc1es": {"ori-test@199": 45.0}}}}}


def refused(folder, *words):
    with pytest.raises(data.TableError) as error:
        data.read_nats_bench(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message and len(message) < 500
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_what_a_record_lacks_is_nan(tmp_path):
    write(tmp_path, tiny())
    table = data.read_nats_bench(tmp_path)
    values = {name: column[0] for name, column in table.metrics.items()}
    assert values["cifar10_valid_accuracy_e12"] == 50.0
    assert values["cifar10_test_accuracy_e200"] == 45.0
    assert values["cifar10_seconds_e12"] == 12 * 2.0 + 6.5  # the mean validation, once
    assert values["cifar10_params"] == 250_000
    for name in ("cifar10_latency_ms", "cifar100_valid_accuracy_e12", "cifar10_seconds_e200",
                 "imagenet16_params"):
        assert np.isnan(values[name]), name


@pytest.mark.parametrize("text", [
    "", "|none~0|", "8:8:8:8", "8:8:8:8:12", "0:8:8:8:8", "72:8:8:8:8", "8:8:8:8:8\n", None, 3,
    "|none~0|+|none~0|none~1|+|none~0|none~1|conv~2|", "x" * 10_000,
    "|none~0|+|none~1|none~0|+|none~0|none~1|none~2|"])
def test_unknown_architectures_are_refused(tmp_path, text):
    write(tmp_path, tiny(arch_str=text))
    refused(tmp_path, "000000.pickle.pbz2", "neither a cell", "nor five widths")


@pytest.mark.parametrize("value", [
    tiny(number=1), {}, [], 7, "text", None, {"12": 3}, {"13": {}}, {12: {}},
    {"12": {"arch_index": None}}])
def test_other_values_are_refused(tmp_path, value):
    write(tmp_path, value)
    refused(tmp_path, "000000.pickle.pbz2 is not the record of NATS-Bench's architecture 0")


@pytest.mark.parametrize("results", [
    None, {}, {"cifar10": {}}, {("cifar10", 1): 3}, {("cifar10", 1): {"eval_acc1es": [1]}},
    {("cifar10", 1): {"eval_acc1es": {"ori-test@11": "80"}, "latency": 5, "params": None}}])
def test_results_of_other_types_do_not_count(tmp_path, results):
    write(tmp_path, tiny(all_results=results))
    refused(tmp_path, "cifar10_valid_accuracy_e12 has no finite value")


def test_folders_are_checked(tmp_path):
    refused(tmp_path / "none", "There is no folder")
    refused(tmp_path, "holds no file such as 000000.pickle.pbz2")
    write(tmp_path, tiny(0), 0)
    write(tmp_path, tiny(1), 1)
    refused(tmp_path, "twice, in rows 0 and 1")
    write(tmp_path, tiny(1, arch_str="8:16:24:32:64"), 1)
    refused(tmp_path, "000001.pickle.pbz2 is of another space")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "000000.pickle.pbz2"
    good = (TSS / path.name).read_bytes()
    for bad, message in ((good[:-100], "is cut off"), (b"", "is cut off"), (good[:9], "is cut off"),
                         (b"PK\3\4" + good, "is no bzip2 file, or damaged"),
                         (good[:5000] + bytes(9) + good[5009:], "is no bzip2 file, or damaged")):
        path.write_bytes(bad)
        refused(tmp_path, path.name, message)


def test_large_files_are_refused(tmp_path, monkeypatch):
    bomb = tmp_path / "000000.pickle.pbz2"
    bomb.write_bytes(bz2.compress(bytes(17 << 20)))  # 17 MiB of zeros in some 50 bytes
    assert bomb.stat().st_size < 100
    refused(tmp_path, "unpacks to more than 16777216 bytes")
    monkeypatch.setattr(nats_bench, "MAX_RECORD_BYTES", 10)
    refused(tmp_path, "too large")


# ---- plain data ----------------------------------------------------------------------------------

PLAIN = {
    "none": None, "flags": [True, False], "numbers": [0, 255, 256, 65_536, -1, -(1 << 31), 1 << 40],
    "floats": [0.1, -1e300, math.inf], "text": ["", "é" * 300], "bytes": [b"", bytes(300)],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], ("cifar10", 777): {3: {}, -5: []},
    "twice": [[1]] * 3, "long": list(range(3_000)),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_written(protocol):
    value = {key: item for key, item in PLAIN.items() if key != "bytes" or protocol > 2}
    assert safe_unpickler.loads(pickle.dumps(value, protocol)) == value
    assert safe_unpickler.loads(pickle.dumps(collections.OrderedDict(), protocol)) == {}


@pytest.mark.parametrize("code", sorted(safe_unpickler.SCALAR_FORMATS))
@pytest.mark.parametrize("order", "<>")
def test_numpy_scalars_are_read_as_numbers(code, order):
    stored = np.frombuffer(bytes(range(1, 9)), f"{order}{code}")[0] if code != "b1" else np.True_
    value = safe_unpickler.loads(pickle.dumps([stored, stored], 4))
    assert value == [stored.item()] * 2 and type(value[0]) is type(stored.item())


def scalar(kind, order, contents):
    """Write the pickle of a big-endian scalar by hand: NumPy swaps bytes before it pickles."""
    kind = b"cnumpy\ndtype\nX" + struct.pack("<I", len(kind)) + kind.encode() + b"\x85R"
    kind += b"(K\x03X\x01\0\0\0" + order.encode() + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    return (b"\x80\x03cnumpy.core.multiarray\nscalar\n" + kind + b"C" + bytes([len(contents)])
            + contents + b"\x86R.")


def test_byte_orders():
    assert safe_unpickler.loads(scalar("f8", ">", struct.pack(">d", 1.5))) == 1.5
    assert safe_unpickler.loads(scalar("i4", "<", struct.pack("<i", -7))) == -7
    assert safe_unpickler.loads(scalar("u1", "|", b"\x09")) == 9


# ---- hostile data --------------------------------------------------------------------------------


class Calls:
    """Pickled as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.parts


class Persistent(pickle.Pickler):
    def persistent_id(self, value):
        return "x" if value == "persistent" else None


class Odd:
    pass


def persistent(path):
    with open(path, "wb") as file:
        Persistent(file, protocol=4).dump(["persistent"])
    return path.read_bytes()


def extension():
    copyreg.add_extension(__name__, "Odd", 0xF1)
    try:
        return pickle.dumps(Odd, 4)
    finally:
        copyreg.remove_extension(__name__, "Odd", 0xF1)


def test_nothing_is_executed(tmp_path, monkeypatch):
    marker = tmp_path / "executed"
    command = f"touch {marker}"
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(pickle, "whichmodule", lambda thing, name: __name__)
    short = lambda text: b"\x8c" + bytes([len(text)]) + text.encode()
    named = lambda module, name: short(module) + short(name) + b"\x93"
    hostile = {
        "os.system": pickle.dumps(Calls(os.system, command), 4),
        "posix.system": pickle.dumps({"12": Calls(os.system, command)}, 2),
        "builtins.eval": pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w')"), 4),
        "builtins.exec": pickle.dumps([1, Calls(exec, "import os")], 5),
        "os.path.join": b"\x80\x04" + named("os", "path.join") + b").",
        "collections.OrderedDict.fromkeys":
            b"\x80\x04" + named("collections", "OrderedDict.fromkeys") + b")R.",
        "numpy.dtype.__class__": b"\x80\x04" + named("numpy", "dtype.__class__") + b").",
        "numpy.load": b"\x80\x04" + named("numpy", "load") + short("x") + b"\x85R.",
        "text protocol": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "object arrays": pickle.dumps(np.array([Calls(os.system, command)], object), 4),
        "object dtype": pickle.dumps(np.dtype(object), 4),
        "structured dtype": pickle.dumps(np.dtype([("a", "f8")]), 4),
        "object scalar": scalar("O8", "|", bytes(8)),
        "string scalar": scalar("U1", "<", b"abcd"),
        "short scalar": scalar("f8", "<", bytes(4)),
        "long scalar": scalar("f8", "<", bytes(16)),
        "odd byte order": scalar("f8", "x", bytes(8)),
        "persistent id": persistent(tmp_path / "persistent"),
        "text persistent id": b"Pid\n.",
        "extension code": extension(),
        "extension code by hand": b"\x80\x04\x82\xf1.",
        "state of an OrderedDict": b"\x80\x04" + named("collections", "OrderedDict")
            + b")R}" + short("update") + b"K\x01sb.",
        "arguments of an OrderedDict": pickle.dumps(Calls(collections.OrderedDict, [(1, 2)]), 4),
        "state of a list": b"\x80\x04]}b.",
        "call of text": b"\x80\x04" + short("os.system") + b")R.",
        "call with a list": b"\x80\x04" + named("collections", "OrderedDict") + b"]R.",
        "a name that is a number": b"\x80\x04K\x01" + short("system") + b"\x93.",
        "new object": b"\x80\x04" + named("collections", "OrderedDict") + b")\x81.",
        "a class": pickle.dumps(Odd, 4),
        "an instance": pickle.dumps(Path("x"), 4),
        "buffers": pickle.dumps(bytearray(3), 5),
    }
    for name, contents in hostile.items():
        with pytest.raises(safe_unpickler.PickleRefused) as error:
            safe_unpickler.loads(contents)
        if name.startswith(("builtins", "posix", "numpy", "collections", "os.path")):
            assert repr(name) in str(error.value)
        write(folder, contents)
        refused(folder, "000000.pickle.pbz2 is not a record of NATS-Bench: ")
        assert not marker.exists(), name


@pytest.mark.parametrize("contents", [
    b"", b".", b"\x80", b"\x80\x04", b"\x80\x04N", b"N.N", b"NN.", b"(N.", b"t.", b"a.", b"]a.",
    b"e.", b"]N(e.", b"(e.", b"s.", b"}Ns.", b"}(Nu.", b"}(NNu.", b"]NNs.", b"Na.", b"NNa.",
    b"\x85.", b"N\x86.", b"h\x00.", b"j\xff\xff\xff\xff.", b"q\x00.", b"\x94.", b"R.", b"NR.",
    b"b.", b"G\x00.", b"K", b"M\x00", b"J\x00\x00", b"\x8c", b"\x8c\x05ab.",
    b"\x8c\x01\xff.", b"X\x01",
    b"X\xff\xff\xff\xffabc.", b"B\xff\xff\xff\x7fabc.", b"C\x09a.", b"\x8a\xff\x01.",
    b"\x8a\x09" + bytes(9) + b".", b"\x95" + bytes(3), b"cos", b"c\n\n.", b"c" + b"o" * 999 + b"\n",
    b"c\xff\nx\n.", b"\x93.", b"N\x93.", b"}GAAAAAAAANs.", b"}]Ns.", b"}]]\x86Ns.", b"}N\x88s.",
    b"}\x8a\x08AAAAAAAANs.", b"}(KKKKKKtNs.", b"}X\xff\x00\x00\x00" + b"k" * 255 + b"Ns.",
    b"I1\n.", b"S'a'\n.", b"F1\n.", b"L1L\n.", b"N0.", b"N2.", b"(1.", b"(d.", b"(l.", b"(o."])
def test_damaged_and_unusual_pickles_are_refused(contents):
    with pytest.raises(safe_unpickler.PickleRefused) as error:
        safe_unpickler.loads(contents)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_every_cut_and_many_changed_bytes_are_survived():
    whole = pickle.dumps(tiny(), 4)
    for end in range(len(whole)):
        with pytest.raises(safe_unpickler.PickleRefused):
            safe_unpickler.loads(whole[:end])
    rng = np.random.default_rng(0)
    for _ in range(3_000):
        changed = bytearray(whole)
        for position in rng.integers(len(whole), size=3):
            changed[position] = rng.integers(256)
        try:
            safe_unpickler.loads(bytes(changed))
        except safe_unpickler.PickleRefused:
            pass


def test_costs_of_hostile_pickles_are_bounded():
    start = time.perf_counter()
    deep = safe_unpickler.loads(b"]" * 200_000 + b"a" * 199_999 + b".")
    assert deep[0][0][0]
    del deep  # and its end does not recurse either
    pair = b"K\x01K\x01\x86"
    with pytest.raises(safe_unpickler.PickleRefused, match="key"):
        safe_unpickler.loads(b"}" + pair + pair + b"\x86Ns.")  # hashing would recurse
    with pytest.raises(safe_unpickler.PickleRefused, match="more than 500000 instructions"):
        safe_unpickler.loads(b"}" * 1_000_000)
    with pytest.raises(safe_unpickler.PickleRefused, match="does not end near"):
        safe_unpickler.loads(b"c" + b"x" * 1_000_000)
    twice = b"".join(b"](h%ch%ce\x94" % (k, k) for k in range(100))
    lists = safe_unpickler.loads(b"(]\x94" + twice + b"t.")
    assert len(lists) == 101  # the last has 2 ** 100 leaves, and nobody walks them
    cycle = safe_unpickler.loads(b"]\x94h\x00a.")
    assert cycle[0] is cycle
    assert time.perf_counter() - start < 10
