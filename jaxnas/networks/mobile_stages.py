"""Mobile networks as stages: the decoded form, its block strings, and the published models.

MnasNet (Tan et al., 2019, https://arxiv.org/abs/1807.11626) stacks stages of equal layers. The
authors' released code writes a stage as "r3_k5_s22_e3_i24_o40_se0.25": 3 layers, kernel 5x5, the
first of stride 2, expansion 3, 24 channels in, 40 out, squeeze-excitation at a quarter.

Host only: nothing here is an array.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

OPERATIONS = ("conv", "mbconv")
SKIPS = ("pool", "identity", "none")
_BLOCK = re.compile(
    r"r([1-9]\d{0,2})_k([1-9]\d?)_s([12])([12])_e([1-9]\d?)_i([1-9]\d{0,5})_o([1-9]\d{0,5})"
    r"(_conv)?(?:_se(0\.\d{1,4}))?(_pool|_noskip)?", re.ASCII)


class Stage(NamedTuple):
    """Layers that are equal but for the stride, which only the first of them has.

    Attributes:
      operation: "mbconv", a depthwise convolution between two 1x1 ones (with expansion 1 the first
        is left out, which makes it a depthwise-separable convolution), or "conv", one dense one.
      kernel: odd side of the depthwise or dense kernel.
      stride: 1 or 2.
      expansion: width of the depthwise convolution in widths of the layer's input; 1 for "conv".
      filters: output channels of every layer.
      repeats: number of layers, 1 or more.
      se_ratio: channels of the squeeze in channels of the layer's input (not the expanded ones);
        0 for no squeeze-excitation. In [0, 1].
      skip: what is added to the output of a layer of stride 1 and equal widths: "identity" its
        input, "pool" the 3x3 average of its input, "none" nothing.
    """

    operation: str = "mbconv"
    kernel: int = 3
    stride: int = 1
    expansion: int = 1
    filters: int = 16
    repeats: int = 1
    se_ratio: float = 0.0
    skip: str = "identity"


class MobileModel(NamedTuple):
    """All that is searched or published of a mobile network.

    Attributes:
      stages: in order.
      stem_filters: channels of the 3x3 convolution before the first stage.
      stem_stride: of that convolution; 1 for small images.
      head_filters: channels of the 1x1 convolution after the last stage.
    """

    stages: tuple[Stage, ...]
    stem_filters: int = 32
    stem_stride: int = 2
    head_filters: int = 1280


def squeezed(se_ratio: float, inputs: int) -> int:
    """Return the channels of a squeeze: of the layer's `inputs`, rounded down, 1 at least."""
    return max(1, int(se_ratio * inputs))


def has_skip(stride: int, inputs: int, outputs: int) -> bool:
    """Tell whether a layer's input may be added to its output."""
    return stride == 1 and inputs == outputs


def validate(model: MobileModel) -> None:
    """Raise a `ValueError` that names what is wrong with a model."""
    check_sizes(model.stem_filters, model.stem_stride, model.head_filters)
    if not model.stages:
        raise ValueError("stages must hold one stage at least.")
    for number, stage in enumerate(model.stages):
        for name, allowed in (("operation", OPERATIONS), ("stride", (1, 2)), ("skip", SKIPS)):
            if getattr(stage, name) not in allowed:
                raise ValueError(f"{name} of stage {number} must be one of {allowed}, got "
                                 f"{getattr(stage, name)!r}.")
        for name in ("kernel", "expansion", "filters", "repeats"):
            value = getattr(stage, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of stage {number} must be an integer of 1 or more, got "
                                 f"{value!r}.")
        if stage.kernel % 2 == 0:
            raise ValueError(f"kernel of stage {number} must be odd, got {stage.kernel}.")
        if stage.operation == "conv" and stage.expansion != 1:
            raise ValueError(f"expansion of stage {number} must be 1, a dense convolution has no "
                             f"other, got {stage.expansion}.")
        if not 0 <= stage.se_ratio <= 1:
            raise ValueError(f"se_ratio of stage {number} must be in [0, 1], got "
                             f"{stage.se_ratio}.")


def check_sizes(stem_filters: int, stem_stride: int, head_filters: int) -> None:
    """Raise a `ValueError` unless stem and head make sense."""
    for name, value in (("stem_filters", stem_filters), ("head_filters", head_filters)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}.")
    if stem_stride not in (1, 2):
        raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}.")


