"""Shared weights: what a step moves, what it leaves, and what a score is."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import objectives, search, training
from jaxnas.evaluators.weight_sharing import weight_sharing, where_used
from jaxnas.networks.chain import MacroNetwork
from jaxnas.networks.chain_traced import TracedMacroNetwork
from jaxnas.networks.controllers import independent_logits
from jaxnas.networks.used_parameters import used_parameters
from jaxnas.searchers import reinforce

CLASSES, PIXELS = 3, 4


def apply_fn(variables, x, arch, *, train, drop_path_rate=0.0, rngs=None, mutable=()):
    """Choose one of two classifiers of images that are centred as batch normalisation does it."""
    params, stats = variables["params"], variables["batch_stats"]
    flat = x.reshape(len(x), -1)
    mean = flat.mean(0) if train else stats["mean"]
    logits = (flat - mean) @ params["bank"][arch[0]] + params["bias"]
    if not mutable:
        return logits
    return logits, {"batch_stats": {"mean": 0.9 * stats["mean"] + 0.1 * mean}}


def used_fn(params, arch):
    return {"bank": (jnp.arange(2) == arch[0])[:, None, None], "bias": jnp.ones(1, bool)}


def variables():
    random = np.random.default_rng(0)
    return {
        "params": {"bank": jnp.array(random.normal(size=(2, PIXELS, CLASSES)), jnp.float32),
                   "bias": jnp.ones(CLASSES)},
        "batch_stats": {"mean": jnp.ones(PIXELS)},
    }  # fmt: skip


def examples(count=12):
    random = np.random.default_rng(1)
    images = random.integers(0, 4, (count, 2, 2, 1)).astype(np.float32)
    return jnp.array(images), jnp.array(random.integers(0, CLASSES, count), jnp.int32)


OPTIMIZER = training.sgd(0.1, momentum=0.5, weight_decay=0.2, clip_norm=1.0)
KEY = jax.random.key(0)
A, B = jnp.array([[0]]), jnp.array([[1]])


def trained(archs, **options):
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn, **options)
    state = shared.init(variables())
    step = jax.jit(shared.train_step)
    states = [state]
    for arch in archs:
        states.append(step(KEY, states[-1], arch, *examples())[0])
    return states


def momentum(state):
    return next(part.trace for part in state.optimizer_state if hasattr(part, "trace"))


def test_what_is_not_used_stays_bit_by_bit():
    start, first, second, third = trained([A, B, A])
    bank = [np.asarray(s.params["bank"]) for s in (start, first, second, third)]
    trace = [np.asarray(momentum(s)["bank"]) for s in (start, first, second, third)]
    for values in (bank, trace):
        np.testing.assert_array_equal(values[1][1], values[0][1])
        np.testing.assert_array_equal(values[2][0], values[1][0])  # with momentum from before
        np.testing.assert_array_equal(values[3][1], values[2][1])
        assert (values[1][0] != values[0][0]).all() and (values[2][1] != values[1][1]).all()
    assert (np.asarray(first.params["bias"]) != np.asarray(start.params["bias"])).any()
    assert int(third.step) == 3


def test_update_all_decays_and_drifts_as_published():
    start, first, second = trained([A, B], update="all")
    w0, w1, w2 = (np.asarray(s.params["bank"], np.float64) for s in (start, first, second))
    # The gradient is 0: v1 = 0.2 w0, w1 = w0 - 0.1 v1.
    np.testing.assert_allclose(w1[1], w0[1] * (1 - 0.1 * 0.2), rtol=1e-6)
    v1 = np.asarray(momentum(first)["bank"], np.float64)[0]
    v2 = 0.5 * v1 + 0.2 * w1[0]
    np.testing.assert_allclose(w2[0], w1[0] - 0.1 * v2, rtol=1e-5)


@pytest.mark.parametrize("update", ["used", "all"])
def test_several_architectures_a_step_average_their_gradients(update):
    plain = weight_sharing(apply_fn, optax.sgd(1.0), used_fn=used_fn, update=update)
    state = plain.init(variables())
    step, batch = jax.jit(plain.train_step), examples()

    def change(archs):
        new, metrics = step(KEY, state, archs, *batch)
        return jax.tree.map(jnp.subtract, new.params, state.params), metrics

    (one, metric_one), (other, metric_other) = change(A), change(B)
    both, metrics = change(jnp.array([[0], [1]]))
    chex.assert_trees_all_close(
        both, jax.tree.map(lambda a, b: (a + b) / 2, one, other), atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], (metric_one["loss"] + metric_other["loss"]) / 2,
                               rtol=1e-6)
    twice, _ = change(jnp.array([[0], [0]]))
    chex.assert_trees_all_close(twice, one, atol=1e-6)


@pytest.mark.parametrize("update, arch", [
    ("used", [1]), pytest.param("used", [1, 3, 1], marks=pytest.mark.slow),
    pytest.param("all", [1, 3, 1], marks=pytest.mark.slow)])
def test_one_architecture_is_plain_training(update, arch):
    """A controller that always says the same trains that child as `training` does."""
    network = TracedMacroNetwork(1 if len(arch) == 1 else 2, features=2, num_classes=CLASSES)
    arch = jnp.array(arch, jnp.int32)
    random = np.random.default_rng(2)
    images = jnp.array(random.normal(size=(8, 4, 4, 1)), jnp.float32)
    labels = jnp.array(random.integers(0, CLASSES, 8), jnp.int32)
    batches = jnp.array([[0, 1, 2, 3], [4, 5, 6, 7], [1, 3, 5, 7]])
    start = jax.jit(lambda key: network.init(key, images, arch, train=False))(KEY)
    shared = weight_sharing(
        network.apply, OPTIMIZER, used_fn=functools.partial(used_parameters, network),
        update=update)
    state, metrics = jax.jit(shared.train_epoch)(
        KEY, shared.init(start), jnp.tile(arch, (3, 1, 1)), images, labels, batches)
    static = tuple(arch.tolist())
    child = MacroNetwork(static, 2, "search", num_classes=CLASSES)
    cut = network.extract(start, np.asarray(arch))
    expected, expected_metrics = jax.jit(training.make_train_epoch(child.apply, OPTIMIZER))(
        KEY, training.init_state(cut, OPTIMIZER), images, labels, batches)
    found = network.extract(
        {"params": state.params, "batch_stats": state.batch_stats}, np.asarray(arch))
    chex.assert_trees_all_close(found["params"], dict(expected.params), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        found["batch_stats"], dict(expected.batch_stats), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)
    # Of the other sub-networks nothing moved, or all of it by weight decay.
    before, after = (np.asarray(tree["layers_0"]["kernel_conv_5x5"])
                     for tree in (start["params"], state.params))
    if update == "used":
        np.testing.assert_array_equal(after, before)
    else:
        assert (np.abs(after) < np.abs(before)).all()


def expected_scores(state, arch, images, labels, rows):
    flat = np.asarray(images, np.float64)[rows].reshape(len(rows), -1)
    logits = (flat - flat.mean(0)) @ np.asarray(state.params["bank"])[arch] + 1.0
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), labels[rows]]
    return logits.argmax(1) == np.asarray(labels)[rows], losses


def test_rescore_counts_every_image_once():
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn)
    state, (images, labels) = shared.init(variables()), examples(11)
    scores = jax.jit(functools.partial(shared.rescore, batch_size=4))(
        state, jnp.array([[0], [1]]), images, labels)
    for arch in (0, 1):
        hits, losses = [], []
        for rows, real in (([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4), ([8, 9, 10, 0], 3)):
            hit, loss = expected_scores(state, arch, images, labels, np.array(rows))
            hits.append(hit[:real])
            losses.append(loss[:real])
        np.testing.assert_allclose(
            scores["valid_accuracy"][arch], 100 * np.concatenate(hits).mean(), rtol=1e-6)
        np.testing.assert_allclose(
            scores["valid_loss"][arch], np.concatenate(losses).mean(), rtol=1e-5)


def test_minibatch_scores():
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn)
    state, (images, labels) = shared.init(variables()), examples(11)
    archs = jnp.array([[1], [1], [1]])
    whole = shared.evaluator(state, images, labels, batch_size=11)(KEY, archs)
    hits, losses = expected_scores(state, 1, images, labels, np.arange(11))
    np.testing.assert_allclose(whole["valid_accuracy"], 100 * hits.mean(), rtol=1e-6)
    np.testing.assert_allclose(whole["valid_loss"], losses.mean(), rtol=1e-5)
    each = shared.evaluator(state, images, labels, batch_size=4)(KEY, archs)
    assert len(set(np.asarray(each["valid_loss"]).tolist())) == 3
    one = shared.evaluator(state, images, labels, batch_size=4, minibatch="shared")(KEY, archs)
    assert len(set(np.asarray(one["valid_loss"]).tolist())) == 1


def test_statistics_of_the_batch_or_running_ones():
    images, labels = examples()
    losses = {}
    for statistics in ("batch", "running"):
        shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn, statistics=statistics)
        state = shared.init(variables())
        losses[statistics] = shared.rescore(state, A, images, labels, batch_size=12)["valid_loss"]
        moved = state._replace(batch_stats={"mean": jnp.zeros(PIXELS)})
        again = shared.rescore(moved, A, images, labels, batch_size=12)["valid_loss"]
        assert bool((again == losses[statistics]).all()) == (statistics == "batch")
    assert losses["batch"] != losses["running"]


def test_a_score_that_is_not_finite_has_failed():
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn)
    state, (images, labels) = shared.init(variables()), examples()
    broken = state._replace(params=state.params | {
        "bank": state.params["bank"].at[1].set(jnp.nan)})
    scores = shared.rescore(broken, jnp.array([[0], [1]]), images, labels, batch_size=12)
    assert np.isfinite(scores["valid_accuracy"][0]) and np.isnan(scores["valid_accuracy"][1])


def test_a_controller_learns_from_weights_that_it_does_not_touch():
    """Classifier 1 is always right, 0 never: REINFORCE finds it, in one program."""
    images, labels = examples(30)
    images = images.at[:, 0, 0, 0].set(labels)
    bank = np.zeros((2, PIXELS, CLASSES), np.float32)
    bank[1, 0] = [-50, 0, 50]
    start = variables() | {"params": {"bank": jnp.array(bank), "bias": jnp.zeros(CLASSES)}}
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn)
    state = shared.init(start)
    before = jax.tree.map(np.array, state)
    searcher = reinforce(independent_logits((2,)), optimizer=optax.adam(0.1), batch_size=4)

    def run(key, state):
        evaluator = shared.evaluator(state, images, labels, batch_size=8)
        return search.advance(search.init(key, searcher), searcher, evaluator,
                              objectives.power("valid_accuracy", 1), num_steps=60)

    controller, history = jax.jit(chex.assert_max_traces(run, n=1))(KEY, state)
    assert history.archs[-10:].mean() > 0.9
    assert controller.searcher.baseline > 0
    chex.assert_trees_all_equal(jax.tree.map(np.array, state), before)
    # and no derivative leads from a score to the weights' trainer or back: archs are integers
    assert history.archs.dtype == jnp.int32


def test_one_program_serves_all_architectures():
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn)
    step = jax.jit(chex.assert_max_traces(shared.train_step, n=1))
    state = shared.init(variables())
    for arch in (A, B, A):
        new, _ = step(KEY, state, arch, *examples())
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        state = new


def test_where_used_takes_counters_from_the_new_state():
    params = {"w": jnp.zeros(2)}
    optimizer = optax.adam(0.1)
    old = optimizer.init(params)
    _, new = optimizer.update({"w": jnp.ones(2)}, old, params)
    mixed = where_used({"w": jnp.array([True, False])}, new, old)
    assert int(mixed[0].count) == 1
    np.testing.assert_allclose(mixed[0].mu["w"], [0.1, 0.0], rtol=1e-6)


@pytest.mark.parametrize("options, word", [
    ({"update": "some"}, "update"), ({"statistics": "moving"}, "statistics"),
    ({"used_fn": None}, "used_fn")])
def test_bad_options(options, word):
    with pytest.raises(ValueError, match=word):
        weight_sharing(apply_fn, OPTIMIZER, **{"used_fn": used_fn, **options})


def test_bad_batches():
    shared = weight_sharing(apply_fn, OPTIMIZER, used_fn=used_fn)
    state, (images, labels) = shared.init(variables()), examples()
    with pytest.raises(ValueError, match=r"\[1, 12\]"):
        shared.evaluator(state, images, labels, batch_size=13)
    with pytest.raises(ValueError, match="minibatch"):
        shared.evaluator(state, images, labels, batch_size=3, minibatch="none")
    with pytest.raises(ValueError, match="batch_size"):
        shared.rescore(state, A, images, labels, batch_size=0)
