"""Readers of image files without TensorFlow: embedded npz, user's npz, idx, CIFAR archives."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import io
import os
import struct
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnas.data.dataset import DatasetError, ImageDataset, make_dataset, to_uint8, validate
from jaxnas.data.splits import stratified

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SPLIT_SEED = 0  # of the 80/20 split where a file has none

_IDX = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                    "Sneaker", "Bag", "Ankle boot")
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, tarfile.TarError,
               NotImplementedError, struct.error)  # what damaged files raise


class Cifar(NamedTuple):
    """One of the archives of https://www.cs.toronto.edu/~kriz/cifar.html."""

    archive: str
    md5: str  # as published there
    train: tuple[str, ...]
    test: tuple[str, ...]
    class_names: str
    label_bytes: int  # before each image; the last one is the label

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


CIFAR = {
    "cifar10": Cifar(
        "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",), "cifar-10-batches-bin/batches.meta.txt", 1),
    "cifar100": Cifar(
        "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
        ("cifar-100-binary/train.bin",), ("cifar-100-binary/test.bin",),
        "cifar-100-binary/fine_label_names.txt", 2),
}


def read_digits() -> ImageDataset:
    """Read the embedded UCI digits; see files/digits.LICENSE.txt."""
    arrays = _embedded("digits.npz")
    train, test = arrays["train_indices"], arrays["test_indices"]
    images, labels = arrays["images"], arrays["labels"]
    return make_dataset(
        "digits", "digits.npz", images[train], labels[train], images[test], labels[test],
        max_value=16, augmentation="crop", crop_padding=1,  # a mirrored 2 is no digit
    )


def read_fashion_mnist_cut() -> ImageDataset:
    """Read the embedded cut of Fashion-MNIST; see files/fashion_mnist.LICENSE.txt."""
    arrays = _embedded("fashion_mnist.npz")
    return make_dataset(
        "fashion_mnist_12k", "fashion_mnist.npz",
        *(arrays[array] for array in ("x_train", "y_train", "x_test", "y_test")),
        class_names=_FASHION_CLASSES, crop_padding=4,
    )


def _embedded(file: str) -> dict[str, np.ndarray]:
    data = (importlib.resources.files("jaxnas.data") / "files" / file).read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def read_npz(path: Path) -> ImageDataset:
    """Read a user's file; `jaxnas.data.load` says what it holds.

    Raises:
      DatasetError: not such a file; one sentence naming it and the array.
    """
    if not path.is_file():
        raise DatasetError(f"There is no file {path}; give the path of an .npz file.")
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path} is not an .npz file; write it with numpy.savez.")
    four, two = ("x_train", "y_train", "x_test", "y_test"), ("x", "y")
    try:
        archive = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise DatasetError(f"{path} is a damaged .npz file; write it with numpy.savez.") from error
    with archive:
        present = set(archive.files)
        arrays = two if set(two) <= present and not set(four) & present else four
        missing = [array for array in arrays if array not in present]
        if missing:
            raise DatasetError(
                f"{path}: array {missing[0]} is missing; needed are {', '.join(four)}, or x and "
                f"y, present are {', '.join(sorted(present)) or 'none'}."
            )
        names = _npz_array(path, archive, "class_names") if "class_names" in present else None
        values = [_npz_array(path, archive, array) for array in arrays]
    if arrays == two:
        values = _split_in_two(str(path), *values)
        arrays = ("x", "y", "x", "y")
    return make_dataset(path.stem, str(path), *values, arrays=arrays, class_names=names)


def _npz_array(path: Path, archive: np.lib.npyio.NpzFile, array: str) -> np.ndarray:
    try:
        value = archive[array]
    except _UNREADABLE as error:
        if "allow_pickle" in str(error):
            raise DatasetError(
                f"{path}: array {array} holds Python objects; store numbers only."
            ) from error
        first_line = str(error).partition("\n")[0]
        raise DatasetError(f"{path}: array {array} cannot be read: {first_line}.") from error
    if not isinstance(value, np.ndarray):
        raise DatasetError(f"{path}: {array} is not stored as a numpy array.")
    return value


