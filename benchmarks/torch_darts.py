"""The networks of DARTS in PyTorch, and their gradients: what our JAX forms are compared with.

Written from the papers (https://arxiv.org/abs/1806.09055, section 2 and appendix A), in the form
that was fastest on 2 CPU cores: parameters are a flat dictionary of tensors given to pure
functions, so that a gradient goes to exactly what is asked for. The search network shares between
the edges that leave a node what the definition computes once an edge: its ReLU, its pools, and one
grouped convolution a candidate for all destinations; the weight of a candidate is the scale of its
batch normalisation, which costs no pass over memory. A gradient asks for what it returns and no
more: where only the alphas' is wanted, PyTorch skips the gradients of all kernels.

    loss = supernet_loss(TorchSupernet(operations, features=8, num_layers=4))
    value, gradient = finite_difference(loss, params, alphas, train, valid, rate=0.025)

Images are [N, C', H, W]. All batch normalisation is by the statistics of the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from jaxnas.genotypes import CellGenotype, Genotype
from jaxnas.networks.mixed import CONVOLUTIONS, edge_index, num_edges
from jaxnas.networks.supernet import reduction_layers

Tensors = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]  # images [N, C', H, W], labels [N]
Loss = Callable[[Tensors, torch.Tensor, Batch], torch.Tensor]
EPSILON = 1e-5  # of every batch normalisation
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def normalize(
    x: torch.Tensor, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Batch-normalise x [N, C, H, W] by its own statistics; scale and bias are [C] or None."""
    return F.batch_norm(x, None, None, scale, bias, training=True, eps=EPSILON)


