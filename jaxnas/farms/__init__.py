"""Farms: trials carried to worker processes on this machine, or to a Ray cluster."""

from jaxnas.farms.actors import has_ray, ray_farm
from jaxnas.farms.evaluation import Outcome, evaluate_job, finish, not_finite
from jaxnas.farms.heartbeats import Heart
from jaxnas.farms.jobs import (MAX_RETRIES, Evaluate, Farm, FarmError, Job, Result, Work, load,
                               name_of)
from jaxnas.farms.local import local_farm
from jaxnas.farms.supervision import SupervisedFarm

__all__ = [
    "Evaluate", "Farm", "FarmError", "Heart", "Job", "MAX_RETRIES", "Outcome", "Result",
    "SupervisedFarm", "Work", "evaluate_job", "finish", "has_ray", "load",
    "local_farm", "name_of", "not_finite", "ray_farm",
]
