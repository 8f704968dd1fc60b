"""Children of AutoKeras: one program that trains all, and the searches that ask for them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import autokeras_weights, child_search, common
from experiments.child_trials import Child, Kind, SharedTrials
from experiments.programs import Program, Programs
from jaxnas import conv_chains, costs, data, fast_keys, morphisms, training
from jaxnas.conv_chains import ConvChain, Operation
from jaxnas.data import ImageDataset, Validation
from jaxnas.device_memory import free_bytes, mebibytes, program_bytes
from jaxnas.networks import MorphableNetwork, MorphableSlots, TracedMorphableNetwork
from jaxnas.search_spaces import MorphableCNN
from jaxnas.searchers import morphism_search
from jaxnas.training import TrainState

PROGRAMS = ("train_child", "test_child")
GROUPS = ("inherited", "unchanged", "fresh", "random")
CARRIED = ("inherited", "unchanged")  # whose children start from the weights of one before


def groups(config: Any) -> tuple[str, ...]:
    """Return the searches that a configuration asks for, the one that counts as found first."""
    return {"both": GROUPS, "on": (*CARRIED, "random"), "off": ("fresh", "random")}[
        config.inheritance]


def make_space(config: Any) -> MorphableCNN:
    """Return the bounded space: widths double from `width` up to `max_width`.

    Raises:
      ValueError: a setting out of range.
    """
    widths = [config.width]
    if config.width < 1:
        raise ValueError(f"width must be 1 or more, got {config.width}.")
    while 2 * widths[-1] <= config.max_width:
        widths.append(2 * widths[-1])
    if widths[-1] != config.max_width:
        raise ValueError("max_width must be width times a power of 2, got "
                         f"{config.max_width} and {config.width}.")
    return MorphableCNN(MorphableSlots(
        config.stages, config.max_layers, config.kernels, tuple(widths)))


class Bound:
    """The most parameters that a child may have; it shrinks where one does not fit.

    AutoKeras sets its bound one below a network that did not fit, and drops that network. Here one
    program trains all children, so what it needs of the device is the same for all; it is compared
    with what is free before every training, instead of waiting for the failure.
    """

    def __init__(self, parameters: int, shape: tuple[int, int, int], num_classes: int) -> None:
        self.parameters = parameters
        self._count = functools.lru_cache(maxsize=None)(
            lambda chain: costs.cost(MorphableNetwork(chain, num_classes), shape).parameters)

    def fits(self, chain: ConvChain) -> bool:
        """Tell whether a chain is within the bound."""
        return self._count(chain) <= self.parameters

    def admits(self, chain: ConvChain, needs: int, available: int | None) -> bool:
        """Compare bytes; one that does not fit shrinks the bound."""
        if available is None or needs <= available:
            return True
        self.shrink(chain)
        return False

    def shrink(self, chain: ConvChain) -> None:
        """Exclude a chain and all that are as large."""
        self.parameters = min(self.parameters, self._count(chain) - 1)


class Trained(NamedTuple):
    """A trial of a search."""

    chain: ConvChain
    fitness: float        # percent; NaN if it failed
    lineage: str          # what identifies its weights: those before it and the operations
    number: int           # of the trial


class Candidate(NamedTuple):
    """A child to train."""

    chain: ConvChain
    father: int | None             # place among the trials; None: the first, or a random one
    operations: tuple[Operation, ...]
    lineage: str


class Children:
    """Trains children of one run, each once in a store of trials."""

    def __init__(self, config: Any, space: MorphableCNN, dataset: ImageDataset, split: Validation,
                 programs: Programs) -> None:
        self.config, self.space, self.dataset = config, space, dataset
        self.network: TracedMorphableNetwork = space.traced_network(
            image_channels=dataset.image_shape[2], num_classes=dataset.num_classes,
            method=config.method)
        self.optimizer = config.recipe.optimizer(len(split.train))
        self._examples = (jnp.asarray(dataset.train_images),
                          jnp.asarray(dataset.train_labels, jnp.int32),
                          jnp.asarray(split.train, jnp.int32), jnp.asarray(split.valid, jnp.int32))
        key = fast_keys.key(0)
        shape = jax.eval_shape(self._initial, key)
        self.empty = training.zeros(shape)
        self.program: Program = programs.add(
            PROGRAMS[0], jax.jit(self._train), key, jax.ShapeDtypeStruct((), bool), shape,
            jax.ShapeDtypeStruct((len(space.num_choices),), jnp.int32), *self._examples)
        self._held_out = (jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels))
        self._test_program = programs.add(
            PROGRAMS[1], jax.jit(self._test), shape.params, shape.batch_stats,
            jax.ShapeDtypeStruct((len(space.num_choices),), jnp.int32), *self._held_out)
        self.trained = 0

    @property
    def bytes_needed(self) -> int:
        """What a training takes beside what lies on the device before."""
        assert self.program.compiled is not None
        found = program_bytes(self.program.compiled)
        return found.beside_arguments + sum(
            leaf.nbytes for leaf in jax.tree.leaves(self.empty))

    def _initial(self, key: jax.Array) -> TrainState:
        image = jax.ShapeDtypeStruct((2, *self.dataset.image_shape), jnp.float32)
        arch = jax.ShapeDtypeStruct((len(self.space.num_choices),), jnp.int32)
        return training.init_state(
            self.network.lazy_init(key, image, arch, train=False), self.optimizer)

    def _train(self, key, fresh, state, arch, images, labels, train_rows, valid_rows):
        """Train and validate every epoch; `fresh`: weights are drawn, those given are not read."""
        dataset, recipe, pixels = self.dataset, self.config.recipe, self._pixels
        run_epoch = training.make_train_epoch(
            self.network.apply, self.optimizer,
            functools.partial(data.augment, crop_padding=dataset.crop_padding, flip=dataset.flip,
                              **pixels),
            label_smoothing=recipe.label_smoothing)
        init_key, order_key, step_key = jax.random.split(key, 3)
        state = jax.lax.cond(fresh, lambda: self._initial(init_key), lambda: state)
        valid = images[valid_rows], labels[valid_rows]

        def epoch(state, number):
            batches = train_rows[
                data.epoch_batches(order_key, number, len(train_rows), recipe.batch_size)]
            state, steps = run_epoch(step_key, state, images, labels, batches, inputs=(arch,))
            found = self._test(state.params, state.batch_stats, arch, *valid)
            return state, {"valid_accuracy": 100 * found["accuracy"], "valid_loss": found["loss"],
                           "train_loss": steps["loss"].mean()}

        return jax.lax.scan(epoch, state, jnp.arange(recipe.epochs))

    @property
    def _pixels(self) -> dict[str, Any]:
        dataset = self.dataset
        return {"mean": dataset.mean, "std": dataset.std, "max_value": dataset.max_value}

    def _test(self, params, batch_stats, arch, images, labels):
        return training.evaluate(
            self.network.apply, training.network_variables(params, batch_stats), images, labels,
            self.config.recipe.batch_size,
            normalize_fn=functools.partial(data.normalize, **self._pixels), inputs=(arch,))

    def test(self, child: morphisms.Morphable) -> float:
        """Return the accuracy of weights on the test images, in percent."""
        given = self.network.insert(
            {"params": child.params, "batch_stats": child.batch_stats}, child.chain)
        found = self._test_program(
            given["params"], given["batch_stats"], self.space.slots.arch(child.chain),
            *self._held_out)
        return 100 * float(found["accuracy"])

    def train(self, key: jax.Array, chain: ConvChain, parent: morphisms.Morphable | None,
              ) -> tuple[dict[str, Any], morphisms.Morphable]:
        """Train a chain, from given weights or its own; returns what is stored of it, and weights.

        Raises:
          jax.errors.JaxRuntimeError: among others, the device has no room.
        """
        state = self.empty if parent is None else autokeras_weights.insert(
            self.network, parent, self.optimizer)
        state, curves = self.program(
            key, np.array(parent is None), state, self.space.slots.arch(chain), *self._examples)
        self.trained += 1
        found = {name: np.asarray(curve) for name, curve in curves.items()}
        alive = all(np.isfinite(curve).all() for curve in found.values())
        score = float(self.config.recipe.scores(found["valid_accuracy"])) if alive else np.nan
        metrics = {"valid_accuracy": score, "valid_loss": float(found["valid_loss"][-1]),
                   "train_loss": float(found["train_loss"][-1]),
                   **{f"{name}_by_epoch": curve for name, curve in found.items()}}
        return metrics, autokeras_weights.extract(self.network, state, chain)


class Search:
    """One search of one group and seed; what it has done is `trials`.

    Groups: "inherited" is AutoKeras; "unchanged" trains the first network on and on, so that what
    growing adds to training for longer can be seen; "fresh" searches as AutoKeras does, but every
    child starts from drawn weights; "random" draws architectures.
    """

    def __init__(self, config: Any, children: Children, bound: Bound, group: str, seed: int,
                 store: Any, folder: Path, stop: Callable[[], bool]) -> None:
        self.config, self.children, self.bound = config, children, bound
        self.group, self.seed, self.folder = group, seed, folder
        self._store, self._stop = store, stop
        self.trials: list[Trained] = []
        self._propose = morphism_search(
            capacity=config.trials, kernels=config.kernels, max_layers=config.max_layers,
            max_width=config.max_width, fits=bound.fits, beta=config.beta, noise=config.gp_noise,
            length_scale=config.length_scale, skip_weight=config.skip_weight)

    def candidate(self) -> Candidate | None:
        """Return what is to be trained next; None if nothing is left within the bounds."""
        number = len(self.trials)
        if self.group == "random":
            chain = random_chain(self.config, self.children.space, self.seed, number, self.bound)
            return None if chain is None else Candidate(chain, None, (), "")
        if not number:
            chain = conv_chains.initial_chain(
                num_stages=self.config.stages, width=self.config.width, kernel=3)
            return Candidate(chain, None, (), "")  # the same child with and without inheritance
        if self.group == "unchanged":
            last = self.trials[-1]
            return Candidate(last.chain, number - 1, (), self._lineage(last.lineage, ()))
        # The same draws with and without inheritance: they part when their fitness does.
        random = np.random.default_rng((self.config.seed, self.seed, number))
        found = self._propose(random, [trial.chain for trial in self.trials],
                              [trial.fitness for trial in self.trials])
        if found is None:
            return None
        father = self.trials[found.father]
        return Candidate(found.node, found.father, found.operations,
                         self._lineage(father.lineage, found.operations))

    def _lineage(self, father: str, operations: tuple[Operation, ...]) -> str:
        if self.group not in CARRIED:
            return ""
        steps = [[type(operation).__name__, *operation] for operation in operations]
        text = json.dumps([father, steps, self.config.morphism_noise, self.config.widening])
        return hashlib.sha256(text.encode()).hexdigest()

    def evaluate(self, candidate: Candidate) -> Child:
        """Look a child up, or train it, and append it to the trials.

        Raises:
          Stopped: the user asked to stop before.
          jax.errors.JaxRuntimeError: as `Children.train`.
        """
        number, arch = len(self.trials), self.children.space.slots.arch(candidate.chain)

        def train(archs: np.ndarray) -> Sequence[dict[str, Any]]:
            del archs  # one, this
            metrics, weights = self.children.train(
                self._key(candidate), candidate.chain, self._parent(candidate))
            if self.group in CARRIED:
                autokeras_weights.save(self._path(number), weights)
            return [metrics]

        shared = SharedTrials(self._store, self._kind(candidate), train, stop=self._stop)
        child = shared.evaluate(arch[None])[0]
        if self.group in CARRIED and not self._path(number).exists():
            train(arch[None])  # another run has trained it, whose weights are not here
        accuracy = child.metrics.get("valid_accuracy", np.nan)
        self.trials.append(Trained(candidate.chain, accuracy, candidate.lineage, number))
        return child

    def test(self, number: int) -> float:
        """Return the test accuracy of the weights of a trial, of a group that keeps them."""
        return self.children.test(
            autokeras_weights.load(self._path(number), self.trials[number].chain))

    def _path(self, number: int) -> Path:
        return self.folder / "weights" / f"{self.group}_seed{self.seed}_trial{number}.npz"

    def _key(self, candidate: Candidate) -> jax.Array:
        """Return a key of the seed and of everything that identifies the child."""
        text = f"{self.config.seed} {self.seed} {candidate.chain} {candidate.lineage}"
        return fast_keys.key(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))

    def _parent(self, candidate: Candidate) -> morphisms.Morphable | None:
        """Return the grown father; None: weights are drawn."""
        if self.group not in CARRIED or candidate.father is None:
            return None
        father = self.trials[candidate.father]
        network = autokeras_weights.load(self._path(father.number), father.chain)
        key = jax.random.key(int(candidate.lineage[:8], 16))  # of a grown child, never empty
        for number, operation in enumerate(candidate.operations):
            network = morphisms.morph(
                jax.random.fold_in(key, number), network, operation,
                noise=self.config.morphism_noise, style=self.config.widening)
        return network

    def _kind(self, candidate: Candidate) -> Kind:
        config, versions = self.config, common.versions()
        return Kind(self.children.space.name, {
            "recipe": config.recipe.to_json(), "lineage": candidate.lineage,
            "network": child_search.describe_module(self.children.network),
            "data": {"sha256": self.children.dataset.sha256,
                     "valid_fraction": config.valid_fraction, "limit": config.limit},
            "seeds": [config.seed, self.seed], "platform": jax.default_backend(),
            "versions": {name: versions[name] for name in ("jax", "jaxlib", "flax", "jaxnas")}})


def random_chain(config: Any, space: MorphableCNN, seed: int, number: int,
                 bound: Bound) -> ConvChain | None:
    """Draw a chain of the space that fits; None after 100 that do not."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), seed), number)
    archs = np.asarray(_draw(space)(jax.random.split(key, 100)))
    for arch in archs:
        chain = space.slots.chain(arch)
        if bound.fits(chain):
            return chain
    return None


@functools.lru_cache(maxsize=4)
def _draw(space: MorphableCNN) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jax.vmap(lambda key: space.canonical(space.sample(key))))


def has_room(children: Children, bound: Bound, chain: ConvChain) -> str:
    """Return "" if a chain can be trained now; else why not, and shrink the bound."""
    needs, available = children.bytes_needed, free_bytes(jax.local_devices()[0])
    if bound.admits(chain, needs, available):
        return ""
    assert available is not None
    return f"training needs {mebibytes(needs)}, and {mebibytes(available)} are free"


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a training failed for want of room on the device."""
    return "RESOURCE_EXHAUSTED" in str(error)
