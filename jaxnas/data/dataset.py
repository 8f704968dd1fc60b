"""What an image classification data set is here, and the one check that every loader passes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

AUGMENTATIONS = ("none", "crop", "crop_flip")
CHANNELS = (1, 3, 4)
MIN_SIDE, MAX_SIDE = 4, 1024  # pixels


class DatasetError(ValueError):
    """A data set is missing or unusable; the message is one sentence naming file and array."""


class ImageDataset(NamedTuple):
    """Images and labels on the host; `validate` holds for them."""

    name: str  # what was read: "fashion_mnist_12k", not "fashion_mnist"
    sha256: str  # of the four arrays' shapes and contents
    train_images: np.ndarray  # [N, H, W, C] uint8
    train_labels: np.ndarray  # [N] int32, every class 0..num_classes-1 present
    test_images: np.ndarray  # [M, H, W, C] uint8
    test_labels: np.ndarray  # [M] int32
    num_classes: int
    class_names: tuple[str, ...]  # [num_classes]
    mean: tuple[float, ...]  # [C], of the training pixels divided by max_value
    std: tuple[float, ...]  # [C], likewise; 1.0 for a channel that never changes
    max_value: float  # the pixel value that means 1.0
    augmentation: str  # "none" | "crop" | "crop_flip": what suits these images
    crop_padding: int  # pixels; 0 if augmentation is "none"

    @property
    def flip(self) -> bool:
        """Whether mirrored images stay in their class."""
        return self.augmentation == "crop_flip"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train_images.shape[1:]


def make_dataset(
    name: str,
    source: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    arrays: Sequence[str] = ("x_train", "y_train", "x_test", "y_test"),
    class_names: Sequence[str] | np.ndarray | None = None,
    max_value: int = 255,
    augmentation: str = "crop_flip",
    crop_padding: int | None = None,
) -> ImageDataset:
    """Validate four arrays and make an `ImageDataset` of them.

    Args:
      name: the data set's name.
      source: the file or folder, for messages.
      train_images, test_images: [N, H, W] or [N, H, W, C]; integers 0..max_value, or floats 0..1,
        which are rounded to multiples of 1/255.
      train_labels, test_labels: [N] integers; together with the images as `validate` says.
      arrays: what the four are called in `source`, for messages.
      class_names: one a class; default "0", "1", ...
      max_value: the pixel value that means 1.0, in 1..255.
      augmentation: "none", "crop" or "crop_flip".
      crop_padding: pixels; default an eighth of the shorter side, 1 to 4.

    Raises:
      DatasetError: see `validate`.
    """
    if augmentation not in AUGMENTATIONS:
        raise DatasetError(f"augmentation must be one of {AUGMENTATIONS}, got {augmentation!r}.")
    train_images = to_uint8(source, arrays[0], train_images, max_value)
    test_images = to_uint8(source, arrays[2], test_images, max_value)
    num_classes = validate(
        source, train_images, train_labels, test_images, test_labels, arrays=arrays
    )
    names = tuple(str(n) for n in (range(num_classes) if class_names is None else class_names))
    if len(names) != num_classes:
        raise DatasetError(f"{source}: {len(names)} class names for {num_classes} classes.")
    parts = (
        np.ascontiguousarray(train_images), np.asarray(train_labels, np.int32),
        np.ascontiguousarray(test_images), np.asarray(test_labels, np.int32),
    )
    mean, std = channel_statistics(parts[0], max_value)
    if crop_padding is None:
        crop_padding = max(1, min(4, min(parts[0].shape[1:3]) // 8))
    return ImageDataset(
        name, contents_sha256(parts), *parts, num_classes, names, mean, std, float(max_value),
        augmentation, 0 if augmentation == "none" else crop_padding,
    )


def to_uint8(source: str, array: str, images: np.ndarray, max_value: int) -> np.ndarray:
    """Return images as [N, H, W, C] uint8, or raise DatasetError naming the array."""
    where = f"{source}: array {array}"
    images = np.asarray(images)
    if images.ndim not in (3, 4):
        raise DatasetError(
            f"{where} must be [N, H, W] or [N, H, W, C], got shape {list(images.shape)}."
        )
    if images.dtype.kind not in "iuf":
        raise DatasetError(
            f"{where} must be uint8, or float from 0 to 1, got dtype {images.dtype}."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.size == 0 or images.dtype == np.uint8 and max_value == 255:
        return images.astype(np.uint8)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DatasetError(f"{where} holds pixels that are NaN or infinite.")
    top = 1 if images.dtype.kind == "f" else max_value
    low, high = images.min(), images.max()
    if low < 0 or high > top:
        raise DatasetError(
            f"{where} must hold {images.dtype} pixels from 0 to {top}, got {low} to {high}."
        )
    if images.dtype.kind == "f":
        images = np.rint(images * max_value)
    return images.astype(np.uint8)


def validate(
    source: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    arrays: Sequence[str] = ("x_train", "y_train", "x_test", "y_test"),
) -> int:
    """Return the number of classes of images [N, H, W, C] and labels [N], or raise.

    Raises:
      DatasetError: no images; H or W outside 4..1024; C not 1, 3 or 4; labels not [N], not
        integer, negative, or not as many as images; train and test images of different shape;
        fewer than two classes; or training labels that are not exactly 0..K-1.
    """
    groups = ((train_images, train_labels, arrays[:2]), (test_images, test_labels, arrays[2:]))
    for images, labels, (image_name, label_name) in groups:
        where = f"{source}: array {image_name}"
        if len(images) == 0:
            raise DatasetError(f"{where} holds no images.")
        height, width, channels = images.shape[1:]
        if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
            raise DatasetError(
                f"{where} must hold images of {MIN_SIDE} to {MAX_SIDE} pixels a side, got "
                f"{height}x{width}."
            )
        if channels not in CHANNELS:
            raise DatasetError(f"{where} must have 1, 3 or 4 channels (last), got {channels}.")
        where = f"{source}: array {label_name}"
        labels = np.asarray(labels)
        if labels.ndim != 1:
            raise DatasetError(f"{where} must be [N], got shape {list(labels.shape)}.")
        if labels.dtype.kind not in "iu":
            raise DatasetError(f"{where} must be integers, got dtype {labels.dtype}.")
        if len(labels) != len(images):
            raise DatasetError(
                f"{where} has {len(labels)} labels for the {len(images)} images of {image_name}."
            )
        if labels.min() < 0:
            raise DatasetError(f"{where} must be 0 or larger, got {labels.min()}.")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DatasetError(
            f"{source}: arrays {arrays[0]} and {arrays[2]} hold images of different shape, "
            f"{list(train_images.shape[1:])} and {list(test_images.shape[1:])}."
        )
    classes = np.unique(train_labels)
    missing = np.setdiff1d(np.arange(min(int(classes[-1]) + 1, len(train_labels) + 1)), classes)
    if len(missing):
        raise DatasetError(
            f"{source}: array {arrays[1]} must hold every class from 0 to {classes[-1]}, "
            f"class {missing[0]} is missing."
        )
    if len(classes) < 2:
        raise DatasetError(f"{source}: array {arrays[1]} must hold two classes or more, got one.")
    if np.max(test_labels) > classes[-1]:
        raise DatasetError(
            f"{source}: array {arrays[3]} holds class {np.max(test_labels)}, which is missing in "
            f"{arrays[1]}."
        )
    return len(classes)


def channel_statistics(
    images: np.ndarray, max_value: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of images / max_value.

    From a histogram, which is exact and needs no copy of [N, H, W, C] uint8 images as floats.
    """
    values = np.arange(256) / max_value
    means, stds = [], []
    for channel in range(images.shape[-1]):
        weights = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = float(np.average(values, weights=weights))
        means.append(mean)
        stds.append(float(np.sqrt(np.average((values - mean) ** 2, weights=weights))) or 1.0)
    return tuple(means), tuple(stds)


def contents_sha256(arrays: Sequence[np.ndarray]) -> str:
    """Return the digest of arrays' dtypes, shapes and little-endian contents, in this order."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.name}{list(array.shape)}".encode())
        digest.update(array.data)
    return digest.hexdigest()