def pool(name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    """Pool by "max_pool_KxK", or "avg_pool_KxK" of odd K, in which padding does not count."""
    size = int(name[-1])
    if name.startswith("max"):
        if size % 2 == 0:  # one more pixel after the image than before it
            before, after = (size - 1) // 2, size // 2
            x = F.pad(x, (before, after) * 2, value=-torch.inf)
        return F.max_pool2d(x, size, stride, size // 2 if size % 2 else 0)
    return F.avg_pool2d(x, size, stride, size // 2, count_include_pad=False)


def factorized_reduce(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Halve x [N, C', H, W] by two 1x1 convolutions, one a pixel off; kernel [2, F / 2, C', 1, 1].

    Returns:
      [N, F, H / 2, W / 2].
    """
    even, odd = F.conv2d(x, kernel[0], stride=2), F.conv2d(x[:, :, 1:, 1:], kernel[1], stride=2)
    return torch.cat([even, odd], 1)


def separable(
    x: torch.Tensor,
    depthwise: torch.Tensor,
    pointwise: torch.Tensor,
    stride: int = 1,
    dilation: int = 1,
) -> torch.Tensor:
    """Convolve every channel alone, then 1x1: x [N, D C, H, W], D edges side by side.

    Args:
      x: rectified already.
      depthwise: [D C, 1, K, K].
      pointwise: [D F, C, 1, 1].
      stride: of the first.
      dilation: of the first.
    """
    channels, _, size, _ = depthwise.shape
    convolve = functools.partial(F.conv2d, weight=depthwise, groups=channels)
    pad = (size - 1) // 2
    if dilation == 2 and not (x.shape[2] % 2 or x.shape[3] % 2):
        # The gradients of dilated convolutions are slow: convolve the pixels of each parity alone.
        if stride == 2:
            x = convolve(x[:, :, ::2, ::2], padding=pad)
        else:
            x = _join(convolve(_split(x), padding=pad))
    else:
        x = convolve(x, stride=stride, padding=dilation * pad, dilation=dilation)
    return F.conv2d(x, pointwise, groups=channels // pointwise.shape[1])


def _split(x: torch.Tensor) -> torch.Tensor:
    """Deal the pixels of [N, C, H, W] by parity of row and column: [4 N, C, H / 2, W / 2]."""
    batch, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(2, 4, 0, 1, 3, 5).reshape(4 * batch, height // 2, width // 2, channels)
        return x.permute(0, 3, 1, 2)
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(3, 5, 0, 1, 2, 4)
    return x.reshape(4 * batch, channels, height // 2, width // 2)


def _join(x: torch.Tensor) -> torch.Tensor:
    """Undo `_split`: [4 N, C, H, W] -> [N, C, 2 H, 2 W]."""
    batch, channels, height, width = len(x) // 4, *x.shape[1:]
    if x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(2, 2, batch, height, width, channels)
        x = x.permute(2, 3, 0, 4, 1, 5).reshape(batch, 2 * height, 2 * width, channels)
        return x.permute(0, 3, 1, 2)
    x = x.reshape(2, 2, batch, channels, height, width).permute(2, 3, 4, 0, 5, 1)
    return x.reshape(batch, channels, 2 * height, 2 * width)


@dataclasses.dataclass(frozen=True)
class TorchSupernet:
    """The search network: `apply(parameters, images, weights)`; attributes as in our `Supernet`.

    Its parameters, with D_j edges that leave state j of a cell, in the order of the nodes:
    `stem_kernel` [S, C', 3, 3], `stem_scale` [S], `stem_bias` [S], `preprocess_{cell}_{0 or 1}`
    [C, C', 1, 1], or [2, C / 2, C', 1, 1] after a reduction, `cell_{cell}_{state}_{operation}_`
    with `depthwise_{block}` [D_j C, 1, K, K], `pointwise_{block}` [D_j C, C, 1, 1] or `kernel`
    [2, D_j C / 2, C, 1, 1] (a skip connection of stride 2), `head_kernel` [classes, n C] and
    `head_bias`.
    """

    operations: tuple[str, ...]
    features: int = 16
    num_layers: int = 8
    num_classes: int = 10
    num_nodes: int = 4
    stem_multiplier: int = 3

    def destinations(self, source: int) -> list[int]:
        """Return the nodes that state `source` has an edge to."""
        return list(range(max(0, source - 1), self.num_nodes))

    def apply(
        self, params: Tensors, images: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits [N, classes] of images [N, C', H, W], weights [2, E, O] after softmax.

        Raises:
          ValueError: the weights have another shape.
        """
        expected = (2, num_edges(self.num_nodes), len(self.operations))
        if tuple(weights.shape) != expected:
            raise ValueError(f"weights must be {expected}, got {tuple(weights.shape)}.")
        stem = F.conv2d(images, params["stem_kernel"], padding=1)
        before = previous = normalize(stem, params["stem_scale"], params["stem_bias"])
        reduced, reductions = False, reduction_layers(self.num_layers)
        for layer in range(self.num_layers):
            reduction = layer in reductions
            kernel = params[f"preprocess_{layer}_0"]
            convolve = factorized_reduce if reduced else F.conv2d
            s0 = normalize(convolve(F.relu(before), kernel))
            s1 = normalize(F.conv2d(F.relu(previous), params[f"preprocess_{layer}_1"]))
            output = self._cell(params, f"cell_{layer}", s0, s1, weights[int(reduction)], reduction)
            before, previous, reduced = previous, output, reduction
        return F.linear(previous.mean((2, 3)), params["head_kernel"], params["head_bias"])

    def _cell(self, params, cell, s0, s1, weights, reduction):
        sums: list = [None] * self.num_nodes
        for source in range(self.num_nodes + 1):
            x = (s0, s1)[source] if source < 2 else sums[source - 2]
            nodes = self.destinations(source)
            rows = weights[[edge_index(node, source) for node in nodes]]
            stride = 2 if reduction and source < 2 else 1
            outputs = self._source(params, f"{cell}_{source}", x, rows, stride)
            for node, output in zip(nodes, outputs):
                sums[node] = output if sums[node] is None else sums[node] + output
        return torch.cat(sums, 1)

    def _source(self, params, prefix, x, weights, stride):
        """Return the weighted sum of all operations on x, one tensor an edge that leaves it."""
        edges, channels = len(weights), x.shape[1]
        # [O, D C], of every output channel. The gradient of BN in channels_last reads its scale as
        # if it were dense (PyTorch 2.13, CPU, no error): rows of this one are, columns are not.
        scales = weights.t().repeat_interleave(channels, 1)
        rectified = F.relu(x)
        wide = torch.cat([rectified] * edges, 1)  # `repeat` would lose the memory format
        shared, own = [], []  # of [N, C, ...] with their weights [D]; weighted, of [N, D C, ...]
        for column, name in enumerate(self.operations):
            if name == "none":
                continue
            label, scale = f"{prefix}_{name}", scales[column]
            if name in CONVOLUTIONS:
                _, dilation, blocks = CONVOLUTIONS[name]
                y = wide
                for block in range(blocks):
                    kernels = [params[f"{label}_{kind}_{block}"]
                               for kind in ("depthwise", "pointwise")]
                    y = y if block == 0 else F.relu(y)
                    y = separable(y, *kernels, 1 if block else stride, dilation)
                    y = normalize(y, scale if block == blocks - 1 else None)
                own.append(y)
            elif name == "skip_connect" and stride == 2:
                y = factorized_reduce(rectified, params[f"{label}_kernel"])
                y = y.unflatten(1, (2, edges, channels // 2)).transpose(1, 2).flatten(1, 3)
                own.append(normalize(y, scale))
            elif name == "skip_connect":
                shared.append((x, weights[:, column]))
            else:
                shared.append((normalize(pool(name, x, stride)), weights[:, column]))
        outputs = functools.reduce(torch.add, own).chunk(edges, 1) if own else [None] * edges
        for y, column in shared:
            outputs = [y * w if out is None else torch.addcmul(out, y, w)
                       for out, w in zip(outputs, column)]
        return outputs


@dataclasses.dataclass(frozen=True)
class TorchNetwork:
    """The fixed network of a genotype in training: `apply(parameters, images)`.

    The CIFAR form of our `Network` without auxiliary head, drop path and running statistics.
    Parameters have the names of ours, joined by "/"; their layout is that of `torch_weights`.
    """

    genotype: Genotype
    features: int = 36
    layers: int = 20

    def apply(self, params: Tensors, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, classes] of images [N, C', H, W]."""
        x = F.conv2d(images, params["stem/kernel_0"], padding=1)
        before = previous = _affine(params, "stem/norm_0", x)
        reduced, reductions = False, reduction_layers(self.layers)
        for layer in range(self.layers):
            reduction = layer in reductions
            cell = self.genotype.reduction if reduction else self.genotype.normal
            output = self._cell(params, f"cell_{layer}", cell, before, previous, reduction, reduced)
            before, previous, reduced = previous, output, reduction
        return F.linear(previous.mean((2, 3)), params["head/kernel"], params["head/bias"])

    def _cell(self, params, prefix, cell: CellGenotype, before, previous, reduction, reduced):
        states = []
        for number, x in enumerate((before, previous)):
            label = f"{prefix}/preprocess_{number}"
            convolve = factorized_reduce if reduced and not number else F.conv2d
            y = convolve(F.relu(x), params[f"{label}/kernel"])
            states.append(_affine(params, f"{label}/norm", y))
        for node in range(cell.num_nodes):
            total = None
            for edge in (2 * node, 2 * node + 1):
                name, source = cell.edges[edge]
                stride = 2 if reduction and source < 2 else 1
                y = operation(name, params, f"{prefix}/edge_{edge}/", states[source], stride)
                total = y if total is None else total + y
            states.append(total)
        return torch.cat([states[state] for state in cell.concat], 1)


def operation(
    name: str, params: Tensors, prefix: str, x: torch.Tensor, stride: int = 1
) -> torch.Tensor:
    """Apply one of `jaxnas.networks.operations.OPERATIONS` in training: x [N, C, H, W].

    Args:
      name: of the operation, affine and without BN after pools: their defaults.
      params: of the operation; their names are ours after `prefix`.
      prefix: "" or a path that ends in "/".
      x: [N, C, H, W]; H and W even where stride is 2.
      stride: 1 or 2.
    """
    if name == "skip_connect":
        if stride == 1:
            return x
        y = factorized_reduce(F.relu(x), params[f"{prefix}kernel"])
        return _affine(params, f"{prefix}norm", y)
    if "pool" in name:
        return pool(name, x, stride)
    if name.startswith("conv"):
        return _dense(name, params, prefix, x, stride)
    if name in CONVOLUTIONS:
        _, dilation, blocks = CONVOLUTIONS[name]
    else:  # dil_sep_conv_KxK
        dilation, blocks = 2, 2
    for block in range(blocks):
        kernels = [params[f"{prefix}{kind}_{block}"] for kind in ("depthwise", "pointwise")]
        x = separable(F.relu(x), *kernels, 1 if block else stride, dilation)
        x = _affine(params, f"{prefix}norm_{block}", x)
    return x


def _dense(name, params, prefix, x, stride):
    """Apply conv_AxB, or conv_AxB_BxA: BN and ReLU between the two, but not in conv_7x1_1x7."""
    sizes = ["1x7", "7x1"] if name == "conv_7x1_1x7" else name.split("_")[1:]
    x = F.relu(x)
    for number, size in enumerate(sizes):
        first, last = number == 0, number == len(sizes) - 1
        kernel = params[f"{prefix}kernel_{size}"]
        strides = (stride if last else 1, stride if first else 1)
        x = F.conv2d(x, kernel, None, strides, [taps // 2 for taps in kernel.shape[2:]])
        if last:
            x = _affine(params, f"{prefix}norm", x)
        elif name != "conv_7x1_1x7":
            x = F.relu(_affine(params, f"{prefix}norm_{size}", x))
    return x


def _affine(params: Tensors, label: str, x: torch.Tensor) -> torch.Tensor:
    return normalize(x, params[f"{label}/scale"], params[f"{label}/bias"])


def supernet_loss(net: TorchSupernet) -> Loss:
    """Return (parameters, alphas [2, E, O], batch) -> mean cross-entropy, []."""

    def loss(params: Tensors, alphas: torch.Tensor, batch: Batch) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(net.apply(params, images, alphas.softmax(-1)), labels)

    return loss


def weight_gradient(
    loss: Loss, params: Tensors, alphas: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, Tensors]:
    """Return the loss and its gradient with respect to the parameters."""
    leaves = _leaves(params)
    value = loss(leaves, alphas.detach(), batch)
    return value.detach(), _grad(value, leaves)


def alpha_gradient(
    loss: Loss, params: Tensors, alphas: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and its gradient with respect to the alphas: DARTS of first order."""
    alphas = alphas.detach().requires_grad_()
    value = loss(params, alphas, batch)
    return value.detach(), torch.autograd.grad(value, alphas)[0]


def look_ahead(
    params: Tensors, grads: Tensors, rate: float, weight_decay: float = 0.0
) -> Tensors:
    """Return w' = w - rate (g + weight_decay w), the first step of SGD with any momentum."""
    return {name: torch.add(value * (1 - rate * weight_decay), grads[name], alpha=-rate)
            for name, value in params.items()}


def finite_difference(
    loss: Loss, params: Tensors, alphas: torch.Tensor, train: Batch, valid: Batch, *,
    rate: float, weight_decay: float = 0.0, radius: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the validation loss and the published second-order gradient (equations 7 and 8).

    With v the gradient at w' and e = radius / |v|, the second term is
    -rate (grad_a L(w + e v) - grad_a L(w - e v)) / (2 e): four gradients in all.

    Args:
      loss: of (parameters, alphas, batch).
      params: of any names.
      alphas: [2, E, O].
      train: batch of the look-ahead and of both perturbed gradients.
      valid: batch of the validation loss.
      rate: xi, of the look-ahead's step.
      weight_decay: of that step.
      radius: r, length of the perturbation.
    """
    _, grads = weight_gradient(loss, params, alphas, train)
    leaves = _leaves(look_ahead(params, grads, rate, weight_decay))
    there = alphas.detach().requires_grad_()
    value = loss(leaves, there, valid)
    direct, *vector = torch.autograd.grad(value, [there, *leaves.values()])
    step = radius / float(torch.stack([v.square().sum() for v in vector]).sum().sqrt())
    ends = ({name: torch.add(weight, v, alpha=sign * step)
             for (name, weight), v in zip(params.items(), vector)} for sign in (1, -1))
    plus, minus = (alpha_gradient(loss, end, alphas, train)[1] for end in ends)
    return value.detach(), direct - rate * (plus - minus) / (2 * step)


def exact(
    loss: Loss, params: Tensors, alphas: torch.Tensor, train: Batch, valid: Batch, *,
    rate: float, weight_decay: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the validation loss and its exact gradient through the step, by double backward.

    Arguments as in `finite_difference`. Slow: the second derivatives of PyTorch's convolutions are.
    """
    alphas, leaves = alphas.detach().requires_grad_(), _leaves(params)
    grads = _grad(loss(leaves, alphas, train), leaves, create_graph=True)
    value = loss(look_ahead(leaves, grads, rate, weight_decay), alphas, valid)
    return value.detach(), torch.autograd.grad(value, alphas)[0]


def _leaves(params: Tensors) -> Tensors:
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def _grad(value: torch.Tensor, leaves: Tensors, create_graph: bool = False) -> Tensors:
    grads = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph)
    return dict(zip(leaves, grads))