def _split_in_two(source: str, images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return train and test arrays, 80/20, stratified, after checking the whole."""
    images = to_uint8(source, "x", images, 255)
    validate(source, images, labels, images, labels, arrays=("x", "y", "x", "y"))
    smallest = np.bincount(labels).min()
    if smallest < 2:
        raise DatasetError(
            f"{source}: array y must hold every class twice or more, to be split in train and "
            f"test, got a class with {smallest}."
        )
    rng = np.random.default_rng(SPLIT_SEED)
    test, train = stratified(labels, max(1, round(0.2 * len(labels))), rng)
    return [images[train], labels[train], images[test], labels[test]]


def find_fashion_mnist(folder: Path) -> Path | None:
    """Return the folder that holds the four idx files, or None.

    Raises:
      DatasetError: a folder holds some of the four files only.
    """
    for place in (folder, folder / "fashion-mnist", DEBIAN_FASHION_MNIST):
        missing = [file for file in _IDX if not (place / file).is_file()]
        if not missing:
            return place
        if len(missing) < len(_IDX):
            raise DatasetError(
                f"{place} holds only a part of Fashion-MNIST: {missing[0]} is missing."
            )
    return None


def read_fashion_mnist(folder: Path) -> ImageDataset:
    """Read the whole Fashion-MNIST from its four idx files."""
    arrays = [read_idx(folder / file) for file in _IDX]
    return make_dataset(
        "fashion_mnist_70k", str(folder), *arrays, arrays=_IDX, class_names=_FASHION_CLASSES,
        crop_padding=4,
    )


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of bytes (http://yann.lecun.com/exdb/mnist): uint8, any rank.

    Raises:
      DatasetError: damaged, or not such a file.
    """
    try:
        data = gzip.decompress(path.read_bytes())
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except _UNREADABLE as error:
        raise DatasetError(f"{path} is damaged: {error}.") from error
    if zeros != 0 or kind != 8:
        raise DatasetError(f"{path} is not an idx file of unsigned bytes.")
    start, size = 4 + 4 * rank, int(np.prod(shape, dtype=object))
    if len(data) != start + size:
        raise DatasetError(f"{path} is damaged: {len(data)} bytes instead of {start + size}.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_cifar(name: str, folder: Path) -> Path | None:
    """Return the archive of "cifar10" or "cifar100" in `folder` or its downloads/, or None."""
    stem = CIFAR[name].archive.removesuffix(".tar.gz")
    found = [folder / CIFAR[name].archive]
    if (folder / "downloads").is_dir():  # tensorflow-datasets adds host and hash to the name
        found += sorted((folder / "downloads").rglob(f"*{stem}*.tar.gz"))
    return next((path for path in found if path.is_file()), None)


def download_cifar(name: str, folder: Path) -> Path:
    """Fetch the archive of "cifar10" or "cifar100" (170 MB) into `folder`.

    Raises:
      DatasetError: no network, no space, or not the published file.
    """
    path = folder / CIFAR[name].archive
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with (
                urllib.request.urlopen(CIFAR[name].url, timeout=20) as answer,
                open(partial, "wb") as file,
            ):
                while block := answer.read(1 << 20):
                    file.write(block)
            _check_md5(partial, CIFAR[name].md5)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(
            f"Could not fetch {CIFAR[name].url} into {folder} ({error}); put it there by hand, or "
            "use --dataset digits."
        ) from error
    return path


def read_cifar(name: str, path: Path) -> ImageDataset:
    """Read "cifar10" or "cifar100" (fine labels) from the authors' binary archive.

    Raises:
      DatasetError: not the published file, byte for byte.
    """
    cifar = CIFAR[name]
    _check_md5(path, cifar.md5)
    try:
        with tarfile.open(path, "r:gz") as archive:
            wanted = {*cifar.train, *cifar.test, cifar.class_names}
            files = _members(archive, wanted)
        train, test = (b"".join(files[f] for f in part) for part in (cifar.train, cifar.test))
        class_names = files[cifar.class_names].decode("ascii").split()
        arrays = (*_cifar_rows(train, cifar), *_cifar_rows(test, cifar))
    except (*_UNREADABLE, KeyError) as error:
        raise DatasetError(f"{path} is not the archive of {name}: {error}.") from error
    return make_dataset(name, str(path), *arrays, class_names=class_names, crop_padding=4)


def _check_md5(path: Path, expected: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DatasetError(
            f"{path} is damaged or another file: its MD5 is {found}, published is {expected}."
        )


def _members(archive: tarfile.TarFile, wanted: Collection[str]) -> dict[str, bytes]:
    contents = {}
    for member in archive:
        file = archive.extractfile(member) if member.name in wanted else None
        if file is not None:
            contents[member.name] = file.read()
    return contents


def _cifar_rows(data: bytes, cifar: Cifar) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 32, 32, 3] and labels [N]; a row is labels, then the three planes."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, cifar.label_bytes + 3 * 32 * 32)
    images = rows[:, cifar.label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, rows[:, cifar.label_bytes - 1].astype(np.int32)
