"""The leaves of a pytree as one byte buffer with a manifest, and back bit for bit.

What `checkpoints` stores: bytes keep NaN payloads, -0.0, bfloat16 and typed random keys as they
are, and a SHA-256 a leaf finds the bit that has changed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"
PyTree: TypeAlias = Any
Leaf: TypeAlias = dict[str, Any]  # path, kind, dtype, shape, offset, size, sha256: plain JSON


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, found, verified or matched; the message says which."""


def pack(state: PyTree) -> tuple[list[Leaf], np.ndarray]:
    """Return one manifest entry a leaf, and all leaves' bytes one after the other, uint8 [n]."""
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]
    values = jax.device_get([_one_copy(path, leaf) for path, leaf in named])
    leaves: list[Leaf] = []
    chunks: list[bytes] = []
    offset = 0
    for (path, leaf), value in zip(named, values, strict=True):
        kind, dtype, shape = _describe(path, leaf)
        chunk = _to_bytes(kind, value)
        leaves.append({
            "path": path, "kind": kind, "dtype": dtype, "shape": list(shape),
            "offset": offset, "size": len(chunk), "sha256": hashlib.sha256(chunk).hexdigest(),
        })
        chunks.append(chunk)
        offset += len(chunk)
    chunks.append(b"\0")  # Orbax refuses arrays of size zero
    return leaves, np.frombuffer(b"".join(chunks), np.uint8)


def _one_copy(path: str, leaf: Any) -> Any:
    """Return what holds the leaf's values, on one device where several have the same."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    if not leaf.is_fully_addressable:
        raise CheckpointError(
            f"{path} is sharded over processes; only replicated arrays can be saved by process 0."
        )
    return leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(path: str, leaf: Any) -> tuple[str, str, tuple[int, ...]]:
    """Return (kind, dtype, shape) of a leaf or of its `jax.ShapeDtypeStruct`."""
    for python in (bool, int, float, str):
        if type(leaf) is python:
            return python.__name__, python.__name__, ()
    if _is_key(leaf):
        return "key", str(leaf.dtype), tuple(leaf.shape)
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)):
        dtype = np.dtype(leaf.dtype)
        if not (dtype.hasobject or dtype.fields or dtype.kind in "SUmM"):
            return "array", dtype.name, tuple(leaf.shape)
    raise CheckpointError(
        f"{path} cannot be saved: it is a {type(leaf).__name__} "
        f"{'of dtype ' + str(leaf.dtype) if hasattr(leaf, 'dtype') else ''}".rstrip() + "; allowed "
        "are numeric and boolean arrays, random keys, bool, int, float and str."
    )


def _to_bytes(kind: str, value: Any) -> bytes:
    if kind in ("array", "key"):
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), copy=False).tobytes()
    return struct.pack("<d", value) if kind == "float" else str(value).encode("utf-8")


def unpack(leaf: Leaf, buffer: np.ndarray, target: Any) -> Any:
    """Return one leaf of the kind of `target`, which has been checked against the manifest."""
    chunk = buffer[leaf["offset"]:leaf["offset"] + leaf["size"]].tobytes()
    kind = leaf["kind"]
    if kind == "float":
        return struct.unpack("<d", chunk)[0]
    if kind == "bool":
        return chunk == b"True"
    if kind in ("int", "str"):
        return (int if kind == "int" else str)(chunk.decode("utf-8"))
    if kind == "key":
        like = jax.eval_shape(jax.random.key_data, target)
        data = np.frombuffer(chunk, like.dtype).reshape(like.shape)
        key = jax.random.wrap_key_data(jnp.asarray(data), impl=_key_impl(target))
        return _place(key, target)
    dtype = np.dtype(target.dtype).newbyteorder("=")
    array = np.frombuffer(chunk, dtype).reshape(target.shape).copy()
    if isinstance(target, np.generic):
        return array[()]
    if isinstance(target, np.ndarray):
        return array
    if target.weak_type and array.ndim == 0:  # keeps promotion, and compiled functions, the same
        weak = jnp.asarray(array.item())
        if weak.dtype == dtype:
            return _place(weak, target)
    return _place(jnp.asarray(array), target)


def _key_impl(target: jax.Array | jax.ShapeDtypeStruct) -> Hashable:
    """Return the generator of a key array, which may be abstract, as `wrap_key_data` takes it."""
    if isinstance(target, jax.Array):
        return jax.random.key_impl(target)
    found: list[Hashable] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), target)
    return found[0]


def _place(array: jax.Array, target: Any) -> jax.Array:
    """Put an array where the target is, if that is not just the default device."""
    chosen = isinstance(target, jax.Array) and (
        target.committed or len(target.sharding.device_set) > 1
    )
    return jax.device_put(array, target.sharding) if chosen else array


def check_match(where: Path, leaves: list[Leaf], paths: list[tuple[Any, Any]]) -> None:
    """Raise CheckpointError unless the saved leaves are those of the target."""
    saved = {leaf["path"]: (leaf["kind"], leaf["dtype"], tuple(leaf["shape"])) for leaf in leaves}
    wanted = {jax.tree_util.keystr(p): _describe(jax.tree_util.keystr(p), x) for p, x in paths}
    problems = [f"{path} is not in the checkpoint" for path in wanted if path not in saved]
    problems += [f"{path} is in the checkpoint only" for path in saved if path not in wanted]
    for path in wanted:
        if path in saved and wanted[path] != saved[path]:
            (_, dtype, shape), (_, want_dtype, want_shape) = saved[path], wanted[path]
            problems.append(
                f"{path} is {dtype}{list(shape)}, wanted {want_dtype}{list(want_shape)}"
            )
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{where} does not fit this configuration: {'; '.join(problems[:5])}{more}."
        )
