"""The trainer: its optimisers against written-out recursions, its epochs against plain loops."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import data, training

KEY = jax.random.key(0)


class Tiny(nn.Module):
    """Dense and batch-normalised dense, with an auxiliary output."""

    auxiliary: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train, drop_path_rate=0.0):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9,
            axis_name=None if self.is_initializing() else self.axis_name)(x)
        if train:
            keep = 1.0 - drop_path_rate
            x = x * jax.random.bernoulli(self.make_rng("drop_path"), keep, (len(x), 1)) / keep
        logits = nn.Dense(3)(jax.nn.relu(x))
        return logits, (nn.Dense(3, name="second")(x) if self.auxiliary else None)


def _images(count=24):
    images = jax.random.randint(KEY, (count, 4, 4, 1), 0, 255).astype(jnp.uint8)
    labels = (images.mean((1, 2, 3)) * 3 / 256).astype(jnp.int32)
    return images, labels


def _state(network, optimizer, images):
    rngs = {"params": KEY, "drop_path": KEY}
    return training.init_state(
        network.init(rngs, images[:1].astype(jnp.float32), train=True), optimizer)


def _augment(key, images):
    return data.augment(
        key, images, mean=(0.5,), std=(0.25,), max_value=255.0, crop_padding=1, flip=True)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    labels = jnp.array([0, 1])
    logs = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(
        training.cross_entropy(logits, labels), -(logs[0, 0] + logs[1, 1]) / 2, rtol=1e-6)
    targets = 0.9 * np.eye(3)[[0, 1]] + 0.1 / 3
    np.testing.assert_allclose(
        training.cross_entropy(logits, labels, 0.1), -(targets * logs).sum() / 2, rtol=1e-6)


def test_sgd_is_pytorch_recursion():
    optimizer = training.sgd(0.1, momentum=0.9, weight_decay=0.01, clip_norm=5.0)
    w, v = np.array([3.0, -4.0]), np.zeros(2)
    params = jnp.array(w)
    state = optimizer.init(params)
    for g in ([1.0, 2.0], [30.0, 40.0], [-3.0, 0.5]):
        updates, state = optimizer.update(jnp.array(g), state, params)
        params = optax.apply_updates(params, updates)
        g = np.array(g) * min(1.0, 5.0 / np.linalg.norm(g))  # clipped before the decay is added
        v = 0.9 * v + g + 0.01 * w
        w = w - 0.1 * v
        np.testing.assert_allclose(params, w, rtol=1e-6)


def test_adam_couples_weight_decay():
    optimizer = training.adam(0.1, b1=0.5, b2=0.999, weight_decay=0.01)
    w, m, s = np.array([3.0, -4.0]), np.zeros(2), np.zeros(2)
    params = jnp.array(w)
    state = optimizer.init(params)
    for t, g in enumerate(([1.0, 2.0], [3.0, -4.0], [0.0, 0.0]), 1):
        updates, state = optimizer.update(jnp.array(g), state, params)
        params = optax.apply_updates(params, updates)
        g = np.array(g) + 0.01 * w
        m, s = 0.5 * m + 0.5 * g, 0.999 * s + 0.001 * g * g
        w = w - 0.1 * (m / (1 - 0.5**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(params, w, rtol=1e-4)


def test_cosine_by_epoch():
    schedule = training.cosine_by_epoch(0.025, 0.001, num_epochs=50, steps_per_epoch=7)
    np.testing.assert_allclose(schedule(0), 0.025, rtol=1e-6)
    np.testing.assert_allclose(schedule(49 * 7), 1.023679e-3, rtol=1e-6)  # quark0/darts issue 7
    np.testing.assert_allclose(jax.jit(schedule)(49 * 7 + 6), 1.023679e-3, rtol=1e-6)
    assert schedule(6) == schedule(0) > schedule(7)


@pytest.mark.parametrize("arguments, name", [
    ({"momentum": 1.0}, "momentum"), ({"weight_decay": -1.0}, "weight_decay"),
    ({"clip_norm": 0.0}, "clip_norm")])
def test_sgd_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        training.sgd(0.1, **arguments)


def test_hyper_parameters_may_be_traced():
    def run(rate, decay):
        optimizer = training.sgd(rate, weight_decay=decay, clip_norm=None)
        params = jnp.ones(2)
        return optimizer.update(params, optimizer.init(params), params)[0]

    rates, decays = jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0])
    np.testing.assert_allclose(
        jax.vmap(run)(rates, decays), -np.array([[0.1] * 2, [0.4] * 2]), rtol=1e-6)


def test_refuses_counts():
    with pytest.raises(ValueError, match="num_epochs"):
        training.cosine_by_epoch(0.1, 0.0, 0, 1)
    images, labels = _images(4)
    with pytest.raises(ValueError, match="batch_size"):
        training.evaluate(lambda *_, **__: 0, {"params": {}}, images, labels, 0)


def test_epoch_in_chunks_is_the_epoch_and_compiles_once():
    images, labels = _images()
    network, optimizer = Tiny(auxiliary=True), training.sgd(0.05)
    epoch = training.make_train_epoch(network.apply, optimizer, _augment)
    run = jax.jit(chex.assert_max_traces(epoch, n=2))
    batches = data.epoch_batches(KEY, 0, len(labels), 4)  # 6 steps
    state = _state(network, optimizer, images)
    whole, metrics = run(KEY, state, images, labels, batches, drop_path_rate=0.2)
    half, first = run(KEY, state, images, labels, batches[:3], drop_path_rate=0.2)
    half, second = run(KEY, half, images, labels, batches[3:], drop_path_rate=0.2)
    chex.assert_trees_all_close(whole, half, rtol=1e-5, atol=1e-6)
    chex.assert_shape((metrics["loss"], metrics["accuracy"]), (6,))
    np.testing.assert_allclose(
        metrics["loss"], np.concatenate([first["loss"], second["loss"]]), rtol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, whole)
    assert whole.step == 6
    assert np.any(whole.params["second"]["kernel"] != state.params["second"]["kernel"])


def test_one_step_is_the_gradient_of_the_weighted_sum():
    images, labels = _images()
    network, optimizer = Tiny(auxiliary=True), optax.sgd(1.0)
    epoch = training.make_train_epoch(
        network.apply, optimizer, auxiliary_weight=0.4, label_smoothing=0.1)
    state = _state(network, optimizer, images)
    batch = jnp.arange(8)
    new, metrics = jax.jit(epoch)(KEY, state, images, labels, batch[None])

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        (main, second), _ = network.apply(
            variables, images[batch].astype(jnp.float32), train=True, rngs={"drop_path": KEY},
            mutable=["batch_stats"])
        terms = [training.cross_entropy(x, labels[batch], 0.1) for x in (main, second)]
        return terms[0] + 0.4 * terms[1], terms[0]

    grads, main = jax.grad(loss, has_aux=True)(state.params)
    np.testing.assert_allclose(metrics["loss"], main[None], rtol=1e-5)
    chex.assert_trees_all_close(
        jax.tree.map(jnp.subtract, state.params, new.params), grads, rtol=1e-3, atol=1e-4)


def test_training_learns():
    images, labels = _images(96)
    normalize = functools.partial(data.normalize, mean=(0.5,), std=(0.25,), max_value=255.0)
    network, optimizer = Tiny(), training.sgd(0.1)
    epoch = jax.jit(training.make_train_epoch(
        network.apply, optimizer, lambda key, x: normalize(x)))
    state = _state(network, optimizer, images)
    losses = []
    for number in range(10):
        batches = data.epoch_batches(KEY, number, len(labels), 16)
        state, metrics = epoch(KEY, state, images, labels, batches)
        losses.append(metrics["loss"].mean())
    assert losses[-1] < 0.5 * losses[0]
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    scores = training.evaluate(
        network.apply, variables, images, labels, 40, normalize_fn=normalize)
    assert scores["accuracy"] > 0.9


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_every_example_counts_once(batch_size):
    images, labels = _images()
    network = Tiny()
    state = _state(network, optax.identity(), images)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    scores = jax.jit(
        lambda v: training.evaluate(network.apply, v, images, labels, batch_size))(variables)
    logits, _ = network.apply(variables, images.astype(jnp.float32), train=False)
    np.testing.assert_allclose(scores["loss"], training.cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_allclose(scores["accuracy"], np.mean(logits.argmax(-1) == labels), rtol=1e-6)


def test_two_devices_equal_one():
    """vmap with an axis name stands for the devices; batch normalisation is synchronised."""
    images, labels = _images()
    optimizer = training.sgd(0.05)
    batches = jnp.arange(24).reshape(3, 8)
    state = _state(Tiny(), optimizer, images)
    one, metrics = jax.jit(training.make_train_epoch(Tiny().apply, optimizer))(
        KEY, state, images, labels, batches)
    epoch = training.make_train_epoch(
        Tiny(axis_name="devices").apply, optimizer, axis_name="devices")
    shards = batches.reshape(3, 2, 4).swapaxes(0, 1)
    two, metrics_2 = jax.jit(jax.vmap(
        lambda rows: epoch(KEY, state, images, labels, rows), axis_name="devices"))(shards)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[0], two), one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics_2["loss"][1], metrics["loss"], rtol=1e-4)
