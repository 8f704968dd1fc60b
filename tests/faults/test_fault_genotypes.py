"""Gate 10: a thousand hostile genotypes, and one sentence for each."""

import random
import re
import time

import pytest

from experiments import common, retrain
from jaxnas import genotypes
from jaxnas.genotypes import PUBLISHED, Encoded, GenotypeError

pytestmark = pytest.mark.gate(10)
GOOD = [genotypes.to_json(genotype).encode() for genotype in (
    *PUBLISHED.values(), *[Encoded("nats_size", (0, 7, 3, 1, 2), "8:64:32:16:24")] * 10)]
HOSTILE = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"NaN", b"-Infinity", b"1e999",
           b"true", b"null", b"9" * 5000, b"-1", b"1.0", b"\x00", b"\xff", b"\xf0\x9f\x98\x80",
           b'"\\ud800"', b'{"a":', b'"none"', b"99", b"[[[[[[[[[[", b"\n", b"__import__('os')"]


def mutate(rng: random.Random) -> bytes:
    """Damage a valid file at the level of bytes, of tokens or of values."""
    data = bytearray(rng.choice(GOOD))
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


def test_thousand_hostile_files_raise_only_genotype_errors(tmp_path, gate):
    rng, accepted, refused, slowest = random.Random(1), 0, 0, 0.0
    path = tmp_path / "genotype.json"
    while refused < 1000:
        path.write_bytes(mutate(rng))
        start = time.perf_counter()
        try:
            genotype = genotypes.load(path)
            accepted += 1
        except GenotypeError as error:
            refused += 1
            message = str(error)
            assert str(path)[:40] in message and "\n" not in message and len(message) < 700
            message.encode()
        else:  # damaged into another valid one
            assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.1
    assert accepted < 300  # the mutator really damages
    gate(f"{refused} refused in one sentence with the path, {accepted} damaged into another valid "
         f"one, slowest {1000 * slowest:.0f} ms")


def test_the_command_says_it_too(tmp_path, capsys, compilations, gate):
    rng, path, refused = random.Random(2), tmp_path / "genotype.json", 0
    compiled = len(compilations)
    while refused < 15:
        path.write_bytes(mutate(rng))
        try:
            genotypes.load(path)
            continue  # damaged into another valid one
        except GenotypeError:
            refused += 1
        assert common.main(retrain.Config, retrain.PRESETS, retrain.SMOKE, retrain.run, [
            "--smoke", "--genotype", str(path), "--output", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "genotype" in error
    assert len(compilations) == compiled and not (tmp_path / "run").exists()
    gate("experiments.retrain: 15 refused with exit 2, before compiling")
