"""The PyTorch baseline computes what ours does: logits, losses, every gradient, every operation.

Float32 is compared to 1e-4 of the largest entry, float64 to 1e-9. Near a kink of ReLU, or where
two pixels of a max pool are all but equal, float32 may take the other side and be off by more:
random normal images and fixed seeds keep these tests away from it. Exact ties (zeros after a ReLU)
are no trouble: both sides give the gradient of a max pool to the first pixel, of ReLU at 0 to none.
"""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from benchmarks import bench_torch, torch_darts, torch_weights  # noqa: E402
from jaxnas import training  # noqa: E402
from jaxnas.genotypes import PUBLISHED  # noqa: E402
from jaxnas.networks.operations import OPERATIONS  # noqa: E402
from jaxnas.search_spaces import DARTS  # noqa: E402
from jaxnas.searchers import bilevel  # noqa: E402

torch.set_num_threads(1)  # arrays are tiny, and threads that wait for a busy core spin
SPACE = DARTS()
SMALL = DARTS(num_nodes=2, operations=("none", "max_pool_3x3", "skip_connect"))
TWO_NODES = DARTS(num_nodes=2)
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}
RATE, DECAY = 0.025, 3e-4
BATCH, PIXELS, FEATURES, LAYERS = 4, 8, 4, 3
# Compiling ours takes most of the time: float32 is for the slow tests, and method="conv", which is
# smaller, stands in for "shifts" where no gradient of second order is taken (test_depthwise.py
# shows that they are equal).
DTYPES = pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)],
    ids=lambda dtype: dtype.__name__)


def precision(dtype):
    return jax.enable_x64(True) if dtype is np.float64 else contextlib.nullcontext()


def fill(shapes, rng, dtype):
    """Draw small parameters of these shapes; scales around 1."""
    def one(path, shape):
        draw = 0.3 * rng.standard_normal(shape.shape)
        return (draw + ("scale" in str(path[-1]))).astype(dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def batches(rng, dtype, number):
    return [(rng.standard_normal((BATCH, PIXELS, PIXELS, 3)).astype(dtype),
             rng.integers(10, size=BATCH)) for _ in range(number)]


def theirs(batch, memory_format="channels_last"):
    images, labels = batch
    return torch_weights.to_torch(images, memory_format), torch_weights.to_torch(labels)


def assert_close(ours, others, dtype):
    """Compare two trees of arrays, every leaf to the tolerance of its largest entry."""
    assert jax.tree.structure(ours) == jax.tree.structure(others)
    for (path, one), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(others)):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape and one.dtype == other.dtype == dtype, path
        error, largest = np.abs(one - other).max(), np.abs(one).max()
        assert error <= TOLERANCE[dtype] * largest, (path, error, largest)


def make_supernets(space=SPACE, layers=LAYERS, method="shifts"):
    sizes = {"features": FEATURES, "num_layers": layers}
    return space.supernet(method=method, **sizes), torch_darts.TorchSupernet(
        space.operations, num_nodes=space.num_nodes, **sizes)


def draw_supernet(space, net, rng, dtype):
    image = jnp.zeros((2, PIXELS, PIXELS, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(0), image, jnp.zeros(space.alphas_shape))
    alphas = rng.standard_normal(space.alphas_shape).astype(dtype)
    return fill(shapes, rng, dtype), alphas


@pytest.mark.parametrize("layers", [3, 5, 8])
def test_supernet_weights_go_round(layers):
    net, other = make_supernets(layers=layers)
    for dtype in (np.float32, np.float64):
        variables, _ = draw_supernet(SPACE, net, np.random.default_rng(0), dtype)
        params = torch_weights.supernet_to_torch(variables, other)
        assert sum(p.numel() for p in params.values()) == sum(
            leaf.size for leaf in jax.tree.leaves(variables))
        back = torch_weights.supernet_from_torch(params, other)
        jax.tree.map(np.testing.assert_array_equal, back, variables)
        assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(dtype)}


