"""The loop over the edges of a cell: its own derivatives against JAX's of the same loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks import edge_loop

EDGES = [(node, source) for node in range(3) for source in range(node + 2)]
WIDTH = 4


def edge(params, x, shared):
    return jnp.tanh(x @ params["matrix"]) + params["weight"] * shared["sine"] * jnp.cos(x)


def share(x):
    return {"sine": jnp.sin(x) * x[::-1]}


def plan(recursive):
    nodes, sources = zip(*EDGES) if recursive else zip(*[e for e in EDGES if e[1] < 2])
    return edge_loop.Plan(edge, share, tuple(sources),
                          tuple(node + 2 * recursive for node in nodes), recursive)


def arguments(recursive):
    keys = jax.random.split(jax.random.key(0), 4)
    length = len(plan(recursive).nodes)
    params = {"matrix": jax.random.normal(keys[0], (length, WIDTH, WIDTH)),
              "weight": jax.random.normal(keys[1], (length,))}
    states = jax.random.normal(keys[2], (5 if recursive else 2, 3, WIDTH))
    return params, states, None if recursive else jax.random.normal(keys[3], (3, 3, WIDTH))


def plain(recursive, params, states, nodes):
    """The same in Python."""
    at = plan(recursive)
    read = list(states)
    written = read if recursive else list(nodes)
    for number, (node, source) in enumerate(zip(at.nodes, at.sources)):
        x = read[source]
        own = jax.tree.map(lambda leaf, number=number: leaf[number], params)
        written[node] = written[node] + edge(own, x, share(x))
    return jnp.stack(written)


def total(walk, *args):
    return jnp.sum(jnp.sin(walk(*args)) * jnp.arange(WIDTH))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def forms(recursive):
    """Return the loss by the loop with its own derivatives, by that with JAX's, and by Python."""
    loops = [functools.partial(edge_loop.run, plan(recursive), recompute=recompute)
             for recompute in (True, False)]
    return [functools.partial(total, walk)
            for walk in (*loops, functools.partial(plain, recursive))]


def same(functions, *args):
    first, *others = (jax.jit(function)(*args) for function in functions)
    for other in others:
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


def places(recursive):
    return (0, 1) if recursive else (0, 1, 2)


@pytest.mark.parametrize("recursive", [True, False])
def test_values_and_first_derivatives(recursive):
    args = arguments(recursive)
    same(forms(recursive), *args)
    same([jax.grad(form, places(recursive)) for form in forms(recursive)], *args)


@pytest.mark.parametrize("first", ["params", "states"])
@pytest.mark.parametrize("recursive", [True, False])
def test_second_derivatives(recursive, first):
    """Of a product of the gradient to `first`, to everything."""
    def product(form, *args):
        grads = jax.grad(form, places(recursive)[1:] if first == "states" else (0,))(*args)
        return sum(jnp.sum(jnp.exp(leaf / 9)) for leaf in jax.tree.leaves(grads))

    products = [functools.partial(product, form) for form in forms(recursive)]
    same([jax.grad(product, places(recursive)) for product in products], *arguments(recursive))


@pytest.mark.parametrize("wanted, again", [("weight", "weight"), ("matrix", "weight")])
def test_derivatives_of_some_parameters(wanted, again):
    """Of one leaf, and of that gradient again to one leaf: the rest is not perturbed."""
    params, states, _ = arguments(True)

    def product(form, changed):
        def loss(leaf):
            return form({**params, again: changed, wanted: leaf}, states, None)

        at = changed if wanted == again else params[wanted]
        return jnp.sum(jax.grad(loss)(at) ** 2)

    same([jax.grad(functools.partial(product, form)) for form in forms(True)], params[again])


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("moved", ["matrix", "all"])
def test_gradient_of_the_derivative_along_a_direction(recursive, moved):
    """Forward, then reverse, against Python's loop the same way and reverse twice."""
    args = arguments(recursive)

    def change(args, moved_args):
        if moved == "matrix":
            return ({**args[0], **moved_args[0]}, *args[1:])
        return (*moved_args, *args[len(moved_args):])

    start = ([{"matrix": args[0]["matrix"]}] if moved == "matrix"
             else [args[i] for i in places(recursive)])
    along = jax.tree.map(lambda leaf: jnp.cos(3 * leaf), start)

    def forward(form, *args):
        return jax.jvp(lambda *moved_args: form(*change(args, moved_args)), start, along)[1]

    def twice(form, *args):
        grads = jax.grad(lambda moved_args: form(*change(args, moved_args)))(start)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(along)))

    loop = functools.partial(total, functools.partial(
        edge_loop.run, plan(recursive), recompute=True, forward_mode=True))
    own, _, python = forms(recursive)
    functions = [functools.partial(forward, loop), functools.partial(forward, python),
                 functools.partial(twice, own)]
    same(functions, *args)
    if moved == "matrix":  # `start` is a constant: what else there is
        def others(function):
            def of(weight, *rest):
                return function({**args[0], "weight": weight}, *rest)
            return jax.grad(of, places(recursive))

        same([others(function) for function in functions], args[0]["weight"], *args[1:])


@pytest.mark.slow  # 15 s, and of no use to a search
def test_the_third_derivative_under_vmap():
    params, states, _ = arguments(True)

    def along(form, shift):
        return form(params, states + shift * jnp.cos(states), None)

    def third(form):
        return jax.vmap(jax.grad(jax.grad(jax.grad(functools.partial(along, form)))))

    same([third(form) for form in forms(True)], jnp.array([0.0, 0.1]))


def test_gradients_nobody_wants_are_not_computed():
    params, states, _ = arguments(True)

    def products(*wanted):
        def loss(kept):
            return forms(True)[0]({**params, **kept}, states, None)

        kept = {name: params[name] for name in wanted}
        return str(jax.make_jaxpr(jax.grad(loss))(kept)).count("dot_general")

    # of an edge: forward, again in the loop back, its gradient to x, its gradient to the matrix
    assert products("weight") == 3 and products("weight", "matrix") == 4
