"""A trained network as StableHLO with its parameters: what other programs, and C++, can load.

    paths = export.write(network, variables, (32, 32, 3), Path("out"), "enas_micro_cifar")
    predict = export.read(paths.program)             # in another process, without the Flax module
    logits = predict(export.read_variables(paths.variables), images)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxnas.base import PyTree

MAX_BYTES = 4 << 30


class Exported(NamedTuple):
    """The files of one network."""

    program: Path    # .jaxexport: versioned, serialised StableHLO; `read` takes it
    text: Path       # .mlir: the same module, readable
    variables: Path  # .npz: one array a leaf, named "params/cell_0/..."


def write(network: Any, variables: PyTree, shape: tuple[int, int, int], folder: Path, name: str, *,
          batch_size: int = 1, platforms: tuple[str, ...] = ("cpu",)) -> Exported:
    """Write the inference program of a network, and its variables.

    The program takes (variables, images [batch_size, H, W, C] float32), the variables as a nested
    dict, and returns logits [batch_size, classes]; batch statistics are the running ones.

    Args:
      network: Flax module, called (images, train=False); of a tuple of results the first counts.
      variables: as from `network.init`, nested dicts of arrays.
      shape: H, W, C of an image.
      folder: made if absent.
      name: stem of the files.
      batch_size: of the program.
      platforms: it is lowered for, such as ("cpu", "cuda").

    Raises:
      ValueError: batch_size is below 1, or a name in the variables holds a "/".
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    arrays = flatten(variables)

    def predict(variables: PyTree, images: jax.Array) -> jax.Array:
        outputs = network.apply(variables, images, train=False)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
    exported = jax.export.export(jax.jit(predict), platforms=platforms)(shapes, images)
    folder.mkdir(parents=True, exist_ok=True)
    paths = Exported(*(folder / f"{name}{suffix}" for suffix in (".jaxexport", ".mlir", ".npz")))
    paths.program.write_bytes(exported.serialize())
    paths.text.write_text(exported.mlir_module(), encoding="utf-8")
    np.savez(paths.variables, **arrays)  # type: ignore[arg-type]
    return paths


def read(path: Path) -> Callable[[PyTree, jax.Array], jax.Array]:
    """Load a program that `write` wrote, as a function of (variables, images).

    Raises:
      ValueError: the file is too big or no exported program.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name}: at most {MAX_BYTES} bytes are read.")
    try:
        return jax.export.deserialize(bytearray(path.read_bytes())).call
    except Exception as error:  # a flatbuffer that is none fails in many ways
        raise ValueError(f"{path.name} is no exported program: {error}") from error


def read_variables(path: Path) -> PyTree:
    """Load the variables that `write` wrote, as nested dicts of arrays; never unpickles."""
    nested: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            *parents, last = name.split("/")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = arrays[name]
    return nested


def flatten(variables: PyTree) -> dict[str, np.ndarray]:
    """Return {"params/cell_0/...": array} of nested dicts.

    Raises:
      ValueError: a name holds a "/".
    """
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        names = [str(entry.key) for entry in path]
        if any("/" in name for name in names):
            raise ValueError(f"names of variables may hold no '/', got {names}.")
        arrays["/".join(names)] = np.asarray(leaf)
    return arrays
