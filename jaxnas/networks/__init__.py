"""Networks as Flax modules: frozen dataclasses with pure `init` and `apply`."""

from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.mixed import MixedCell, edge_index, mixed_edges, num_edges
from jaxnas.networks.network import Network
from jaxnas.networks.operations import OPERATIONS, drop_path
from jaxnas.networks.supernet import Supernet, reduction_layers
from jaxnas.networks.traced import TracedNetwork

__all__ = [
    "OPERATIONS", "MixedCell", "Network", "Supernet", "TracedNetwork", "depthwise", "drop_path",
    "edge_index", "mixed_edges", "num_edges", "reduction_layers",
]