@DTYPES
def test_logits(dtype):
    rng = np.random.default_rng(4)
    space = TWO_NODES
    net, other = make_supernets(space, layers=4, method="conv")
    variables, alphas = draw_supernet(space, net, rng, dtype)
    ((images, _),) = batches(rng, dtype, 1)
    with precision(dtype):
        logits = jax.jit(net.apply)(variables, images, space.weights(alphas))
    for memory_format in torch_darts.FORMATS:
        params = torch_weights.supernet_to_torch(variables, other, memory_format)
        found = other.apply(params, torch_weights.to_torch(images, memory_format),
                            torch.from_numpy(alphas).softmax(-1))
        assert_close(logits, found.numpy(), dtype)


@pytest.mark.parametrize("space, dtype", [
    pytest.param(SMALL, np.float64, id="small"),
    pytest.param(SPACE, np.float64, id="float64", marks=pytest.mark.slow),
    pytest.param(SPACE, np.float32, id="float32", marks=pytest.mark.slow)])
def test_gradients(space, dtype):
    rng = np.random.default_rng(1)
    net, other = make_supernets(space)
    variables, alphas = draw_supernet(space, net, rng, dtype)
    train, valid = batches(rng, dtype, 2)

    def loss_fn(variables, alphas, batch, net=net):
        logits = net.apply(variables, batch[0], space.weights(alphas))
        return training.cross_entropy(logits, batch[1])

    forward = functools.partial(loss_fn, net=net.clone(forward_mode=True))
    programs = {}  # shared by the two forms of second order: half the compilations

    def program(name, function):
        return programs.setdefault(name, jax.jit(function))

    inner = optax.chain(optax.add_decayed_weights(DECAY), optax.trace(0.9), optax.scale(-RATE))
    forms = {
        name: bilevel(loss_fn, inner, optax.sgd(1.0), gradient=name, program=program,
                      forward_loss_fn=forward if name == "hessian_vector" else None)
        for name in ("hessian_vector", "finite_difference")}
    value, alphas_there = torch_darts.supernet_loss(other), torch.from_numpy(alphas)
    with precision(dtype):
        loss, grads = programs["gradients"](variables, alphas, train)
        for memory_format in torch_darts.FORMATS:
            params = torch_weights.supernet_to_torch(variables, other, memory_format)
            first, second = theirs(train, memory_format), theirs(valid, memory_format)
            loss_there, weights = torch_darts.weight_gradient(value, params, alphas_there, first)
            again, outer = torch_darts.alpha_gradient(value, params, alphas_there, first)
            assert again == loss_there
            weights = torch_weights.supernet_from_torch(weights, other)
            assert_close((loss, grads), (loss_there.numpy(), (weights, outer.numpy())), dtype)
        if dtype is np.float32:  # it has no digits left for the second order near kinks
            return
        state = forms["hessian_vector"].init(variables, alphas)
        for name, function in (("hessian_vector", torch_darts.exact),
                               ("finite_difference", torch_darts.finite_difference)):
            ours = forms[name].gradient(state, train, valid)
            there = function(value, params, alphas_there, first, second,
                             rate=RATE, weight_decay=DECAY)
            assert_close(ours, tuple(a.numpy() for a in there), dtype)


