"""Which form of the supernet: how long does it compile, how long does a step take?

    python -m benchmarks.bench_supernet                  # 8x8 digits size, minutes
    python -m benchmarks.bench_supernet --size large     # 32x32, C = 16, L = 8

The baseline is the unrolled form; the parameters, and the answer, of all forms are equal.
"""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp

from benchmarks import common
from jaxnas import training
from jaxnas.search_spaces import DARTS

SIZES = {  # batch, pixels, channels, features, layers
    "tiny": (64, 8, 1, 4, 3),
    "small": (64, 8, 1, 4, 5),
    "large": (16, 32, 3, 16, 8),
}
FORMS = {
    "unrolled": {"scan_cells": False, "scan_edges": False},
    "scan_cells": {"scan_cells": True, "scan_edges": False},
    "scan_both": {"scan_cells": True, "scan_edges": True},
    "scan_both_remat": {"scan_cells": True, "scan_edges": True, "remat": True},
}


def main() -> None:
    """Measure the gradients of every form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["scan_both",
                                                                      "scan_both_remat"])
    parser.add_argument("--product", action="store_true", help="the exact second order too")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    batch, pixels, channels, features, layers = SIZES[options.size]
    space, key = DARTS(), jax.random.key(0, impl="rbg")
    images = jax.random.normal(key, (batch, pixels, pixels, channels))
    labels = jnp.arange(batch) % 10
    alphas = space.init_alphas(key)
    for form in options.forms:
        net = space.supernet(features=features, num_layers=layers, **FORMS[form])
        image = jax.ShapeDtypeStruct(images.shape, images.dtype)
        weights = jax.jit(lambda key, net=net: net.lazy_init(key, image, alphas))(key)

        def loss(weights, alphas, net=net):
            logits = net.apply(weights, images, space.weights(alphas))
            return training.cross_entropy(logits, labels)

        forward = functools.partial(loss, net=net.clone(forward_mode=True))

        def product(weights, alphas, u, forward=forward):
            return jax.grad(lambda a: jax.jvp(lambda w: forward(w, a), (weights,), (u,))[1])(alphas)

        rows = {
            "alphas": (jax.grad(loss, 1), weights, alphas),
            "weights": (jax.grad(loss), weights, alphas),
            "both": (jax.grad(loss, (0, 1)), weights, alphas),
        }
        if options.product:
            rows["mixed_product"] = (product, weights, alphas, weights)
        for gradient, (function, *args) in rows.items():
            timing = common.measure(function, *args, repeats=options.repeats)
            row = {"size": options.size, "form": form, "gradient": gradient}
            common.record("supernet", row, timing)


if __name__ == "__main__":
    main()
