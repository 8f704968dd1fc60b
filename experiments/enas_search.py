"""ENAS on images: its two spaces as networks with shared weights, its controller, its programs.

Alternates, as melodyguan/enas src/cifar10 does: a pass of the shared weights over their images,
with an architecture of the controller for every step; then a number of controller steps by
REINFORCE, rewarded by the accuracy that an architecture has with the shared weights on a validation
minibatch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import searching
from experiments.enas_controller import make_controller, regularised
from experiments.programs import Programs
from jaxnas import data, fast_keys, objectives, search
from jaxnas.base import Policy
from jaxnas.data import ImageDataset, Validation
from jaxnas.evaluators import WeightSharing, weight_sharing
from jaxnas.genotypes import Encoded, Genotype
from jaxnas.networks.micro_shared import SharedMicroNetwork
from jaxnas.networks.used_parameters import used_parameters
from jaxnas.search_spaces.enas_macro import ENASMacro
from jaxnas.search_spaces.enas_micro import ENASMicro
from jaxnas.searchers import PolicyGradientState, reinforce
from jaxnas.training import TrainState

Space = ENASMacro | ENASMicro


class OneShot:
    """A one-shot network that takes an arch [L] as its space has it, and starts quickly.

    What `retraining.make_trainer` needs of a network. The initial weights are drawn with
    `fast_keys`: the programs of JAX's own generators, one for each of some hundred arrays, take
    several times as long to compile.
    """

    def __init__(self, space: Space, network: Any) -> None:
        self.space, self.network = space, network

    def inputs(self, arch: Any) -> Any:
        """Write an arch [L] as the network takes it."""
        if isinstance(self.space, ENASMicro) and not isinstance(self.network, SharedMicroNetwork):
            return self.space.rows(arch)
        return arch

    def apply(self, variables: Any, x: jax.Array, arch: jax.Array, **options: Any) -> Any:
        """Call the network."""
        return self.network.apply(variables, x, self.inputs(arch), **options)

    def lazy_init(self, key: jax.Array, image: Any, arch: Any, *, train: bool) -> Any:
        """Draw the variables, from shapes alone."""
        quick = fast_keys.key(jax.random.bits(key))
        return self.network.lazy_init(quick, image, jax.eval_shape(self.inputs, arch), train=train)

    def used(self, params: Any, arch: jax.Array) -> Any:
        """Return masks of the parameters that an arch uses."""
        return used_parameters(self.network, params, self.inputs(arch))

    def count(self, arch: np.ndarray, shape: tuple[int, int, int]) -> int:
        """Count the parameters of the fixed network of an arch [L]. Host only."""
        if isinstance(self.space, ENASMacro):
            fixed: Any = self.space.network(
                arch, features=self.network.features, form="search",
                num_classes=self.network.num_classes)
        else:
            fixed = self.network.fixed(np.asarray(self.inputs(arch)))
        return int(sum(cost.parameters for _, cost in fixed.costs(shape)))


def make_space(config: Any) -> Space:
    """Return the space of a configuration of `experiments.enas`."""
    return ENASMacro(config.layers) if config.space == "macro" else ENASMicro(config.blocks)


def make_shared_network(
    config: Any, space: Space, num_classes: int, *, dropout: float = 0.0
) -> OneShot:
    """Return the network with shared weights of the search."""
    options = {"features": config.features, "num_classes": num_classes}
    if isinstance(space, ENASMacro):
        return OneShot(space, space.traced_network(dropout_rate=dropout, **options))
    return OneShot(space, SharedMicroNetwork(
        num_blocks=space.num_blocks, cells_per_stage=config.layers // 3,
        dropout_rate=dropout,
        **options))


def make_retrained_network(config: Any, space: Space, num_classes: int) -> OneShot:
    """Return the network that trains any one architecture from scratch, in one program for all."""
    options: dict[str, Any] = {"features": config.retrain_features, "num_classes": num_classes}
    if isinstance(space, ENASMicro):
        options["cells_per_stage"] = config.retrain_layers // 3
    return OneShot(space, space.traced_network(**options))


def genotype_of(space: Space, arch: np.ndarray) -> Genotype | Encoded:
    """Return what genotype.json holds of an arch [L]."""
    if isinstance(space, ENASMicro):
        return space.decode(arch)
    return Encoded(space.name, tuple(arch.tolist()), space.decode(arch))


def cosine_with_restarts(
    peak: float, floor: float, num_epochs: int, steps_per_epoch: int, *, period: int
) -> optax.Schedule:
    """Return a cosine that starts again after `period`, 3 `period`, 7 `period` epochs, ...

    Constant inside an epoch (https://arxiv.org/abs/1608.03983 with T_mult = 2, as ENAS has it).
    In the released code the first step of a period has a stale rate; here it has the peak.

    Args:
      peak, floor: of a period.
      num_epochs: of the training; later steps have the last epoch's rate.
      steps_per_epoch: 1 or more.
      period: of the first; 0 is one period over all epochs.
    """
    rates, start, length = [], 0, period or num_epochs
    for epoch in range(num_epochs):
        if epoch == start + length:
            start, length = epoch, 2 * length
        rates.append(floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * (epoch - start) / length)))
    table = np.array(rates, np.float32)

    def schedule(step: jax.Array | int) -> jax.Array:
        return jnp.asarray(table)[jnp.minimum(step // steps_per_epoch, num_epochs - 1)]

    return schedule


def shared_optimizer(config: Any, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return Nesterov's momentum; the published loss has l2 times the sum of squares, without 1/2.

    Published is no clipping: the released code means to clip and applies the unclipped gradient.
    """
    schedule = cosine_with_restarts(
        config.weights_lr, config.weights_lr_min, config.epochs, steps_per_epoch,
        period=config.restart_period)
    return optax.chain(
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(
            config.clip_norm),
        optax.add_decayed_weights(2 * config.weights_l2),
        optax.trace(config.momentum, nesterov=True),
        optax.scale_by_learning_rate(schedule))


class EnasState(NamedTuple):
    """All that changes in a search; the two never share a leaf."""

    shared: TrainState
    controller: PolicyGradientState


class Task(NamedTuple):
    """What one search needs: compiled programs, once `Programs.compile_all` has run."""

    policy: Policy
    init: Callable[[], EnasState]
    weights_epoch: Callable[[EnasState, int], tuple[EnasState, dict[str, jax.Array]]]
    # state, epoch -> state, {"loss", "accuracy"} [steps]
    controller_epoch: Callable[[EnasState, int], tuple[EnasState, dict[str, jax.Array]]]
    # state, epoch -> state, {"reward" [S, B], "baseline" [S], "entropy" [], "archs" [S, B, L]}
    derive: Callable[[EnasState, np.ndarray], tuple[jax.Array, jax.Array]]
    # state, archs [R, L] -> archs [n, L] of the controller, percent [n + R] by shared weights
    shapes: EnasState
    steps_per_epoch: int
    outputs: dict[str, Callable[[], Any]]  # program -> shapes of what it returns, by tracing it


def make_task(
    config: Any, space: Space, dataset: ImageDataset, splits: Validation, num_random: int,
    programs: Programs
) -> Task:
    """Build the search of a configuration (of `experiments.enas`) and register its programs.

    Everything random follows from (seed, epoch), so a resumed search goes on as if it had not
    stopped.
    """
    steps = data.steps_per_epoch(len(splits.train), config.batch_size)
    valid_batch = min(config.batch_size, len(splits.valid))
    policy = make_controller(config)
    searcher = reinforce(
        regularised(policy, config), optimizer=optax.adam(config.controller_lr, b1=0.0, eps=1e-3),
        batch_size=config.controller_samples, baseline_decay=config.baseline_decay,
        baseline_init="zero", baseline_first=True, entropy_weight=1.0)
    shared, one_shot = _make_shared(config, space, dataset, steps)
    length = len(space.num_choices)

    def initial(key: jax.Array) -> EnasState:
        weights_key, controller_key = jax.random.split(jax.random.fold_in(key, 0))
        variables = one_shot.lazy_init(
            weights_key, jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32),
            jax.ShapeDtypeStruct((length,), jnp.int32), train=False)
        return EnasState(shared.init(variables), searcher.init(controller_key))

    def weights_epoch(key, state, epoch, images, labels, rows):
        order_key, arch_key, step_key = jax.random.split(jax.random.fold_in(key, 1), 3)
        batches = rows[data.epoch_batches(order_key, epoch, len(rows), config.batch_size)]
        # The controller does not change during the pass: all its architectures at once.
        keys = jax.random.split(jax.random.fold_in(arch_key, epoch), steps * config.archs_per_step)
        archs = jax.vmap(policy.sample, (0, None))(keys, state.controller.params)
        trained, metrics = shared.train_epoch(
            step_key, state.shared, archs.reshape(steps, config.archs_per_step, length), images,
            labels, batches)
        return state._replace(shared=trained), metrics

    def controller_epoch(key, state, epoch, images, labels, rows):
        evaluator = shared.evaluator(
            state.shared, images[rows], labels[rows], batch_size=valid_batch)
        start = search.SearchState(
            jax.random.fold_in(key, 2), epoch * config.controller_steps, state.controller)
        end, history = search.advance(
            start, searcher, evaluator, objectives.power("valid_accuracy", 1),
            num_steps=config.controller_steps)
        entropies = jax.vmap(policy.entropy, (None, 0))(end.searcher.params, history.archs[-1])
        return state._replace(controller=end.searcher), {
            "reward": history.fitness, "baseline": history.info["baseline"],
            "entropy": entropies.sum(-1).mean(), "archs": history.archs}

    def derive(key, state, others, images, labels, rows):
        arch_key, batch_key = jax.random.split(jax.random.fold_in(key, 3))
        archs = jax.vmap(policy.sample, (0, None))(
            jax.random.split(arch_key, config.derive_samples), state.controller.params)
        everything = jnp.concatenate([archs, others])
        images, labels = images[rows], labels[rows]
        if config.derive_on == "minibatch":
            scores = shared.evaluator(state.shared, images, labels, batch_size=valid_batch,
                                      minibatch="shared")(batch_key, everything)
        else:
            scores = shared.rescore(state.shared, everything, images, labels,
                                    batch_size=valid_batch)
        return archs, scores["valid_accuracy"]

    key = fast_keys.key(config.seed)
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    train = (images, labels, jnp.asarray(splits.train))
    valid = (images, labels, jnp.asarray(splits.valid))
    shapes = jax.eval_shape(initial, key)
    epoch = jax.ShapeDtypeStruct((), jnp.int32)
    others = jax.ShapeDtypeStruct((num_random, length), jnp.int32)
    pieces: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "initial_state": (initial, (key,)),
        "weights_epoch": (weights_epoch, (key, shapes, epoch, *train)),
        "controller_epoch": (controller_epoch, (key, shapes, epoch, *valid)),
        "derive": (derive, (key, shapes, others, *valid)),
    }
    compiled = {name: programs.add(name, jax.jit(function), *arguments)
                for name, (function, arguments) in pieces.items()}
    return Task(
        policy,
        lambda: compiled["initial_state"](key),
        lambda state, epoch: compiled["weights_epoch"](key, state, jnp.int32(epoch), *train),
        lambda state, epoch: compiled["controller_epoch"](key, state, jnp.int32(epoch), *valid),
        lambda state, others: compiled["derive"](key, state, jnp.asarray(others), *valid),
        shapes, steps,
        {name: functools.partial(jax.eval_shape, function, *arguments)
         for name, (function, arguments) in pieces.items()},
    )