@DTYPES
def test_operations(dtype):
    names = [(name, stride) for name in OPERATIONS for stride in (1, 2)]
    rng = np.random.default_rng(2)
    blank = jnp.zeros((BATCH, PIXELS, PIXELS, FEATURES))
    modules = {key: OPERATIONS[key[0]](FEATURES, key[1], method="conv") for key in names}
    shapes = {
        key: jax.eval_shape(lambda m=module: m.init(jax.random.key(0), blank, train=False))
        for key, module in modules.items()}
    params = [fill(shapes[key].get("params", {}), rng, dtype) for key in names]
    stats = [jax.tree.map(lambda a: np.zeros(a.shape, dtype), shapes[key].get("batch_stats", {}))
             for key in names]
    x = rng.standard_normal(blank.shape).astype(dtype)
    outer = [rng.standard_normal((BATCH, PIXELS // stride, PIXELS // stride, FEATURES))
             .astype(dtype) for _, stride in names]
    with precision(dtype):
        def apply(params, x, number):
            variables = {"params": params, "batch_stats": stats[number]}
            return modules[names[number]].apply(
                variables, x, train=True, mutable=["batch_stats"])[0]

        @jax.jit
        def all_of_them(params, x, outer):
            results = []
            for number, (own, cotangent) in enumerate(zip(params, outer)):
                y, pull = jax.vjp(lambda p, x, n=number: apply(p, x, n), own, x)
                results.append((y, *pull(cotangent)))
            return results

        ours = all_of_them(params, x, outer)
        for (name, stride), own, cotangent, expected in zip(names, params, outer, ours):
            there = torch_weights.network_to_torch({"params": own})
            back = torch_weights.network_from_torch(there)["params"]
            jax.tree.map(np.testing.assert_array_equal, back, own)
            there = {key: value.requires_grad_() for key, value in there.items()}
            image = torch_weights.to_torch(x, "channels_last").requires_grad_()
            y = torch_darts.operation(name, there, "", image, stride)
            grads = torch.autograd.grad(
                y, [image, *there.values()], torch_weights.to_torch(cotangent))
            weights = torch_weights.network_from_torch(dict(zip(there, grads[1:])))["params"]
            found = (nhwc(y), weights, nhwc(grads[0]))
            assert_close({name: expected}, {name: found}, dtype)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", [
    "DARTS_V2", pytest.param("AMOEBANET_A_DARTS", marks=pytest.mark.slow)])
@DTYPES
def test_network(name, dtype):
    rng = np.random.default_rng(3)
    net = SPACE.network(PUBLISHED[name], features=FEATURES, layers=LAYERS, method="conv")
    other = torch_darts.TorchNetwork(PUBLISHED[name], FEATURES, LAYERS)
    image = jnp.zeros((2, PIXELS, PIXELS, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), image, train=False))
    params = fill(shapes["params"], rng, dtype)
    stats = jax.tree.map(lambda a: np.zeros(a.shape, dtype), shapes["batch_stats"])
    (batch,) = batches(rng, dtype, 1)
    with precision(dtype):
        @jax.jit
        def gradient(params):
            def loss_fn(params):
                (logits, _), _ = net.apply(
                    {"params": params, "batch_stats": stats}, batch[0], train=True,
                    mutable=["batch_stats"])
                return training.cross_entropy(logits, batch[1]), logits

            return jax.value_and_grad(loss_fn, has_aux=True)(params)

        (loss, logits), grads = gradient(params)
        there = torch_weights.network_to_torch({"params": params})
        back = torch_weights.network_from_torch(there)
        jax.tree.map(np.testing.assert_array_equal, back["params"], params)
        there = {key: value.requires_grad_() for key, value in there.items()}
        images, labels = theirs(batch)
        scores = other.apply(there, images)
        value = torch.nn.functional.cross_entropy(scores, labels)
        found = torch.autograd.grad(value, list(there.values()))
        found = torch_weights.network_from_torch(dict(zip(there, found)))["params"]
        assert_close((loss, logits, grads),
                     (value.detach().numpy(), scores.detach().numpy(), found), dtype)


def test_wrong_arguments():
    _, other = make_supernets()
    with pytest.raises(ValueError, match="weights must be .2, 14, 8."):
        other.apply({}, torch.zeros(1, 3, 8, 8), torch.zeros(2, 14, 7))
    with pytest.raises(ValueError, match="memory_format must be one of"):
        torch_weights.to_torch(np.zeros(3), "NHWC")


@pytest.mark.parametrize("flags", [["--features", "3"], ["--layers", "2"], ["--repeats", "0"],
                                   ["--pixels", "6"], ["--form", "x"]])
def test_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_torch.main(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_benchmark_of_torch_alone(capsys):
    bench_torch.main(["--torch-only", "--features", "2", "--layers", "3", "--pixels", "8",
                      "--batch", "2", "--repeats", "1", "--threads", "1"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["gradient"] for row in rows] == ["weights", "alphas", "second_order"]
    for row in rows:
        assert row["code"] == "torch" and row["torch"] == torch.__version__
        assert row["seconds"]["median"] > 0
