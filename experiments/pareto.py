"""Accuracy against a cost: what share of a table's true front each strategy finds.

  python -m experiments.pareto                              # NAS-Bench-201, edge GPU, 100 seeds
  python -m experiments.pareto --device raspi4              # or edgetpu, pixel3, eyeriss, fpga
  python -m experiments.pareto --cost-metric edgegpu_energy_mj --targets 10 20 40
  python -m experiments.pareto --table my.npz --metric accuracy --cost-metric latency_ms

NSGA-II searches for the whole front (Deb et al., 2002); MnasNet's reward, accuracy * (cost /
target) ** -0.07, for one network a target (Tan et al., 2019), which several searches side by side
make a front, all of them within the same number of evaluations; random search is the baseline.

The latencies are those that HW-NAS-Bench (Li et al., 2021) measured or modelled for CIFAR-10. The
papers report no share of these fronts, so there is no published number beside ours.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from experiments import common, pareto_fronts, pareto_report, table_report, table_search, tables
from experiments.pareto_fronts import COST
from experiments.strategies import NSGA2, PPO, Evolution, Islands, RandomSearch, Strategy
from experiments.tables import TableSettings
from jaxnas import objectives, reporting
from jaxnas.base import Objective

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableSettings):
    """NSGA-II, MnasNet's reward at several targets, and random search on two objectives."""

    device: Literal["", "edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga"] = ""
    """On NAS-Bench-201, whose latency is the cost; default edgegpu."""
    cost_metric: str = ""
    """What is minimised besides; instead of --device."""
    targets: tuple[float, ...] = ()
    """Costs, ascending, for which networks are wanted; default 5 quantiles of the table's."""
    evaluations: int = 1000
    """Of every seed."""
    budgets: tuple[int, ...] = (200, 500)
    """Numbers of evaluations after which fronts are compared too, where below --evaluations."""
    reward: Literal["soft", "hard"] = "soft"
    """MnasNet's exponents: -0.07 everywhere, or 0 within the target and -1 above."""
    num_seeds: int = 100
    """Independent searches, all at once."""
    nsga2: NSGA2 = NSGA2()
    ppo: PPO = PPO()
    evolution: Evolution = Evolution()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("targets", self.targets), ("budgets", self.budgets)):
            if list(values) != sorted({*values}) or any(
                    not 0 < value < float("inf") for value in values):
                raise common.InputError(
                    f"{name} must be above 0 and ascend, got {', '.join(map(str, values))}.")
        if self.device and self.cost_metric:
            raise common.InputError("--device and --cost-metric exclude each other: give one.")
        if self.device and self.table != "nasbench201":
            raise common.InputError(
                f"--device {self.device} goes with --table nasbench201; give --cost-metric for "
                f"{self.table}.")

    @property
    def cost(self) -> str:
        """The metric that is minimised besides."""
        if not self.cost_metric and self.table != "nasbench201":
            raise common.InputError(f"--cost-metric must name what to minimise in {self.table}.")
        return self.cost_metric or f"{self.device or DEVICES[0]}_latency_ms"


PRESETS = {"nasbench201": Config(),
           "macro": Config(table="nasbench_macro", cost_metric="flops")}
SMOKE = Config(evaluations=40, budgets=(20,), num_seeds=3, evolution=Evolution(population_size=4),
               nsga2=NSGA2(population_size=10), ppo=PPO(batch_size=4))


def run(config: Config) -> None:
    """Search with all, compare, report."""
    with common.validation():
        reporting.require_matplotlib()
        task = tables.load_task(config)
        sign = -1.0 if table_report.is_minimized(task, task.report_metric) else 1.0
        problem = pareto_fronts.make_problem(task, config.cost, config.targets, sign)
    counts = pareto_fronts.curve_counts(config.evaluations, config.budgets)
    budgets = [n for n in config.budgets if n < config.evaluations] + [config.evaluations]
    strategies, objective_of = make_strategies(config, problem)
    table_search.answer(
        config, "pareto", "NSGA-II and MnasNet's reward", strategies, table_search.Question(
            problem.task,
            {"metric": task.metric, "report_metric": task.report_metric,
             "cost_metric": problem.cost, "targets": problem.targets.tolist(),
             "strategies": list(strategies)},
            objective_of,
            lambda programs: pareto_fronts.make_digest(
                problem, counts, config.num_seeds, config.evaluations, programs),
            lambda found: pareto_report.summarize(problem, counts, budgets, found),
            lambda found, summary, path: pareto_report.draw(
                problem, counts, budgets, found, summary, path)))


def make_strategies(config: Config, problem: pareto_fronts.Problem,
                    ) -> tuple[dict[str, Strategy], dict[str, Objective]]:
    """Return the strategies and what each maximises.

    MnasNet's reward is a product, so that it needs a metric that is maximised and never negative;
    it is left out otherwise.
    """
    task, targets = problem.task, problem.targets
    both = objectives.vector(tables.single_objective(task), objectives.minimize(COST))
    strategies: dict[str, Strategy] = {"random": RandomSearch(), "nsga2": config.nsga2}
    objective_of = dict.fromkeys(strategies, both)
    if task.sign > 0 and np.nanmin(task.table.metric(task.metric)) >= 0:
        alone: dict[str, tuple[Strategy, int]] = {
            "mnasnet_ppo": (config.ppo, config.ppo.batch_size),
            "mnasnet_evolution": (config.evolution, config.evolution.children)}
        for name, (strategy, batch_size) in alone.items():
            strategies[name] = Islands(strategy=strategy, count=len(targets))
            objective_of[name] = objectives.mnasnet_reward(
                tables.METRIC, COST, target=np.tile(targets, batch_size).astype(np.float32),
                exponent=objectives.HARD if config.reward == "hard" else objectives.SOFT)
    return strategies, objective_of


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
