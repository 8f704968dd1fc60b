"""Search spaces: one file, one section of a paper."""

from jaxnas.search_spaces.amoebanet import AmoebaNet
from jaxnas.search_spaces.darts import DARTS
from jaxnas.search_spaces.darts_rnn import DARTSRNN
from jaxnas.search_spaces.enas_macro import ENASMacro
from jaxnas.search_spaces.enas_micro import ENASMicro
from jaxnas.search_spaces.enas_rnn import ENASRNN
from jaxnas.search_spaces.mnasnet import MnasNet
from jaxnas.search_spaces.morphable_cnn import MorphableCNN
from jaxnas.search_spaces.nasbench101 import NASBench101
from jaxnas.search_spaces.nasbench201 import NASBench201
from jaxnas.search_spaces.nasbench_macro import NASBenchMacro
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.nasrl import NASRL
from jaxnas.search_spaces.nasrl_rnn import NASRLRNN
from jaxnas.search_spaces.nats_size import NATSSize
from jaxnas.search_spaces.pair_cells import PairCellSpace
from jaxnas.search_spaces.pnas import PNAS
from jaxnas.search_spaces.pnas_growing import GrowingPNAS
from jaxnas.search_spaces.product import IndependentDecisions, Product

__all__ = [
    "AmoebaNet", "DARTS", "DARTSRNN", "ENASMacro", "ENASMicro", "ENASRNN", "GrowingPNAS",
    "IndependentDecisions", "MnasNet", "MorphableCNN", "NASBench101", "NASBench201",
    "NASBenchMacro", "NASNet", "NASRL", "NASRLRNN", "NATSSize", "PNAS", "PairCellSpace", "Product",
]
