"""Metrics become one fitness, which is maximised; NaN stays NaN and never wins."""

from jaxnas.base import Objective


def maximize(name: str) -> Objective:
    """Take the metric `name` as fitness, such as an accuracy."""
    return lambda metrics: metrics[name]


def minimize(name: str) -> Objective:
    """Take the metric `name`, negated, as fitness, such as a latency or a loss."""
    return lambda metrics: -metrics[name]


def power(name: str, exponent: float) -> Objective:
    """Take a percentage as a fraction to a power, as NASRL's reward does with exponent 3."""
    return lambda metrics: (metrics[name] / 100) ** exponent
