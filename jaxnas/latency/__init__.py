"""Latency on this device: measured, and predicted from a table of measured parts."""

from jaxnas.latency.cells import EdgeLatency, darts_latency, nasbench201_latency
from jaxnas.latency.constraint import LatencyState, bound_latency, repair
from jaxnas.latency.mobile import MobileLatency, mobile_latency
from jaxnas.latency.tables import (Calibration, LatencyTable, LatencyTableError, Unit, build,
                                   load_or_build, read, unit_of, write)
from jaxnas.latency.timing import Latency, measure, measure_network

__all__ = [
    "Calibration", "EdgeLatency", "Latency", "LatencyState", "LatencyTable", "LatencyTableError",
    "MobileLatency", "Unit", "bound_latency", "build", "darts_latency", "load_or_build", "measure",
    "measure_network", "mobile_latency", "nasbench201_latency", "read", "repair", "unit_of",
    "write",
]
