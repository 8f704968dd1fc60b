"""Read image data sets that tensorflow-datasets has prepared on disk.

Files are looked for before the library is imported, so a missing set fails at once instead of
after minutes of download attempts. Sets prepared as array_record are read without TensorFlow;
those prepared as tfrecord, the library's default, need it, and so does every preparation.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas.data.dataset import DatasetError, ImageDataset, make_dataset
from jaxnas.data.splits import stratified

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z0-9_.\-]+)?")
_SPLIT_SEED = 0


def find(name: str, folder: Path) -> Path | None:
    """Return the folder of the newest prepared version of `name`, or None; imports nothing."""
    infos = list((folder / name).glob("*/dataset_info.json"))  # name/1.0.0, name/config/1.0.0
    if "/" not in name:
        infos += (folder / name).glob("*/*/dataset_info.json")
    return max((info.parent for info in infos), key=_version, default=None)


def read(name: str, folder: Path, *, download: bool = False) -> ImageDataset:
    """Read the data set `name`, or `name/config`, from `folder`, where it has been prepared.

    Its features must be an image and an integer label. The test part is the split "test", else
    "validation", else 20 % of "train", stratified, with a fixed seed.

    Args:
      name: as tensorflow-datasets knows it.
      folder: its data_dir.
      download: download and prepare the set if it is not there; needs TensorFlow and a network.

    Raises:
      DatasetError: not there, a package is missing, or not usable; says what to do.
    """
    if not _NAME.fullmatch(name):
        raise DatasetError(
            f"{name!r} is no data set: give a name such as digits, fashion_mnist or cifar10, or "
            "the path of an .npz file."
        )
    prepared = find(name, folder)
    if prepared is None and not download:
        raise DatasetError(
            f"{name} is not in {folder}: run `python -c \"from jaxnas import data; "
            f"data.load('{name}', download=True)\"` with a network, or use --dataset digits."
        )
    _require("tensorflow_datasets", name)
    if prepared is None:
        prepared = _prepare(name, folder)
    return _read(name, prepared)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.name))


def _require(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise DatasetError(
            f"{name} needs the package {package}: run `pip install 'jaxnas[datasets]'`, or use "
            "--dataset digits."
        )


def _prepare(name: str, folder: Path) -> Path:
    for package in ("tensorflow", "importlib_resources"):  # the second is not declared by tfds
        _require(package, name)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=folder)
        builder.download_and_prepare()
    except Exception as error:  # network, disk, unknown name, manual download: all end here
        lines = str(error).strip().splitlines() or [""]
        raise DatasetError(
            f"tensorflow-datasets could not prepare {name} in {folder} "
            f"({type(error).__name__}: {lines[0][:200]}); use --dataset digits."
        ) from error
    return Path(builder.data_path)


def _read(name: str, prepared: Path) -> ImageDataset:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(prepared)
        features, splits = builder.info.features, builder.info.splits
        records = builder.info.file_format
    except Exception as error:  # a damaged dataset_info.json or features.json raises anything
        raise DatasetError(f"{prepared} is damaged: {type(error).__name__}: {error}.") from error
    keys = builder.info.supervised_keys or ("image", "label")
    if len(keys) != 2 or any(key not in features for key in keys):
        raise DatasetError(
            f"{prepared} is not for image classification: it holds {', '.join(features)}."
        )
    if "train" not in splits:
        raise DatasetError(f"{prepared} has no split train, only {', '.join(splits) or 'none'}.")
    without_tensorflow = records == tfds.core.FileFormat.ARRAY_RECORD
    if not without_tensorflow:
        _require("tensorflow", f"{name}, prepared as {records.value},")
    test = next((split for split in ("test", "validation") if split in splits), None)
    parts = [_examples(builder, prepared, split, keys, without_tensorflow)
             for split in ("train", test) if split is not None]
    arrays = [array for part in parts for array in part]
    if test is None:
        arrays = _hold_out(prepared, *arrays)
    label_names = getattr(features[keys[1]], "names", None)
    labels = [f"{split}/{key}" for split in ("train", test or "train") for key in keys]
    return make_dataset(
        name, str(prepared), *arrays, arrays=labels, class_names=label_names,
    )


def _examples(
    builder: Any, prepared: Path, split: str, keys: tuple[str, str], without_tensorflow: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, H, W, C] and labels [N] of one split, in the order on disk."""
    import tensorflow_datasets as tfds

    try:
        if without_tensorflow:
            source = builder.as_data_source(split=split)
            examples = (source[index] for index in range(len(source)))
        else:
            examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        images, labels = [], []
        for example in examples:
            images.append(np.asarray(example[keys[0]]))
            labels.append(np.asarray(example[keys[1]]))
    except Exception as error:  # array_record, protobuf and decoders raise anything on damage
        raise DatasetError(
            f"{prepared}: split {split} cannot be read: {type(error).__name__}: {error}."
        ) from error
    if not images:
        raise DatasetError(f"{prepared}: split {split} holds no images.")
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DatasetError(
            f"{prepared}: split {split} holds images of {len(shapes)} different sizes; resize "
            "them and store them as .npz."
        )
    return np.stack(images), np.stack(labels)


def _hold_out(prepared: Path, images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DatasetError(f"{prepared}: the labels of split train must be integers >= 0.")
    count = max(1, round(0.2 * len(labels)))
    test, train = stratified(labels, count, np.random.default_rng(_SPLIT_SEED))
    return [images[train], labels[train], images[test], labels[test]]
