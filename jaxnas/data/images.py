"""`load`: an image data set by name or by path, from this package or from this machine's disk.

    dataset = load("digits")            # in the package: 1,797 images, 8x8
    dataset = load("fashion_mnist")     # the whole set if installed, else the cut in the package
    dataset = load("cifar10")           # the authors' archive, or a prepared tensorflow-datasets
    dataset = load("my/images.npz")     # x_train, y_train, x_test, y_test; or x, y

Nothing is downloaded unless asked for, and a set that is not there fails in well under a second.
"""

from __future__ import annotations

import os
from pathlib import Path

from jaxnas.data import sources, tfds_source
from jaxnas.data.dataset import AUGMENTATIONS, DatasetError, ImageDataset, validate

__all__ = ["DatasetError", "ImageDataset", "load", "validate"]


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    augmentation: str | None = None,
) -> ImageDataset:
    """Load an image classification data set into host memory.

    Args:
      name: one of
        "digits": 1,437 + 360 images of 8x8x1, in the package.
        "fashion_mnist": 60,000 + 10,000 images of 28x28x1 if the four idx .gz files are in
        `data_dir` or installed by Debian's package dataset-fashion-mnist, else the first
        10,000 + 2,000, in the package; the result's name says which. "fashion_mnist_70k" and
        "fashion_mnist_12k" ask for one of them.
        "cifar10", "cifar100": from cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, whose MD5
        is checked; else as prepared by tensorflow-datasets.
        another image data set of tensorflow-datasets, prepared on disk.
        a path ending in ".npz": x_train, y_train, x_test, y_test, or x and y, which are split
        80/20, stratified by class, with a fixed seed; images [N, H, W] or [N, H, W, C], uint8 or
        float 0..1; labels integers 0..K-1. Optionally class_names [K].
      data_dir: where to look; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      download: fetch the CIFAR archive, or let tensorflow-datasets download and prepare the set,
        if it is not there (the latter needs TensorFlow).
      augmentation: replaces the data set's default, see `ImageDataset`.

    Raises:
      DatasetError: missing or unusable; one sentence naming file, array and what to do.
    """
    if augmentation is not None and augmentation not in AUGMENTATIONS:
        raise DatasetError(f"augmentation must be one of {AUGMENTATIONS}, got {augmentation!r}.")
    dataset = _load(name, data_dir, download)
    if augmentation is None or augmentation == dataset.augmentation:
        return dataset
    padding = 0 if augmentation == "none" else dataset.crop_padding
    return dataset._replace(augmentation=augmentation, crop_padding=padding)


def _load(name: str, data_dir: Path | None, download: bool) -> ImageDataset:
    if name.endswith(".npz"):
        return sources.read_npz(Path(name))
    if name == "digits":
        return sources.read_digits()
    folder = _default_folder() if data_dir is None else Path(data_dir)
    if name in ("fashion_mnist", "fashion_mnist_12k", "fashion_mnist_70k"):
        return _fashion_mnist(name, folder)
    if name in sources.CIFAR:
        archive = sources.find_cifar(name, folder)
        if archive is not None:
            return sources.read_cifar(name, archive)
        if tfds_source.find(name, folder) is None:
            if download:
                return sources.read_cifar(name, sources.download_cifar(name, folder))
            url = sources.CIFAR[name].url
            raise DatasetError(
                f"{name} is not in {folder}: put {url} there, or run `python -c \"from jaxnas "
                f"import data; data.load('{name}', download=True)\"`, or use --dataset digits."
            )
    return tfds_source.read(name, folder, download=download)


def _fashion_mnist(name: str, folder: Path) -> ImageDataset:
    if name != "fashion_mnist_12k":
        whole = sources.find_fashion_mnist(folder)
        if whole is not None:
            return sources.read_fashion_mnist(whole)
        if name == "fashion_mnist_70k":
            raise DatasetError(
                f"fashion_mnist_70k is neither in {folder} nor in {sources.DEBIAN_FASHION_MNIST}: "
                "run `apt-get install dataset-fashion-mnist`, or use --dataset fashion_mnist_12k "
                "or --dataset digits."
            )
    return sources.read_fashion_mnist_cut()


def _default_folder() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
