"""Networks as Flax modules or plain functions: frozen dataclasses with pure `init` and `apply`."""

from jaxnas.networks.chain import FilterNetwork, MacroNetwork
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.language_model import Dropout, LanguageModel
from jaxnas.networks.mixed import MixedCell, edge_index, mixed_edges, num_edges
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.morphable import MorphableNetwork
from jaxnas.networks.morphable_slots import MorphableSlots
from jaxnas.networks.morphable_traced import TracedMorphableNetwork
from jaxnas.networks.nasbench201 import NASBench201Network
from jaxnas.networks.network import Network
from jaxnas.networks.operations import OPERATIONS, BatchNorm, Operation, drop_path
from jaxnas.networks.own_operations import own_operations
from jaxnas.networks.pair_cells import CellStyle
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.networks.pair_traced import TracedPairNetwork
from jaxnas.networks.predictor_ensembles import predictor_ensemble
from jaxnas.networks.predictors import (Layout, LSTMPredictor, MLPPredictor, block_layout,
                                        decision_layout)
from jaxnas.networks.recurrent import GRU, LSTM, unroll
from jaxnas.networks.recurrent_highway import (FixedHighway, MixedHighway, SharedHighway,
                                               TracedHighway, published_cell)
from jaxnas.networks.recurrent_recipes import RecipeCell, read_recipe
from jaxnas.networks.recurrent_tree import FixedTree, TracedTree
from jaxnas.networks.supernet import Supernet, reduction_layers
from jaxnas.networks.traced import TracedNetwork

__all__ = [
    "BatchNorm", "CellStyle", "Dropout", "FilterNetwork", "FixedHighway", "FixedTree", "GRU",
    "LSTM", "LSTMPredictor", "LanguageModel", "Layout", "MLPPredictor", "MacroNetwork", "MixedCell",
    "MixedHighway", "MobileNetwork", "MorphableNetwork", "MorphableSlots", "NASBench201Network",
    "Network", "OPERATIONS", "Operation", "PairNetwork", "RecipeCell", "SharedHighway", "Supernet",
    "TracedHighway", "TracedMorphableNetwork", "TracedNetwork", "TracedPairNetwork", "TracedTree",
    "block_layout", "decision_layout", "depthwise", "drop_path", "edge_index", "independent_logits",
    "lstm_controller", "mixed_edges", "num_edges", "own_operations", "predictor_ensemble",
    "published_cell", "read_recipe", "reduction_layers", "unroll",
]
