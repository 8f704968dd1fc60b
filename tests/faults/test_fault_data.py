"""Gate 11: damaged archives and folders are named, and no network is said at once."""

import gzip
import hashlib
import io
import random
import socket
import struct
import tarfile
import time

import numpy as np
import pytest

from jaxnas import data
from jaxnas.data import DatasetError, sources

pytestmark = pytest.mark.gate(11)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the layout of CIFAR-10, its digest in the place of the published one."""
    cifar, draw = sources.CIFAR["cifar10"], np.random.default_rng(0)
    path = tmp_path / cifar.archive
    with tarfile.open(path, "w:gz") as file:
        def add(name, contents):
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            file.addfile(info, io.BytesIO(contents))

        for name in (*cifar.train, *cifar.test):
            block = draw.integers(0, 256, (20, 3073), dtype=np.uint8)
            block[:, 0] = np.arange(20) % 10
            add(name, block.tobytes())
        add(cifar.class_names, "\n".join(f"class{i}" for i in range(10)).encode())
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.CIFAR, "cifar10", cifar._replace(md5=digest))
    return path


def damaged(good: bytes, draw: random.Random) -> bytes:
    """Flip one bit, or cut it short."""
    if draw.random() < 0.5:
        return good[:draw.randrange(len(good))]
    bad = bytearray(good)
    bad[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
    return bytes(bad)


def test_damaged_archive(archive, tmp_path, gate):
    good, draw, slowest = archive.read_bytes(), random.Random(0), 0.0
    assert data.load("cifar10", data_dir=tmp_path).train_images.shape == (100, 32, 32, 3)
    for _ in range(50):
        archive.write_bytes(damaged(good, draw))
        begin = time.perf_counter()
        with pytest.raises(DatasetError, match=f"{archive.name} is damaged or another file"):
            data.load("cifar10", data_dir=tmp_path)
        slowest = max(slowest, time.perf_counter() - begin)
    assert slowest < 2
    gate(f"archive, 50 flips and cuts: all named, by its published MD5, {slowest:.2f} s at most")


def idx(array) -> bytes:
    return gzip.compress(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_damaged_files_of_a_folder(tmp_path, gate):
    draw, count = random.Random(1), 30
    generator = np.random.default_rng(0)
    files = {}
    for name in sources._IDX:
        array = (np.arange(count, dtype=np.uint8) % 10 if "labels" in name else
                 generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[tmp_path / name] = idx(array)
        (tmp_path / name).write_bytes(files[tmp_path / name])
    whole = data.load("fashion_mnist_70k", data_dir=tmp_path).sha256
    refused, equal = 0, 0
    for path, good in files.items():
        for _ in range(25):
            path.write_bytes(damaged(good, draw))
            try:  # a flip in the header of gzip may change nothing but a date
                assert data.load("fashion_mnist_70k", data_dir=tmp_path).sha256 == whole
                equal += 1
            except DatasetError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
        path.write_bytes(good)
    assert refused > 80
    gate(f"folder of four files, 100 flips and cuts: {refused} named, {equal} harmless, 0 silent")


def test_no_network(tmp_path, monkeypatch, gate):
    def unreachable(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    slowest = 0.0
    for name, options in (("cifar10", {}), ("cifar100", {}), ("svhn_cropped", {}),
                          ("cifar10", {"download": True})):
        begin = time.perf_counter()
        with pytest.raises(DatasetError) as error:
            data.load(name, data_dir=tmp_path / "none", **options)
        slowest = max(slowest, time.perf_counter() - begin)
        assert "--dataset digits" in str(error.value) and "\n" not in str(error.value)
        assert str(tmp_path / "none") in str(error.value)
    assert slowest < 2
    gate(f"no network: one sentence after {slowest:.2f} s at most")
