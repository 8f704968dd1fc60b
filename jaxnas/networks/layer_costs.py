"""What a layer costs, by closed form: its parameters and its multiply-adds for one image.

Only convolutions and dense layers count as multiply-adds, as in the papers of the NASNet family;
batch normalisation has a scale and an offset a channel, and its running statistics are none.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds; `+` adds both.

    Attributes:
      parameters: trainable numbers.
      multiply_adds: of convolutions and dense layers, for one image.
    """

    parameters: int = 0
    multiply_adds: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters, self.multiply_adds + other.multiply_adds
        )


def convolution(taps: int, channels: int, features: int, pixels: int, affine: bool = False) -> Cost:
    """Return the cost of a dense convolution without bias, and of the BN after it if `affine`.

    Args:
      taps: of one kernel, K * J.
      channels: of the input.
      features: of the output.
      pixels: of the output, H * W.
      affine: whether a scale and an offset a feature follow.
    """
    kernel = taps * channels * features
    return Cost(kernel + 2 * features * affine, kernel * pixels)


def separable(taps: int, channels: int, features: int, pixels: int, affine: bool = False) -> Cost:
    """Return the cost of a depthwise and a 1x1 convolution; arguments as in `convolution`."""
    depthwise = Cost(taps * channels, taps * channels * pixels)
    return depthwise + convolution(1, channels, features, pixels, affine)


def dense(channels: int, features: int, bias: bool = True) -> Cost:
    """Return the cost of a classifier."""
    return Cost(channels * features + features * bias, channels * features)
