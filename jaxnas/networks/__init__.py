"""Networks as Flax modules: frozen dataclasses with pure `init` and `apply`."""

from jaxnas.networks.chain import FilterNetwork, MacroNetwork
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.mixed import MixedCell, edge_index, mixed_edges, num_edges
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.nasbench201 import NASBench201Network
from jaxnas.networks.network import Network
from jaxnas.networks.operations import OPERATIONS, drop_path
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.networks.pair_traced import TracedPairNetwork
from jaxnas.networks.supernet import Supernet, reduction_layers
from jaxnas.networks.traced import TracedNetwork

__all__ = [
    "FilterNetwork", "MacroNetwork", "MixedCell", "MobileNetwork", "NASBench201Network", "Network",
    "OPERATIONS", "PairNetwork", "Supernet", "TracedNetwork",
    "TracedPairNetwork", "depthwise", "drop_path",
    "edge_index", "independent_logits", "lstm_controller", "mixed_edges", "num_edges",
    "reduction_layers",
]