def _make_shared(
    config: Any, space: Space, dataset: ImageDataset, steps: int
) -> tuple[WeightSharing, OneShot]:
    make = functools.partial(make_shared_network, config, space, dataset.num_classes)
    one_shot, scoring = make(dropout=config.dropout), make()
    pixels: dict[str, Any] = {
        "mean": dataset.mean, "std": dataset.std, "max_value": dataset.max_value}
    shared = weight_sharing(
        one_shot.apply, shared_optimizer(config, steps), used_fn=one_shot.used,
        update=config.update, statistics=config.statistics, score_fn=scoring.apply,
        augment_fn=functools.partial(data.augment, crop_padding=dataset.crop_padding,
                                     flip=dataset.flip, **pixels),
        normalize_fn=functools.partial(data.normalize, **pixels))
    return shared, one_shot


def check_search(config: Any, dataset: ImageDataset, splits: Validation) -> None:
    """Check what must fit together before anything is compiled.

    Raises:
      ValueError: one sentence.
    """
    searching.check_image_size(dataset)
    if config.batch_size > len(splits.train):
        raise ValueError(f"batch_size must be at most {len(splits.train)}, the images that train "
                         f"the shared weights, got {config.batch_size}.")
    for name in ("layers", "retrain_layers") if config.space == "micro" else ():
        value = getattr(config, name)
        if value < 3 or value % 3:
            raise ValueError(f"{name} must be a multiple of 3 for the micro space, the normal "
                             f"cells of three equal stages, got {value}.")
    if config.space == "macro" and config.drop_path_rate:
        raise ValueError("networks of the macro space have no paths to drop; set drop_path_rate "
                         "to 0.")
    if config.space == "micro" and config.statistics == "running":
        raise ValueError("statistics must be batch for the micro space, whose shared network has "
                         "no running ones.")
    for name in ("epochs", "archs_per_step", "controller_steps", "controller_samples",
                 "derive_samples", "ranked", "hidden_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(config, name)}.")
    for name, low, high in (
        ("dropout", 0, 1), ("momentum", 0, 1), ("skip_target", 0.01, 1), ("baseline_decay", 0, 1),
        ("weights_lr", 1e-12, np.inf), ("weights_lr_min", 0, np.inf), ("weights_l2", 0, np.inf),
        ("controller_lr", 1e-12, np.inf), ("entropy_weight", 0, np.inf),
        ("skip_weight", 0, np.inf), ("restart_period", 0, np.inf),
    ):  # fmt: skip
        if not low <= getattr(config, name) < high:
            raise ValueError(f"{name} must be in [{low}, {high}), got {getattr(config, name)}.")
    if config.clip_norm is not None and not config.clip_norm > 0:
        raise ValueError(f"clip_norm must be above 0, or None for no limit, got "
                         f"{config.clip_norm}.")
    if config.devices > 1:
        raise ValueError(f"ENAS runs on one device, got devices={config.devices}.")
