"""Replication, sharding, and a step on 8 devices against the same step on one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import parallel


def test_available_devices():
    assert parallel.available_devices(None) == jax.local_devices()
    assert len(jax.local_devices()) == 8
    assert parallel.available_devices(3) == jax.local_devices()[:3]
    with pytest.raises(ValueError, match=r"\[1, 8\].*got 9.*device_count=9"):
        parallel.available_devices(9)
    with pytest.raises(ValueError, match="got 0; ask for one"):
        parallel.available_devices(0)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_replicate_there_and_back(count):
    devices = parallel.available_devices(count)
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(3), "n": np.int32(4),
            "half": jnp.ones((), jnp.bfloat16), "none": None}
    copies = parallel.replicate(tree, devices)
    assert copies["w"].shape == (count, 2, 3)
    assert copies["w"].sharding.device_set == set(devices)
    assert all(shard.data.shape == (1, 2, 3) for shard in copies["w"].addressable_shards)
    back = parallel.unreplicate(copies)
    assert back["w"].sharding.device_set == {devices[0]}
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_array_equal(back["w"], tree["w"])
    np.testing.assert_array_equal(jax.random.key_data(back["key"]),
                                  jax.random.key_data(tree["key"]))
    assert int(back["n"]) == 4 and back["half"].dtype == jnp.bfloat16


def test_unreplicate_takes_arrays_on_one_device():
    np.testing.assert_array_equal(parallel.unreplicate(np.array([[1, 2], [1, 2]])), [1, 2])


def test_shard_batch():
    batch = {"x": np.arange(24).reshape(8, 3), "y": jnp.arange(8)}
    cut = parallel.shard_batch(batch, 4)
    assert cut["x"].shape == (4, 2, 3) and cut["y"].shape == (4, 2)
    np.testing.assert_array_equal(cut["x"].reshape(8, 3), batch["x"])
    with pytest.raises(ValueError, match=r"multiple of devices=3, got 8; use 6 or 9\."):
        parallel.shard_batch(batch, 3)
    with pytest.raises(ValueError, match=r"got 2; use 4\."):
        parallel.shard_batch(np.zeros(2), 4)
    with pytest.raises(ValueError, match="scalar"):
        parallel.shard_batch(np.float32(1.0), 1)
    with pytest.raises(ValueError, match="count"):
        parallel.shard_batch(batch, 0)


@pytest.mark.parametrize("rows, count, share", [
    (6, 3, 2), (7, 3, 3), (5, 1, 5), (1, 8, 1), (3, 8, 1), (9, 8, 2), (8, 8, 1)])
def test_rows_there_and_back(rows, count, share):
    tree = {"x": np.arange(rows * 2).reshape(rows, 2), "y": jnp.arange(rows, dtype=jnp.float32),
            "keys": jax.random.split(jax.random.key(0), rows), "none": None}
    cut = parallel.shard_rows(tree, count)
    assert cut["x"].shape == (count, share, 2)
    assert cut["y"].shape == cut["keys"].shape == (count, share)
    # In order, and what is left over is filled with the first rows again, round and round.
    np.testing.assert_array_equal(cut["y"].ravel(), np.arange(count * share) % rows)
    back = parallel.merge_rows(cut, rows)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_array_equal(back["x"], tree["x"])
    np.testing.assert_array_equal(back["y"], tree["y"])
    np.testing.assert_array_equal(jax.random.key_data(back["keys"]),
                                  jax.random.key_data(tree["keys"]))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_devices_equal_one(count):
    def step(w, batch, axis=None):
        x, y = batch
        grads = jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)
        return w - 0.1 * (grads if axis is None else jax.lax.pmean(grads, axis))

    rng = np.random.default_rng(0)
    batch = (rng.normal(size=(16, 3)).astype(np.float32), rng.normal(size=16).astype(np.float32))
    devices = parallel.available_devices(count)
    traces = []

    def joined(w, batch):
        traces.append(count)
        return step(w, batch, parallel.AXIS)

    many = jax.pmap(joined, axis_name=parallel.AXIS, devices=devices)
    one = jax.jit(step)
    w, copies = jnp.ones(3), parallel.replicate(jnp.ones(3), devices)
    for _ in range(3):
        w = one(w, batch)
        copies = many(copies, parallel.shard_batch(batch, count))
    np.testing.assert_allclose(parallel.unreplicate(copies), w, rtol=1e-6)
    assert traces == [count]


def test_a_step_compiled_ahead_takes_replicated_trees_and_its_own_results():
    devices = parallel.available_devices(4)
    state, batch = parallel.replicate(jnp.ones(3), devices), np.ones((4, 2), np.float32)
    step = jax.pmap(lambda w, x: w + jax.lax.psum(x.sum(), parallel.AXIS),
                    axis_name=parallel.AXIS, devices=devices)
    compiled = step.lower(state, batch).compile()
    state = compiled(compiled(state, batch), batch)
    np.testing.assert_array_equal(parallel.unreplicate(state), np.full(3, 17.0))


def normalised(w, batch):
    """A step with a collective inside of the loss, as synchronised batch normalisation has it."""
    def loss(w):
        hidden = jnp.tanh(batch["x"] @ w["in"])
        centred = hidden - jax.lax.pmean(hidden.mean(0), parallel.AXIS)
        return jnp.mean((centred @ w["out"] - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return (jax.tree.map(lambda a, g: a - 0.1 * jax.lax.pmean(g, parallel.AXIS), w, grads),
            {"loss": jax.lax.pmean(value, parallel.AXIS)})


def test_shard_map_gives_the_bits_of_pmap():
    rng = np.random.default_rng(0)
    w = {"in": rng.normal(size=(3, 5)), "out": rng.normal(size=5)}
    batch = {"x": rng.normal(size=(16, 3)), "y": rng.normal(size=16)}
    w, batch = jax.tree.map(np.float32, (w, batch))
    devices = parallel.available_devices(4)
    found = []
    for make in (parallel.mapped, parallel.shard_mapped):
        step, state = make(normalised, devices), parallel.replicate(w, devices)
        batches = parallel.place(parallel.shard_batch(batch, 4), devices)
        compiled = step.lower(state, batches).compile()  # takes its own results again
        for _ in range(3):
            state, info = compiled(state, batches)
        assert all(leaf.sharding.device_set == set(devices) for leaf in jax.tree.leaves(state))
        found.append((jax.tree.map(np.asarray, state), parallel.unreplicate(info)))
    chex.assert_trees_all_equal(*found)
    # And both are the step on the whole batch: the collectives' gradient is the right one.
    one = jax.jit(jax.vmap(normalised, axis_name=parallel.AXIS))
    state, whole = jax.tree.map(lambda leaf: leaf[None], (w, batch))
    for _ in range(3):
        state, _ = one(state, whole)
    chex.assert_trees_all_close(parallel.host_copy(parallel.replicate(
        jax.tree.map(lambda leaf: leaf[0], state), devices)),
        jax.tree.map(lambda leaf: leaf[2], found[0][0]), rtol=1e-5)


def test_place_and_host_copy():
    devices = parallel.available_devices(2)
    placed = parallel.place({"x": np.arange(6.0).reshape(2, 3)}, devices)
    assert [shard.data.shape for shard in placed["x"].addressable_shards] == [(1, 3)] * 2
    np.testing.assert_array_equal(placed["x"], np.arange(6.0).reshape(2, 3))
    tree = {"a": jnp.ones((2, 2)), "b": np.int32(3)}
    copy = parallel.host_copy(parallel.replicate(tree, devices))
    assert type(copy["a"]) is np.ndarray and copy["a"].shape == (2, 2) and copy["b"] == 3


def test_with_one_process_all_devices_are_its_own():
    assert parallel.global_devices() == parallel.available_devices()
    assert parallel.global_devices(3) == parallel.available_devices(3)
    with pytest.raises(ValueError, match=r"\[1, 8\].*got 9"):
        parallel.global_devices(9)
