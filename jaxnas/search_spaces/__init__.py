"""Search spaces: one file, one section of a paper."""

from jaxnas.search_spaces.darts import DARTS
from jaxnas.search_spaces.nasbench101 import NASBench101
from jaxnas.search_spaces.nasbench201 import NASBench201
from jaxnas.search_spaces.nasbench_macro import NASBenchMacro
from jaxnas.search_spaces.nats_size import NATSSize
from jaxnas.search_spaces.product import Product

__all__ = ["DARTS", "NASBench101", "NASBench201", "NASBenchMacro", "NATSSize", "Product"]
