"""The recurrent space of ENAS (Pham et al., 2018, https://arxiv.org/abs/1802.03268, section 2.1).

As google-research's enas_lm has it, which its authors recommend in place of their first release:
the state before node 1 is not searched and goes through tanh, the output is the mean of all nodes,
and nothing is normalised. (In the first release node 0's activation is searched, its activations
are ordered tanh, relu, identity, sigmoid, and the output is the mean of the loose ends.)
"""

import dataclasses

from jaxnas.networks.recurrent_highway import SharedHighway, TracedHighway
from jaxnas.search_spaces.recurrent_trees import RecurrentTree, check_tree

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")  # of enas_lm, in order


@dataclasses.dataclass(frozen=True)
class ENASRNN(RecurrentTree):
    """N nodes: `arch` [L] is [N, 2] flattened, rows (source, activation), L = 16.

    Sources are 0 .. i - 1 for node i = 1 .. N, and 0 is the state made of input and hidden state;
    an activation is an index into `activations`. This is the order of enas_lm, whose released arc
    is "sigmoid 0|tanh 1|relu 2|sigmoid 2|tanh 4|tanh 5|sigmoid 3|sigmoid 6" here.

    Attributes:
      num_nodes: N; 8 in the released cell, 12 in the paper.
      activations: A names.

    Raises:
      ValueError: num_nodes is not in [1, 16]; an unknown or repeated activation, or none.
    """

    num_nodes: int = 8
    activations: tuple[str, ...] = ACTIVATIONS

    def __post_init__(self):
        check_tree(self.num_nodes, self.activations)

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "enas_rnn"

    @property
    def choices(self) -> tuple[str, ...]:
        """The activations that a node may have."""
        return self.activations

    @property
    def source_first(self) -> bool:
        """Rows are (source, activation)."""
        return True

    def shared_cell(self, **options) -> SharedHighway:
        """Return the weights of all archs, of which a cell uses its own; takes `split(arch)`."""
        return SharedHighway(self.num_nodes, self.activations, **options)

    def traced_cell(self, **options) -> TracedHighway:
        """Return the one cell for every arch, which takes `split(arch)`."""
        return TracedHighway(self.num_nodes, self.activations, **options)