def block_strings(model: MobileModel) -> tuple[str, ...]:
    """Write the stages in the notation of the authors' code.

    Two suffixes are ours: "_conv" for a dense convolution and "_pool" for a pooled skip. "_noskip"
    is theirs.
    """
    texts, inputs = [], model.stem_filters
    for stage in model.stages:
        texts.append(
            f"r{stage.repeats}_k{stage.kernel}_s{stage.stride}{stage.stride}_e{stage.expansion}"
            f"_i{inputs}_o{stage.filters}" + "_conv" * (stage.operation == "conv")
            + (f"_se{stage.se_ratio:g}" if stage.se_ratio else "")
            + {"identity": "", "pool": "_pool", "none": "_noskip"}[stage.skip])
        inputs = stage.filters
    return tuple(texts)


def from_block_strings(texts: Sequence[str], *, stem_filters: int = 32, stem_stride: int = 2,
                       head_filters: int = 1280) -> MobileModel:
    """Read what `block_strings` writes.

    Raises:
      ValueError: a text that is no block string, or whose input is not the output before it.
    """
    stages, inputs = [], stem_filters
    for number, text in enumerate(texts):
        found = _BLOCK.fullmatch(text) if isinstance(text, str) else None
        if found is None or found[3] != found[4]:
            raise ValueError(f"block {number} must read like 'r3_k5_s22_e3_i24_o40_se0.25', with "
                             f"'_noskip' or '_pool' at the end or not, got {text!r:.60}.")
        repeats, kernel, stride, _, expansion, given, filters = map(int, found.groups()[:7])
        if given != inputs:
            raise ValueError(f"block {number} must have the input i{inputs}, which is the output "
                             f"before it, got i{given}.")
        skip = {None: "identity", "_pool": "pool", "_noskip": "none"}[found[10]]
        stages.append(Stage("conv" if found[8] else "mbconv", kernel, stride, expansion, filters,
                            repeats, float(found[9] or 0), skip))
        inputs = filters
    model = MobileModel(tuple(stages), stem_filters, stem_stride, head_filters)
    validate(model)
    return model


def scaled(model: MobileModel, multiplier: float) -> MobileModel:
    """Multiply the widths of stem and stages, each to a multiple of 8; the head stays.

    The nearest multiple is taken, 8 at least, and the next one where that is more than a tenth
    narrower than asked for.

    Raises:
      ValueError: a multiplier that is not positive.
    """
    if not multiplier > 0:
        raise ValueError(f"multiplier must be positive, got {multiplier}.")

    def width(filters: int) -> int:
        rounded = max(8, int(filters * multiplier + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * filters * multiplier else rounded

    stages = tuple(stage._replace(filters=width(stage.filters)) for stage in model.stages)
    return model._replace(stages=stages, stem_filters=width(model.stem_filters))


PUBLISHED: Mapping[str, MobileModel] = MappingProxyType({
    "MNASNET_B1": from_block_strings((
        "r1_k3_s11_e1_i32_o16_noskip", "r3_k3_s22_e3_i16_o24", "r3_k5_s22_e3_i24_o40",
        "r3_k5_s22_e6_i40_o80", "r2_k3_s11_e6_i80_o96", "r4_k5_s22_e6_i96_o192",
        "r1_k3_s11_e6_i192_o320_noskip")),
    "MNASNET_A1": from_block_strings((
        "r1_k3_s11_e1_i32_o16_noskip", "r2_k3_s22_e6_i16_o24", "r3_k5_s22_e3_i24_o40_se0.25",
        "r4_k3_s22_e6_i40_o80", "r2_k3_s11_e6_i80_o112_se0.25", "r3_k5_s22_e6_i112_o160_se0.25",
        "r1_k3_s11_e6_i160_o320")),
    # The released text of the first block is i16_o8, though the stem gives 8: counts follow the 8,
    # and the released code, which compares 16 with 8, adds no skip. Its dropout rate is 0.
    "MNASNET_SMALL": from_block_strings((
        "r1_k3_s11_e1_i8_o8_noskip", "r1_k3_s22_e3_i8_o16", "r2_k3_s22_e6_i16_o16",
        "r4_k5_s22_e6_i16_o32_se0.25", "r3_k3_s11_e6_i32_o32_se0.25",
        "r3_k5_s22_e6_i32_o88_se0.25", "r1_k3_s11_e6_i88_o144"), stem_filters=8),
})
