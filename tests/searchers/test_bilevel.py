"""The gradient of the alphas: closed forms, float64 differences, and its own forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas.searchers import BilevelState, bilevel

EXACT = ("unrolled", "hessian_vector")
INNERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.chain(
        optax.add_decayed_weights(3e-2), optax.trace(0.9), optax.scale(-0.1)
    ),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(0.3, momentum=0.9)),
    "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.2, 10)),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.01),
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def smooth_loss(weights, alphas, batch):
    """A small smooth network: two mixed layers, tanh and softplus weighted by softmax(alphas)."""
    x = batch["x"]
    for kernel, row in zip(weights, jax.nn.softmax(alphas["ops"])):
        z = x @ kernel
        x = row[0] * jnp.tanh(z) + row[1] * jax.nn.softplus(z) + row[2] * x
    return jnp.mean((x.sum(-1) - batch["y"]) ** 2) + 0.1 * jnp.sum(alphas["shift"] * x.mean(0))


def problem(seed=0, steps=None):
    keys = jax.random.split(jax.random.key(seed), 8)
    weights = [0.5 * jax.random.normal(k, (4, 4)) for k in keys[:2]]
    alphas = {"ops": jax.random.normal(keys[2], (2, 3)), "shift": jax.random.normal(keys[3], (4,))}

    def batch(key, lead=()):
        x_key, y_key = jax.random.split(key)
        x = jax.random.normal(x_key, (*lead, 6, 4))
        return {"x": x, "y": jax.random.normal(y_key, (*lead, 6))}

    return weights, alphas, batch(keys[4], () if steps is None else (steps,)), batch(keys[5])


def warm_state(optimizer, weights, alphas, train, valid):
    """Take two steps, so that momentum and counters are not at their initial zeros."""
    state = optimizer.init(weights, alphas)
    for _ in range(2):
        state, _ = optimizer.update(state, train, valid)
    return state


@pytest.mark.parametrize(
    "gradient, target",
    [("first_order", (2.0, 2.0)), ("unrolled", (1.0, 1.0)), ("hessian_vector", (1.0, 1.0)),
     ("finite_difference", (1.0, 1.0))],
)
def test_toy_of_the_paper(gradient, target):
    # Specification 1.9.3: from (a, w) = (2, -2), xi = 0 ends at (2, 2); xi = 0.5 at (1, 1).
    def loss(w, a, is_valid):
        return jnp.where(is_valid, a * w - 2 * a + 1, w**2 - 2 * a * w + a**2)

    optimizer = bilevel(loss, optax.sgd(0.5), optax.sgd(0.05), gradient=gradient)
    state = optimizer.init(jnp.array(-2.0), jnp.array(2.0))

    def step(state, _):
        return optimizer.update(state, False, True)

    state, _ = jax.lax.scan(step, state, None, length=1000)
    np.testing.assert_allclose((state.alphas, state.weights), target, atol=1e-6)


@pytest.mark.parametrize("gradient", EXACT)
def test_toy_gradient_in_closed_form(gradient):
    # g = (w' - 2) + 2 xi a with w' = w - xi (2 w - 2 a); the usual mistake drops 2 xi a.
    xi, w, a = 0.3, -2.0, 2.0

    def loss(w, a, is_valid):
        return jnp.where(is_valid, a * w - 2 * a + 1, (w - a) ** 2)

    optimizer = bilevel(loss, optax.sgd(xi), optax.sgd(1.0), gradient=gradient)
    _, grad = optimizer.gradient(optimizer.init(jnp.array(w), jnp.array(a)), False, True)
    look_ahead = w - xi * (2 * w - 2 * a)
    np.testing.assert_allclose(grad, (look_ahead - 2) + 2 * xi * a, rtol=1e-14)


@pytest.mark.parametrize("name", INNERS)
@pytest.mark.parametrize("gradient", EXACT)
def test_gradient_equals_differences_of_the_whole_objective(gradient, name):
    inner = INNERS[name]()
    weights, alphas, train, valid = problem()
    optimizer = bilevel(smooth_loss, inner, optax.sgd(0.1), gradient=gradient)
    state = warm_state(optimizer, weights, alphas, train, valid)
    _, grad = optimizer.gradient(state, train, valid)

    flat, unravel = jax.flatten_util.ravel_pytree(state.alphas)

    @jax.jit
    def objective(flat):
        grads = jax.grad(smooth_loss)(state.weights, unravel(flat), train)
        updates, _ = inner.update(grads, state.inner_state, state.weights)
        return smooth_loss(optax.apply_updates(state.weights, updates), unravel(flat), valid)

    step = 1e-5
    numeric = [
        (objective(flat.at[i].add(step)) - objective(flat.at[i].add(-step))) / (2 * step)
        for i in range(flat.size)
    ]
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(grad)[0], numeric, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", INNERS)
def test_exact_forms_agree(name):
    weights, alphas, train, valid = problem(1)
    make = functools.partial(bilevel, smooth_loss, INNERS[name](), optax.adam(0.1))
    unrolled, product = make(gradient="unrolled"), make(gradient="hessian_vector")
    forward = make(gradient="hessian_vector", forward_loss_fn=smooth_loss)
    state = warm_state(unrolled, weights, alphas, train, valid)
    one, other = (m.gradient(state, train, valid)[1] for m in (unrolled, product))
    chex.assert_trees_all_close(one, other, rtol=1e-10, atol=1e-13)
    other = forward.gradient(state, train, valid)[1]
    chex.assert_trees_all_close(one, other, rtol=1e-10, atol=1e-13)
    remat = make(gradient="unrolled", remat=True).gradient(state, train, valid)[1]
    chex.assert_trees_all_close(one, remat, rtol=1e-12, atol=1e-14)


def relative_error(grad, reference):
    """Error relative to the second-order part alone, which is small in the whole gradient."""
    exact, first = reference
    part = optax.tree.norm(optax.tree.sub(exact, first))
    return float(optax.tree.norm(optax.tree.sub(grad, exact)) / part)


def paper_gradients(radius=1e-4):
    weights, alphas, train, valid = problem(2)
    inner = INNERS["momentum"]()
    forms = {
        name: bilevel(smooth_loss, inner, optax.sgd(0.1), gradient=name, radius=radius)
        for name in ("first_order", "unrolled", "finite_difference")
    }
    state = warm_state(forms["unrolled"], weights, alphas, train, valid)
    grads = {name: form.gradient(state, train, valid)[1] for name, form in forms.items()}
    return grads, (grads["unrolled"], grads["first_order"]), (state, train, valid)


def test_published_finite_difference_on_a_smooth_loss():
    grads, reference, _ = paper_gradients()
    assert relative_error(grads["finite_difference"], reference) < 1e-6


def test_the_famous_wrong_gradient_is_detected():
    # pt.darts and its copies multiply by eps where they should divide: (p - n) / 2. * eps. The
    # bound that the right form meets above must reject it, and it must look like first order.
    _, (exact, first), (state, train, valid) = paper_gradients()
    inner, radius = INNERS["momentum"](), 1e-4
    grads = jax.grad(smooth_loss)(state.weights, state.alphas, train)
    updates, _ = inner.update(grads, state.inner_state, state.weights)
    ahead = optax.apply_updates(state.weights, updates)
    v, direct = jax.grad(smooth_loss, (0, 1))(ahead, state.alphas, valid)
    eps = radius / optax.tree.norm(v)
    plus, minus = (
        jax.grad(smooth_loss, 1)(optax.tree.add_scale(state.weights, s * eps, v), state.alphas,
                                 train)
        for s in (1, -1)
    )

    def total(scale):
        return jax.tree.map(lambda d, p, m: d - 0.1 * (p - m) * scale, direct, plus, minus)

    reference = (exact, direct)
    assert relative_error(total(1 / (2 * eps)), reference) < 1e-6
    assert relative_error(total(eps / 2), reference) > 0.99
    del first


@pytest.mark.parametrize("remat", [False, True])
def test_many_inner_steps_equal_the_loop(remat):
    weights, alphas, batches, valid = problem(3, steps=3)
    inner = INNERS["momentum"]()
    optimizer = bilevel(
        smooth_loss, inner, optax.sgd(0.1), gradient="unrolled", inner_steps=3, remat=remat
    )
    state = optimizer.init(weights, alphas)

    def objective(alphas):
        w, s = state.weights, state.inner_state
        for k in range(3):
            batch = jax.tree.map(lambda a: a[k], batches)
            updates, s = inner.update(jax.grad(smooth_loss)(w, alphas, batch), s, w)
            w = optax.apply_updates(w, updates)
        return smooth_loss(w, alphas, valid), w

    grad = jax.grad(lambda a: objective(a)[0])(state.alphas)
    chex.assert_trees_all_close(optimizer.gradient(state, batches, valid)[1], grad, rtol=1e-10)
    new_state, info = optimizer.update(state, batches, valid)
    chex.assert_trees_all_close(
        new_state.weights, objective(new_state.alphas)[1], rtol=1e-10
    )
    assert info["train_loss"].shape == ()


@pytest.mark.parametrize("gradient", ["first_order", *EXACT, "finite_difference"])
def test_composes_and_never_recompiles(gradient):
    weights, alphas, train, valid = problem(4)
    optimizer = bilevel(
        smooth_loss, INNERS["clipped"](), optax.adam(1e-2), gradient=gradient
    )
    state = optimizer.init(weights, alphas)
    jitted = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    one, info = jitted(state, train, valid)
    two, _ = jitted(one, train, valid)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, two)
    eager, _ = optimizer.update(state, train, valid)
    chex.assert_trees_all_close(one, eager, rtol=1e-12, atol=1e-14)
    scanned, _ = jax.lax.scan(
        lambda s, _: optimizer.update(s, train, valid), state, None, length=2
    )
    chex.assert_trees_all_close(scanned, two, rtol=1e-12, atol=1e-14)
    many = jax.tree.map(lambda a: jnp.stack([a, a]), state)
    mapped, _ = jax.vmap(optimizer.update, (0, None, None))(many, train, valid)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], mapped), one, rtol=1e-10, atol=1e-13)
    assert set(info) == {"train_loss", "valid_loss"}


def test_vmap_over_hyper_parameters():
    weights, alphas, train, valid = problem(5)

    def run(rate, radius):
        optimizer = bilevel(
            smooth_loss, optax.sgd(rate), optax.sgd(0.1), gradient="finite_difference",
            radius=radius,
        )
        return optimizer.update(optimizer.init(weights, alphas), train, valid)[0].alphas["ops"]

    rates, radii = jnp.array([0.1, 0.2]), jnp.array([1e-3, 1e-2])
    mapped = jax.jit(jax.vmap(run))(rates, radii)
    np.testing.assert_allclose(mapped[1], run(0.2, 1e-2), rtol=1e-9)


@pytest.mark.parametrize("gradient", ["first_order", *EXACT, "finite_difference"])
def test_steps_touch_only_their_own(gradient):
    weights, alphas, train, valid = problem(6)
    frozen = optax.set_to_zero()
    optimizer = bilevel(smooth_loss, INNERS["sgd"](), frozen, gradient=gradient)
    state, _ = optimizer.update(optimizer.init(weights, alphas), train, valid)
    chex.assert_trees_all_equal(state.alphas, alphas)
    other = bilevel(smooth_loss, frozen, optax.sgd(0.1), gradient=gradient)
    state, _ = other.update(other.init(weights, alphas), train, valid)
    chex.assert_trees_all_equal(state.weights, weights)


def test_virtual_optimizer_without_clipping():
    # Below the clip both are one; above it the look-ahead must be that of the unclipped chain.
    weights, alphas, train, valid = problem(7)
    plain = optax.chain(optax.trace(0.9), optax.scale(-0.1))
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.trace(0.9), optax.scale(-0.1))
    for gradient in EXACT:
        optimizer = bilevel(
            smooth_loss, clipped, optax.sgd(0.1), gradient=gradient, virtual=plain,
            virtual_state=lambda state: state[1:],
        )
        reference = bilevel(smooth_loss, plain, optax.sgd(0.1), gradient=gradient)
        one = optimizer.gradient(optimizer.init(weights, alphas), train, valid)[1]
        two = reference.gradient(reference.init(weights, alphas), train, valid)[1]
        chex.assert_trees_all_close(one, two, rtol=1e-12)


@pytest.mark.parametrize("gradient", ["first_order", *EXACT, "finite_difference"])
def test_devices_equal_one(gradient):
    devices = jax.local_devices()
    if len(devices) < 4:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    weights, alphas, train, valid = problem(8)
    train, valid = (jax.tree.map(lambda a: jnp.concatenate([a, 2 * a]), b) for b in (train, valid))
    one = bilevel(smooth_loss, INNERS["clipped"](), optax.sgd(0.1), gradient=gradient)
    state = one.init(weights, alphas)
    many = bilevel(
        lambda w, a, b: smooth_loss(w, a, b), INNERS["clipped"](), optax.sgd(0.1),
        gradient=gradient, axis_name="devices",
    )

    def shard(batch):
        return jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch)

    step = jax.pmap(many.update, axis_name="devices", devices=devices[:4])
    copies = jax.tree.map(lambda a: jnp.stack([a] * 4), state)
    for _ in range(3):
        state, _ = one.update(state, train, valid)
        copies, _ = step(copies, shard(train), shard(valid))
    for device in range(4):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a: a[device], copies), state, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"gradient": "second"}, "first_order"),
        ({"inner_steps": 0}, "1 or more"),
        ({"inner_steps": 2, "gradient": "hessian_vector"}, "unrolled"),
        ({"radius": 0.0}, "above 0"),
        ({"gradient": "first_order", "virtual": optax.sgd(0.1)}, "virtual"),
        ({"gradient": "first_order", "remat": True}, "remat"),
        ({"reuse_gradient": True}, "reuse_gradient"),
        ({"forward_loss_fn": smooth_loss}, "forward_loss_fn"),
    ],
)
def test_errors_when_built(options, words):
    with pytest.raises(ValueError, match=words):
        bilevel(smooth_loss, optax.sgd(0.1), optax.sgd(0.1), **options)


def test_reuse_gradient_changes_nothing():
    weights, alphas, train, valid = problem(9)
    states = []
    for reuse in (False, True):
        optimizer = bilevel(
            smooth_loss, INNERS["sgd"](), optax.sgd(0.1), gradient="first_order",
            reuse_gradient=reuse,
        )
        states.append(optimizer.update(optimizer.init(weights, alphas), train, valid)[0])
    assert isinstance(states[0], BilevelState)
    chex.assert_trees_all_close(*states, rtol=1e-12)
