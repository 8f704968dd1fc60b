"""Published architectures: list them, draw one, export one, measure one.

  python -m experiments.architectures                              # the list
  python -m experiments.architectures --draw nasnet_a_cifar --output figures
  python -m experiments.architectures --draw runs/darts/20261124-200000/genotype.json
  python -m experiments.architectures --export enas_micro_cifar    # StableHLO, and its parameters
  python -m experiments.architectures --latency mnasnet_small_mobile --batch-size 1

Counts are without auxiliary heads, by closed form; the tests hold them against the specification.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments import common
from experiments.drawing import draw
from jaxnas import export, genotypes, latency, models, reporting
from jaxnas.genotypes import Encoded, Genotype
from jaxnas.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """List published architectures, or draw, export or measure one."""

    draw: str = ""
    """Name of a network, of a published genotype, or the path of a genotype.json."""
    export: str = ""
    """Name of a network to write as StableHLO, with freshly drawn parameters."""
    latency: str = ""
    """Name of a network whose inference is timed on this machine."""
    output: Path = Path(".")
    """Folder for drawings and exports."""
    batch_size: int = 1
    """Images of the exported or measured program."""
    repeats: int = 20
    """Calls that are timed."""
    seed: int = 0
    """Of the drawn parameters."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise common.InputError(f"{name} must be 1 or more, got {getattr(self, name)}.")


def run(config: Config) -> None:
    """Do what the flags ask for; without any, print the table."""
    with common.validation():
        drawing = _find(config.draw) if config.draw else None
        chosen = {name: models.get(name) for name in (config.export, config.latency) if name}
        if drawing is not None or config.export:
            _make(config.output)
    if drawing is not None:
        reporting.require_matplotlib()
        for path in draw(drawing, config.output / Path(config.draw).stem, config.draw):
            print(path)
    if config.export:
        model = chosen[config.export]
        variables = initial_variables(model, config.seed)
        for path in export.write(model.network, variables, model.shape, config.output,
                                 config.export, batch_size=config.batch_size):
            print(path)
    if config.latency:
        model = chosen[config.latency]
        variables = initial_variables(model, config.seed)
        images = jnp.zeros((config.batch_size, *model.shape))
        found = latency.measure(
            lambda variables, images: model.network.apply(variables, images, train=False),
            variables, images, batch_size=config.batch_size, repeats=config.repeats)
        print(f"{config.latency}: {found.median_ms:.2f} ms (10th to 90th percentile "
              f"{found.p10_ms:.2f} to {found.p90_ms:.2f}) for {found.batch_size} images on "
              f"{found.device}; compiled in {found.compile_seconds:.1f} s")
    if not (config.draw or config.export or config.latency):
        print(table())


def table() -> str:
    """Return the list of networks: name, architecture, parameters, multiply-adds, image."""
    rows = [("network", "architecture", "parameters", "multiply-adds, M", "image")]
    for name in models.names():
        model = models.get(name)
        cost = model.cost()
        rows.append((name, model.architecture, f"{cost.parameters:,}",
                     f"{cost.multiply_adds / 1e6:,.1f}", f"{model.shape[0]}x{model.shape[1]}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) if 2 <= i <= 3 else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)


def initial_variables(model: Model, seed: int) -> dict:
    """Draw the variables of a network; abstractly traced, so that only the draw is compiled."""
    images = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    key = jax.random.key(seed, impl="rbg")
    return jax.jit(lambda key: model.network.lazy_init(key, images, train=False))(key)


def _find(name: str) -> Model | Genotype | Encoded:
    if name.endswith(".json"):
        return genotypes.load(name)
    if name in genotypes.PUBLISHED:
        return genotypes.PUBLISHED[name]
    return models.get(name)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise common.InputError(f"--output {folder} cannot be made: {error.strerror}.") from error


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code: 0, 2 for bad input."""
    return common.main_plain(Config, run, "architectures", argv)


if __name__ == "__main__":
    sys.exit(main())
