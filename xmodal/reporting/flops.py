"""Arithmetic of a model, counted from its jaxpr, and how much of the hardware's peak a run reaches.

XLA's own `cost_analysis` counts a scan body once, reports one device after compilation and hides recomputation;
the jaxpr has none of these. Only matrix products and convolutions count, as in the PaLM paper's definition of
model FLOP utilisation (appendix B); everything else is small beside them.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core


def count_flops(fn: Callable, *args: Any, **kwargs: Any) -> int:
    """Floating-point operations of one call of `fn` over all devices; a multiply-add counts as two.

    Matrix products and convolutions are counted, multiplied through scans and shards. Recomputation under
    `jax.checkpoint` is in the trace and therefore counted: trace a model without remat for MFU. A `while` body
    counts once, as its trip count is unknown; of the branches of a `cond` the costliest counts. cuDNN's attention,
    which has no jaxpr, counts as its two products forward and five backward.

    Args:
      fn: any traceable function, jitted or not; nothing is compiled or run.
      *args: arrays or `jax.ShapeDtypeStruct`s.
      **kwargs: the same, by name.
    """
    return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name.startswith("dot_product_attention_"):
        return _attention(equation, 5 if "bwd" in name else 2)
    inner = [_count(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # the body is one shard's share
        axes = params.get("newly_manual_axes", params.get("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Every jaxpr among an equation's parameters: the bodies of jit, remat, custom derivatives, loops, branches."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _attention(equation: core.JaxprEqn, products: int) -> int:
    """cuDNN's attention of queries [batch, queries, heads, dim] to keys [batch, keys, heads, dim]."""
    (batch, queries, heads, dim), keys = equation.invars[0].aval.shape, equation.invars[1].aval.shape[1]
    return 2 * products * batch * heads * queries * keys * dim


def _convolution(equation: core.JaxprEqn) -> int:
    """Only products with real pixels count: padding and the holes of a dilated input are free.

    So a strided convolution's gradients cost exactly what its forward pass costs.
    """
    params, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    channels = output[numbers.out_spec[0]] * output[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    products = 1
    for axis in range(len(image) - 2):
        places = np.arange(output[numbers.out_spec[2 + axis]])[:, None] * params["window_strides"][axis]
        taps = np.arange(kernel[numbers.rhs_spec[2 + axis]])[None] * params["rhs_dilation"][axis]
        dilation = params["lhs_dilation"][axis]
        index = places + taps - params["padding"][axis][0]
        last = (image[numbers.lhs_spec[2 + axis]] - 1) * dilation
        products *= int(np.sum((index >= 0) & (index <= last) & (index % dilation == 0)))
    return 2 * channels * products


# Dense bf16 peak of one JAX device in TFLOP/s (float16 where the device has no bf16), from the vendors' data
# sheets; the first pattern found in the device kind wins. Figures "with sparsity" are halved. TPU v2, v3 and 7x
# show each core of a chip as a device.
_PEAKS = tuple(
    (re.compile(pattern, re.IGNORECASE), tflops)
    for pattern, tflops in (
        (r"TPU v2", 23),
        (r"TPU v3", 61.5),
        (r"TPU v4 lite|TPU v4i", 138),
        (r"TPU v4", 275),
        (r"TPU v5 lite|TPU v5e", 197),
        (r"TPU v5", 459),
        (r"TPU v6", 918),
        (r"TPU ?v?7", 1153.5),
        (r"\bGB[23]00\b", 2500),
        (r"\bB[23]00\b", 2250),
        (r"\bB100\b", 1750),
        (r"\bH[12]00 NVL\b", 835.5),
        (r"\bH[18]00 PCIe\b", 756),
        (r"\b(GH200|H100|H200|H800)\b", 989.4),
        (r"\bH20\b", 148),
        (r"\bA[18]00\b", 312),
        (r"\bA40\b", 149.7),
        (r"\bA30\b", 165),
        (r"\bA10G\b", 70),
        (r"\bA10\b", 125),
        (r"\bL40S\b", 362),
        (r"\bL40\b", 181),
        (r"\bL4\b", 121),
        (r"\bV100.*PCIE\b", 112),
        (r"\bV100", 125),
        (r"\bT4\b", 65),
        (r"\bRTX 5090\b", 209.5),
        (r"\bRTX 4090\b", 165.2),
        (r"\bRTX 4080\b", 97.5),
        (r"\bRTX 3090\b", 71.2),
        (r"\bRTX A6000\b", 154.8),
        (r"\bMI300X\b", 1307.4),
        (r"\bMI250X\b", 191.5),
    )
)


def device_peak_flops(device: jax.Device | str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None for a CPU and for devices that the table does not know.

    Args:
      device: a JAX device, or its `device_kind`.
    """
    kind = device if isinstance(device, str) else device.device_kind
    return next((tflops * 1e12 for pattern, tflops in _PEAKS if pattern.search(kind)), None)


def mfu(flops_per_sample: float, samples_per_s: float, devices: list[jax.Device] | None = None) -> float | None:
    """Model FLOP utilisation 0..1: the model's arithmetic per second over the peak of all devices.

    Args:
      flops_per_sample: forward and backward, without recomputation (`count_flops`).
      samples_per_s: samples per second over all devices.
      devices: the devices of the run; all by default.

    Returns:
      None where a device's peak is unknown.
    """
    peaks = [device_peak_flops(device) for device in (jax.devices() if devices is None else devices)]
    if any(peak is None for peak in peaks):
        return None
    return flops_per_sample * samples_per_s / sum(peaks)
