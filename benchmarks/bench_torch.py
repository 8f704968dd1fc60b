"""How long does a step of the DARTS search take, beside PyTorch on the same cores?

    python -m benchmarks.bench_torch --features 8 --layers 4
    python -m benchmarks.bench_torch --features 16 --layers 8 --all-methods   # half an hour

Gradients of the search network: of the weights, of the alphas (first order), and of the alphas
through a step of the weights (second order): ours exact, as `bilevel` composes it of programs,
PyTorch's by the published finite differences; `--all-methods` adds the other method to both. Both
hold the same weights, and the losses are compared first. They are measured in turn, so that they
share the load of the machine, and a ratio is the median over the turns. A table goes to stderr.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common
from benchmarks.bench_supernet import FORMS
from jaxnas import training
from jaxnas.search_spaces import DARTS
from jaxnas.searchers import bilevel

RATE, WEIGHT_DECAY, MOMENTUM = 0.025, 3e-4, 0.9  # of the published search
EXACT, DIFFERENCES = "exact", "finite_difference"
GRADIENTS = ("weights", "alphas", "second_order")


class Case(NamedTuple):
    """One gradient, by one code."""

    code: str      # "jaxnas" or "torch"
    gradient: str  # one of `GRADIENTS`
    method: str    # of second order, else ""


class Compiled:
    """What `bilevel` makes its programs with: compiles at the first call and takes the time."""

    def __init__(self) -> None:
        self.calls: dict[str, Callable] = {}
        self.seconds: dict[str, tuple[float, float]] = {}  # trace and lower, compile

    def __call__(self, name: str, function: Callable) -> Callable:
        """Return the program of this name, which several forms of `bilevel` share."""
        compiled: list[Callable] = []

        def call(*args: Any) -> Any:
            if not compiled:
                program, *seconds = common.compile_timed(jax.jit(function), *args)
                compiled.append(program)
                self.seconds[name] = (seconds[0], seconds[1])
            return compiled[0](*args)

        return self.calls.setdefault(name, call)

    def total(self, names: Sequence[str]) -> tuple[float, float]:
        """Return the seconds of some programs together."""
        lower, compile = zip(*(self.seconds[name] for name in names if name in self.seconds))
        return sum(lower), sum(compile)


PROGRAMS = {  # of each gradient; those that take no time to speak of too
    ("weights", ""): ("weight_gradient",),
    ("alphas", ""): ("alpha_gradient",),
    ("second_order", EXACT): ("gradients", "look_ahead", "pull_back", "mixed_product"),
    ("second_order", DIFFERENCES): (
        "gradients", "look_ahead", "pull_back", "perturb", "difference"),
}


def ours(net, space, variables, alphas, train, valid, methods):
    """Return case -> call () -> (loss, gradient), and the programs."""

    def loss_fn(variables, alphas, batch, net=net):
        images, labels = batch
        return training.cross_entropy(net.apply(variables, images, space.weights(alphas)), labels)

    forward = functools.partial(loss_fn, net=net.clone(forward_mode=True))
    inner = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.trace(MOMENTUM), optax.scale(-RATE))
    programs = Compiled()
    forms = {  # that with `forward_loss_fn` first: programs of a name are shared
        gradient: bilevel(loss_fn, inner, optax.sgd(1.0), gradient=gradient, program=programs,
                          forward_loss_fn=forward if gradient == "hessian_vector" else None)
        for gradient in ("hessian_vector", "first_order", "finite_difference")}
    state = forms["first_order"].init(variables, alphas)
    calls = {
        Case("jaxnas", "weights", ""):
            lambda: programs.calls["weight_gradient"](variables, alphas, train),
        Case("jaxnas", "alphas", ""):
            lambda: forms["first_order"].gradient(state, train, valid),
    }
    for method in methods:
        form = forms["hessian_vector" if method == EXACT else method]
        calls[Case("jaxnas", "second_order", method)] = (
            lambda form=form: form.gradient(state, train, valid))
    return calls, programs


def theirs(net, variables, alphas, train, valid, methods, memory_format):
    """Return case -> call () -> (loss, gradient) of PyTorch."""
    import torch

    from benchmarks import torch_darts, torch_weights

    params = torch_weights.supernet_to_torch(variables, net, memory_format)
    alphas = torch.from_numpy(np.array(alphas))
    first, second = (
        (torch_weights.to_torch(images, memory_format), torch_weights.to_torch(labels).long())
        for images, labels in (train, valid))
    loss = torch_darts.supernet_loss(net)
    calls = {
        Case("torch", "weights", ""):
            lambda: torch_darts.weight_gradient(loss, params, alphas, first),
        Case("torch", "alphas", ""):
            lambda: torch_darts.alpha_gradient(loss, params, alphas, second),
    }
    functions = {EXACT: torch_darts.exact, DIFFERENCES: torch_darts.finite_difference}
    for method in methods:
        calls[Case("torch", "second_order", method)] = (
            lambda function=functions[method]: function(
                loss, params, alphas, first, second, rate=RATE, weight_decay=WEIGHT_DECAY))
    return calls


def check(calls: dict[Case, Callable]) -> None:
    """Raise RuntimeError where the two codes have different losses; the first calls of all."""
    losses: dict[str, dict[str, float]] = {}
    for case, call in calls.items():
        losses.setdefault(case.gradient, {})[case.code] = float(call()[0])
    for gradient, both in losses.items():
        values = list(both.values())
        if not np.allclose(values, values[0], rtol=1e-3):
            raise RuntimeError(f"the losses of {gradient!r} must agree, got {both}: the networks "
                               "are not the same; run tests/test_torch_baseline.py.")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print JSON lines and a table."""
    options = _parse(argv)
    import torch

    from benchmarks.torch_darts import TorchSupernet

    torch.set_num_threads(options.threads)
    space, key = DARTS(), jax.random.key(0, impl="rbg")
    sizes = {"features": options.features, "num_layers": options.layers}
    net = space.supernet(**sizes, **FORMS[options.form])
    keys = jax.random.split(key, 4)
    shape = (options.batch, options.pixels, options.pixels, 3)
    train, valid = ((jax.random.normal(key, shape), jnp.arange(options.batch) % 10)
                    for key in keys[:2])
    alphas = space.init_alphas(keys[2])
    # Any weights do, and drawing them so compiles nothing.
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda a: jnp.asarray(0.1 * rng.standard_normal(a.shape), a.dtype),
        jax.eval_shape(net.init, keys[3], train[0], alphas))

    calls: dict[Case, Callable] = {}
    programs = Compiled()
    methods = (EXACT, DIFFERENCES)
    if not options.torch_only:
        chosen = methods if options.all_methods else (EXACT,)
        calls, programs = ours(net, space, variables, alphas, train, valid, chosen)
    if not options.ours_only:
        other = TorchSupernet(space.operations, **sizes)
        chosen = methods[::-1] if options.all_methods else (DIFFERENCES,)
        calls |= theirs(other, variables, alphas, train, valid, chosen, options.memory_format)
    calls = {case: call for case, call in calls.items() if case.gradient in options.gradients}
    check(calls)
    seconds = common.interleave(calls, options.repeats)

    print(f"{'gradient':<32}{'code':<8}{'median':>8}{'p10':>8}{'p90':>8}{'core':>8}"
          f"{'torch / ours':>14}{'lower':>8}{'compile':>8}", file=sys.stderr)
    for case in sorted(calls, key=lambda case: GRADIENTS.index(case.gradient)):
        wall, cores = seconds[case]
        lowered = (0.0, 0.0)
        if case.code == "jaxnas":
            lowered = programs.total(PROGRAMS[case[1:]])
        timing = common.timing(wall, *lowered)
        row = {
            **case._asdict(), **vars(options), "torch": torch.__version__,
            "core_seconds": float(f"{np.median(cores):.4g}"),
            "ratio": {f"{code.code} {code.method}".strip(): float(
                f"{np.median(seconds[code][0] / wall):.3g}")
                for code in calls if code.gradient == case.gradient and code.code != case.code},
        }
        common.record("torch", row, timing)
        ratio = " ".join(map(str, row["ratio"].values())) if case.code == "jaxnas" else ""
        print(f"{' '.join(case[1:]):<32}{case.code:<8}{timing.median:8.3f}{timing.p10:8.3f}"
              f"{timing.p90:8.3f}{np.median(cores):8.3f}{ratio:>14}{timing.lower:8.1f}"
              f"{timing.compile:8.1f}", file=sys.stderr)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=list(GRADIENTS))
    parser.add_argument("--form", choices=FORMS, default="scan_both", help="of our supernet")
    parser.add_argument("--memory-format", choices=("channels_last", "contiguous"),
                        default="channels_last", help="of PyTorch's tensors")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--all-methods", action="store_true",
                        help="exact and finite differences of both; PyTorch's exact is slow")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--torch-only", action="store_true")
    only.add_argument("--ours-only", action="store_true")
    options = parser.parse_args(argv)
    for name, least, step in (("features", 2, 2), ("layers", 3, 1), ("batch", 2, 1),
                              ("pixels", 4, 4), ("repeats", 1, 1), ("threads", 1, 1)):
        value = getattr(options, name)
        if value < least or value % step:
            parser.error(f"--{name} must be {least} or more"
                         f"{f' and divisible by {step}' if step > 1 else ''}, got {value}.")
    return options


if __name__ == "__main__":
    main()
