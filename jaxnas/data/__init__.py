"""Image data sets, splits, batches and augmentation."""

from jaxnas.data.augment import augment, cutout, normalize, random_crop, random_flip
from jaxnas.data.batches import batch_indices, epoch_batches, epoch_permutation, steps_per_epoch
from jaxnas.data.images import DatasetError, ImageDataset, load, validate
from jaxnas.data.splits import Splits, Validation, split_search, split_validation

__all__ = [
    "DatasetError",
    "ImageDataset",
    "Splits",
    "Validation",
    "augment",
    "batch_indices",
    "cutout",
    "epoch_batches",
    "epoch_permutation",
    "load",
    "normalize",
    "random_crop",
    "random_flip",
    "split_search",
    "split_validation",
    "steps_per_epoch",
    "validate",
]
