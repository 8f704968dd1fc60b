"""Networks as Flax modules: frozen dataclasses with pure `init` and `apply`."""

from jaxnas.networks.chain import FilterNetwork, MacroNetwork
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.mixed import MixedCell, edge_index, mixed_edges, num_edges
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.nasbench201 import NASBench201Network
from jaxnas.networks.network import Network
from jaxnas.networks.operations import OPERATIONS, BatchNorm, Operation, drop_path
from jaxnas.networks.own_operations import own_operations
from jaxnas.networks.pair_cells import CellStyle
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.networks.pair_traced import TracedPairNetwork
from jaxnas.networks.supernet import Supernet, reduction_layers
from jaxnas.networks.traced import TracedNetwork

__all__ = [
    "BatchNorm", "CellStyle", "FilterNetwork", "MacroNetwork", "MixedCell", "MobileNetwork",
    "NASBench201Network", "Network", "OPERATIONS", "Operation", "PairNetwork", "Supernet",
    "TracedNetwork", "TracedPairNetwork", "depthwise", "drop_path", "edge_index",
    "independent_logits", "lstm_controller", "mixed_edges", "num_edges", "own_operations",
    "reduction_layers",
]
