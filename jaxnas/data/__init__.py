"""Image data sets, splits, batches and augmentation; text; tables of NAS benchmarks."""

from jaxnas.data.augment import augment, cutout, normalize, random_crop, random_flip
from jaxnas.data.batches import batch_indices, epoch_batches, epoch_permutation, steps_per_epoch
from jaxnas.data.images import DatasetError, ImageDataset, load, validate
from jaxnas.data.nats_bench import read_nats_bench
from jaxnas.data.splits import Splits, Validation, split_search, split_validation
from jaxnas.data.table import Table, TableError
from jaxnas.data.tables import load_table, nasbench201, nasbench_macro
from jaxnas.data.text import TextDataset, Vocabulary, load_text
from jaxnas.data.windows import (Windows, chunks, columns, largest_length, most_windows,
                                 take_window, windows)

__all__ = [
    "DatasetError",
    "ImageDataset",
    "Splits",
    "Table",
    "TableError",
    "TextDataset",
    "Validation",
    "Vocabulary",
    "Windows",
    "augment",
    "batch_indices",
    "chunks",
    "columns",
    "cutout",
    "epoch_batches",
    "epoch_permutation",
    "largest_length",
    "load",
    "load_table",
    "load_text",
    "most_windows",
    "nasbench201",
    "nasbench_macro",
    "normalize",
    "random_crop",
    "random_flip",
    "read_nats_bench",
    "split_search",
    "split_validation",
    "steps_per_epoch",
    "take_window",
    "validate",
    "windows",
]
