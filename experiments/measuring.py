"""Tables of latencies in an experiment: where they are kept, what is shown, what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from experiments import common

FOLDER = "latency"  # in the user's cache folder
Made = TypeVar("Made")


def measured(config: common.CommonConfig, title: str, make: Callable[..., Made],
             *args: Any, **options: Any) -> Made:
    """Return `make(*args, directory=..., on_unit=..., **options)`, which measures or reads a table.

    Raises:
      InputError: the file of the table is damaged, or its folder cannot be used.
    """
    base = common.cache_directory()
    folder = None if base is None else base / FOLDER
    try:
        with common.validation(), common.progress(config) as progress:
            with progress.phase(title) as bar:
                return make(*args, directory=folder, on_unit=lambda name: bar.advance(1, name),
                            **options)
    except OSError as error:
        raise common.InputError(
            f"a table of latencies cannot be kept in {folder} ({error.strerror}); set "
            "$JAXNAS_CACHE_DIR to another folder, or to nothing to keep none.") from error
