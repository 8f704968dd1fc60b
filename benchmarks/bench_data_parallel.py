"""What does a search step exchange between devices, and how does its time scale?

    XLA_FLAGS=--xla_force_host_platform_device_count=2 \
        python -m benchmarks.bench_data_parallel --devices 1 2
    ... --count-only --features 16 --layers 8 --devices 8    # what is exchanged: compiled, not run

The gradients of a DARTS search step under `pmap`, the batch of a device fixed ("weak": what a
cluster is used for) or that of all devices together ("strong"). With synchronised batch statistics
every normalisation is an all-reduce of its own, forwards and backwards, of a few bytes; without
them there is one all-reduce of the gradients.
"""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks import collectives, common
from benchmarks.bench_supernet import FORMS
from jaxnas import parallel, training
from jaxnas.search_spaces import DARTS
from jaxnas.searchers import bilevel


def programs(options, count: int, batch: int, synchronised: bool):
    """Return name -> (pmapped function, its arguments) of the step's gradients.

    Args:
      count: devices.
      batch: examples of one device.
      synchronised: batch statistics are those of all devices.
    """
    devices, space = parallel.available_devices(count), DARTS()
    net = space.supernet(features=options.features, num_layers=options.layers,
                         axis_name=parallel.AXIS if synchronised else None, **FORMS[options.form])
    key = jax.random.key(0, impl="rbg")
    images = jax.random.normal(key, (count, batch, options.pixels, options.pixels, 3))
    labels = jnp.broadcast_to(jnp.arange(batch) % 10, (count, batch))
    alphas = space.init_alphas(key)
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    weights = jax.jit(lambda key: net.clone(axis_name=None).lazy_init(key, image, alphas))(key)

    def loss_fn(weights, alphas, batch, net=net):
        logits = net.apply(weights, batch[0], space.weights(alphas))
        return training.cross_entropy(logits, batch[1])

    pieces: dict[str, tuple] = {}

    def program(name, function):
        mapped = jax.pmap(function, axis_name=parallel.AXIS, devices=devices)

        def call(*args):
            pieces.setdefault(name, (mapped, jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), args)))
            return function(*args)
        return call

    forward = functools.partial(loss_fn, net=net.clone(forward_mode=True))
    form = bilevel(loss_fn, optax.sgd(0.025), optax.sgd(1.0), gradient=options.gradient,
                   forward_loss_fn=forward if options.gradient == "hessian_vector" else None,
                   axis_name=parallel.AXIS, program=program)
    state, shards = form.init(weights, alphas), (images, labels)
    batches = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shards)
    jax.eval_shape(jax.vmap(form.update, axis_name=parallel.AXIS),
                   jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), state),
                   batches, batches)
    return pieces


def main() -> None:
    """Compile the pieces of a step for every number of devices, count, and time them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1])
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="of one device, or of all (strong)")
    parser.add_argument("--gradient", default="first_order")
    parser.add_argument("--form", choices=FORMS, default="scan_both_remat")
    parser.add_argument("--strong", action="store_true")
    parser.add_argument("--count-only", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for count in options.devices:
        batch = options.batch // count if options.strong else options.batch
        for synchronised in (False, True)[: 1 + (count > 1)]:
            for name, (mapped, shapes) in programs(options, count, batch, synchronised).items():
                compiled, lower, compile = common.compile_timed(mapped, *shapes)
                exchanged = collectives.all_reduces(compiled.as_text())
                row = {
                    "devices": count, "batch_of_a_device": batch, "features": options.features,
                    "layers": options.layers, "synchronised": synchronised, "program": name,
                    "all_reduces": exchanged.count, "all_reduce_bytes": exchanged.bytes,
                }
                if options.count_only:
                    seconds = []
                else:
                    arguments = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
                    seconds = common.interleave({"": lambda: compiled(*arguments)},
                                                options.repeats)[""][0]
                common.record("data_parallel", row,
                              common.timing(seconds if len(seconds) else [float("nan")], lower,
                                            compile))


if __name__ == "__main__":
    main()
