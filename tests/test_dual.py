"""The derivative: each rule against torch.func.jvp, the modes against one another, and what must not be recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from trigflow import dual
from trigflow.dual import MODES, RULES, Dual, fallbacks, value_and_tangent
from trigflow.dual.elementwise import constant
from trigflow.dual.value import read_number
from trigflow.errors import UserError

# ----------------------------------------------------------------------------------------------------------------------
# Every rule in the table against torch.func.jvp. A rule without a sample fails.


class Sample:
    """call(function, *tensors) on standard normal tensors of these shapes, or on uniform ones in (0.1, 0.9)."""

    def __init__(self, call: Callable[..., Any], *shapes: tuple[int, ...], unit: bool = False) -> None:
        self.call, self.shapes, self.unit = call, shapes, unit

    def tensors(self) -> list[Tensor]:
        if self.unit:
            return [torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1 for shape in self.shapes]
        return [torch.randn(shape, dtype=torch.float64) for shape in self.shapes]


X = (2, 3, 4)
IMAGE = (2, 4, 6, 6)
QKV = ((2, 2, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3))
INDEX = torch.tensor([2, 0, 1])


def one(call: Callable[..., Any] = lambda f, x: f(x), shape: tuple[int, ...] = X, unit: bool = False) -> Sample:
    return Sample(call, shape, unit=unit)


def two(
    call: Callable[..., Any] = lambda f, x, y: f(x, y),
    first: tuple[int, ...] = X,
    second: tuple[int, ...] = X,
    unit: bool = False,
) -> Sample:
    return Sample(call, first, second, unit=unit)


def joins(shape: tuple[int, ...] = X) -> Sample:
    return Sample(lambda f, x, y: f([x, y, x]), shape, shape)


def convolution(dims: int) -> list[Sample]:
    weight, size = (4, 2, *(3,) * dims), (2, 4, *(5,) * dims)
    return [
        Sample(lambda f, x, w, b: f(x, w, b, padding=1, groups=2), size, weight, (4,)),
        Sample(lambda f, x, w: f(x, w, None, 2, groups=2), size, weight),
    ]


def transposed(dims: int) -> list[Sample]:
    weight, size = (4, 2, *(3,) * dims), (2, 4, *(4,) * dims)
    return [Sample(lambda f, x, w, b: f(x, w, b, 2, 1, 1), size, weight, (2,))]


UNARY = (
    "ravel neg negative positive trace exp exp2 expm1 log1p square reciprocal sin cos tan atan sinh cosh tanh sigmoid expit"
    " erf sinc abs absolute nan_to_num relu relu6 silu mish hardswish hardsigmoid logsigmoid softsign clone contiguous"
).split()
UNIT = "log log2 log10 sqrt rsqrt asin acos".split()
TRANSFORMS = "fft ifft fft2 ifft2 fftn ifftn fftshift ifftshift rfft irfft rfft2 irfft2 rfftn irfftn".split()
CASTS = "float double half bfloat16 cpu".split()

SAMPLES: dict[str, list[Sample]] = {
    **{name: [one()] for name in UNARY},
    **{name: [one(unit=True)] for name in UNIT},
    **{name: [one()] for name in TRANSFORMS},
    **{name: [one()] for name in CASTS},
    "cuda": [],  # needs the device
    "trace": [one(shape=(3, 3))],
    "type": [one(lambda f, x: f(x, torch.float32))],
    "to": [one(lambda f, x: f(x, torch.float32)), two(lambda f, x, y: f(x, y.float()))],
    # shapes
    "reshape": [one(lambda f, x: f(x, (6, 4)))],
    "view": [one(lambda f, x: f(x, 6, 4)), one(lambda f, x: f(x, (2, -1)))],
    "view_as": [two(second=(6, 4))],
    "reshape_as": [two(second=(6, 4))],
    "expand_as": [two(first=(3, 1))],
    "type_as": [two()],
    "flatten": [one(lambda f, x: f(x, 1))],
    "unflatten": [one(lambda f, x: f(x, 2, (2, 2)))],
    "permute": [one(lambda f, x: f(x, (2, 0, 1)))],
    **{name: [one(lambda f, x: f(x, 0, 2))] for name in ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis")},
    "t": [one(shape=(2, 3))],
    "adjoint": [one()],
    "squeeze": [one(lambda f, x: f(x, 1), (2, 1, 3))],
    "unsqueeze": [one(lambda f, x: f(x, 1))],
    "expand": [one(lambda f, x: f(x, 2, 3, 4), (3, 1))],
    "broadcast_to": [one(lambda f, x: f(x, (2, 3, 4)), (3, 1))],
    "narrow": [one(lambda f, x: f(x, 1, 1, 2))],
    "select": [one(lambda f, x: f(x, 1, 2))],
    "unbind": [one(lambda f, x: f(x, 1))],
    "chunk": [one(lambda f, x: f(x, 2, 2))],
    "split": [one(lambda f, x: f(x, 3, dim=2)), one(lambda f, x: f(x, [1, 3], dim=2))],
    "split_with_sizes": [one(lambda f, x: f(x, [1, 3], 2))],
    "tensor_split": [one(lambda f, x: f(x, 3, 2))],
    "__getitem__": [one(lambda f, x: f(x, (slice(None), 1, None))), one(lambda f, x: f(x, (0, INDEX)))],
    "index_select": [one(lambda f, x: f(x, 1, INDEX))],
    "gather": [one(lambda f, x: f(x, 0, INDEX[None] % 2), (2, 3))],
    "take_along_dim": [one(lambda f, x: f(x, INDEX[None] % 2, 0), (2, 3))],
    "masked_select": [one(lambda f, x: f(x, torch.arange(4) > 1))],
    "diagonal": [one()],
    "diag": [one(shape=(3, 3))],
    "diag_embed": [one()],
    "flip": [one(lambda f, x: f(x, (1,)))],
    "roll": [one(lambda f, x: f(x, 1, 2))],
    "rot90": [one()],
    "repeat": [one(lambda f, x: f(x, 2, 1, 1))],
    "repeat_interleave": [one(lambda f, x: f(x, 2, 1))],
    "tile": [one(lambda f, x: f(x, (2, 1)))],
    "unfold": [one(lambda f, x: f(x, 2, 2, 1) if f is Tensor.unfold else f(x, 2), IMAGE)],
    "fold": [one(lambda f, x: f(x, (3, 3), 2), (2, 8, 4))],
    "pixel_shuffle": [one(lambda f, x: f(x, 2), IMAGE)],
    "pixel_unshuffle": [one(lambda f, x: f(x, 2), IMAGE)],
    "tril": [one()],
    "triu": [one()],
    "pad": [one(lambda f, x: f(x, (1, 2), value=3.0)), one(lambda f, x: f(x, (1, 1), mode="reflect"))],
    "interpolate": [one(lambda f, x: f(x, scale_factor=2, mode=m), IMAGE) for m in ("nearest", "bilinear")],
    "upsample": [],  # deprecated by torch in favour of interpolate, and warns
    "real": [one()],
    "view_as_real": [one(lambda f, x: f(torch.view_as_complex(x)), (3, 2))],
    "view_as_complex": [one(lambda f, x: torch.view_as_real(f(x) * 2), (3, 2))],
    "masked_fill": [one(lambda f, x: f(x, torch.arange(4) > 1, 2.0)), two(lambda f, x, y: f(x, x > 0, y), X, ())],
    "where": [two(lambda f, x, y: f(x, x > 0, y) if f is Tensor.where else f(x > 0, x, y), X, (4,))],
    # sums and products
    "sum": [one(), one(lambda f, x: f(x, (0, 2), keepdim=True))],
    "mean": [one(), one(lambda f, x: f(x, dim=1))],
    "cumsum": [one(lambda f, x: f(x, 1))],
    "diff": [one()],
    **{f"avg_pool{d}d": [one(lambda f, x: f(x, 2), (2, 3, *(4,) * d))] for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": [one(lambda f, x: f(x, 2), (2, 3, *(5,) * d))] for d in (1, 2, 3)},
    **{name: [two(), two(second=(4,)), two(first=(3, 1))] for name in ("mul", "multiply", "add", "sub", "subtract")},
    "rsub": [two(), one(lambda f, x: f(x, 2))],
    "__rsub__": [two(), one(lambda f, x: f(x, 2))],
    **{name: [joins()] for name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")},
    "matmul": [two(second=(4, 2)), two(second=(2, 4, 5))],
    "bmm": [two(second=(2, 4, 5))],
    **{name: [two(first=(2, 3), second=(3, 4))] for name in ("mm", "spmm")},
    "mv": [two(first=(2, 3), second=(3,))],
    "dot": [two(first=(3,), second=(3,))],
    "inner": [two(first=(2, 3), second=(4, 3))],
    "outer": [two(first=(2,), second=(3,))],
    "tensordot": [two(lambda f, x, y: f(x, y, dims=1), second=(4, 2))],
    "kron": [two(first=(2, 2), second=(2, 3))],
    "einsum": [
        two(lambda f, x, y: f("bij,bjk->bik", x, y), second=(2, 4, 3)),
        Sample(lambda f, x, y, z: f("ij,jk,kl->il", [x, y, z]), (2, 3), (3, 4), (4, 2)),
    ],
    **{
        name: [two(unit=True), two(second=(4,), unit=True), one(lambda f, x: f(x, 3))]
        for name in ("div", "divide", "true_divide")
    },
    "addcmul": [Sample(lambda f, x, y, z: f(x, y, z, value=0.5), X, X, (4,))],
    "addmm": [Sample(lambda f, x, y, z: f(x, y, z, beta=2, alpha=3), (4,), (2, 3), (3, 4))],
    "baddbmm": [Sample(lambda f, x, y, z: f(x, y, z, beta=2, alpha=3), (2, 3, 5), X, (2, 4, 5))],
    "linear": [Sample(lambda f, x, w, b: f(x, w, b), X, (5, 4), (5,)), two(second=(5, 4))],
    **{f"conv{d}d": convolution(d) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": transposed(d) for d in (1, 2, 3)},
    # elements
    "clamp": [one(lambda f, x: f(x, -0.5, 0.5)), one(lambda f, x: f(x, min=0.1)), two(lambda f, x, y: f(x, max=y))],
    "clip": [one(lambda f, x: f(x, -0.5, 0.5))],
    "clamp_min": [one(lambda f, x: f(x, 0.1))],
    "clamp_max": [one(lambda f, x: f(x, 0.1))],
    "leaky_relu": [one(lambda f, x: f(x, 0.2)), one(lambda f, x: f(x, inplace=True))],
    "elu": [one(lambda f, x: f(x, 0.7))],
    "gelu": [one(), one(lambda f, x: f(x, approximate="tanh"))],
    "softplus": [one(lambda f, x: f(x, 2.0))],
    "hardtanh": [one(lambda f, x: f(x, -0.5, 0.5))],
    "pow": [one(lambda f, x: f(x, 3)), one(lambda f, x: f(x, -0.5), unit=True), two(unit=True)],
    "__pow__": [one(lambda f, x: f(x, 2)), two(unit=True)],
    **{name: [two()] for name in ("atan2", "arctan2", "maximum", "minimum")},
    "lerp": [Sample(lambda f, x, y, w: f(x, y, w), X, X, X), two(lambda f, x, y: f(x, y, 0.3))],
    # layers
    "softmax": [one(lambda f, x: f(x, dim=1)), one(lambda f, x: f(x, dim=-1, dtype=torch.float64))],
    "log_softmax": [one(lambda f, x: f(x, dim=1))],
    "logsumexp": [one(lambda f, x: f(x, 1)), one(lambda f, x: f(x, (0, 2), keepdim=True))],
    "layer_norm": [
        Sample(lambda f, x, w, b: f(x, (3, 4), w, b), X, (3, 4), (3, 4)),
        one(lambda f, x: f(x, (4,), None, None, 1e-3)),
    ],
    "group_norm": [Sample(lambda f, x, w, b: f(x, 2, w, b), IMAGE, (4,), (4,)), one(lambda f, x: f(x, 4), (2, 4))],
    "instance_norm": [
        Sample(lambda f, x, w, b: f(x, None, None, w, b, True, 0.1, 1e-5, False), IMAGE, (4,), (4,))
    ],
    "batch_norm": [
        one(lambda f, x: f(x, torch.arange(4.0).double(), torch.ones(4).double() * 2, torch.ones(4).double()), IMAGE)
    ],
    "rms_norm": [two(lambda f, x, w: f(x, (4,), w), second=(4,)), one(lambda f, x: f(x, (3, 4), None, 0.1))],
    "vector_norm": [one(), one(lambda f, x: f(x, dim=1, keepdim=True)), one(lambda f, x: f(x, 1, dim=1))],
    "max_pool1d": [one(lambda f, x: f(x, 2), (2, 3, 6))],
    "max_pool2d": [one(lambda f, x: f(x, 2), IMAGE), one(lambda f, x: f(x, 3, 2, 1), IMAGE)],
    "max_pool3d": [one(lambda f, x: f(x, 2), (2, 3, 4, 4, 4))],
    "max": [one(), one(lambda f, x: f(x, 1)), one(lambda f, x: f(x, dim=1, keepdim=True)), two()],
    "min": [one(), one(lambda f, x: f(x, 1)), two()],
    **{name: [one(lambda f, x: f(x, 0.0, True))] for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")},
    "scaled_dot_product_attention": [
        Sample(lambda f, q, k, v: f(q, k, v), *QKV),
        Sample(lambda f, q, k, v: f(q, k, v, is_causal=True, scale=0.3), *QKV),
        Sample(lambda f, q, k, v: f(q, k, v, torch.ones(5, 7, dtype=torch.bool).tril(1)), *QKV),
        Sample(lambda f, q, k, v, mask: f(q, k, v, attn_mask=mask), *QKV, (5, 7)),
        Sample(lambda f, q, k, v: f(q, k, v, enable_gqa=True), (2, 4, 5, 4), *QKV[1:]),
    ],
}


def name_of(function: Any) -> str:
    return (torch.overrides.resolve_name(function) or function.__name__).split(".")[-1]


DIFFERENTIABLE = [function for function, rule in RULES.items() if rule not in (constant, read_number)]
CASES = [
    pytest.param(function, sample, id=f"{torch.overrides.resolve_name(function)}-{number}")
    for function in DIFFERENTIABLE
    for number, sample in enumerate(SAMPLES.get(name_of(function), []))
]


def test_every_rule_has_a_sample() -> None:
    assert {name_of(function) for function in DIFFERENTIABLE} == set(SAMPLES)


def _floats(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]


def _tangents(output: Any, like: list[Tensor]) -> list[Tensor]:
    """The tangent of each floating output, 0 where it is a plain tensor."""
    leaves = pytree.tree_leaves(output, is_leaf=lambda leaf: isinstance(leaf, Dual))
    leaves = [leaf for leaf in leaves if isinstance(leaf, Dual) or leaf.is_floating_point() or leaf.is_complex()]
    assert len(leaves) == len(like)
    return [
        leaf.tangent if isinstance(leaf, Dual) else torch.zeros_like(leaf) for leaf in leaves
    ]


@pytest.mark.parametrize(("function", "sample"), CASES)
def test_rule_is_the_derivative(function: Any, sample: Sample) -> None:
    """For each choice of which arguments move: as torch.func.jvp, shapes and types included."""
    tensors = sample.tensors()
    directions = [torch.randn_like(x) for x in tensors]

    def call(*xs: Any) -> Any:
        return sample.call(function, *xs)

    for moves in itertools.product((True, False), repeat=len(tensors)):
        if not any(moves):
            continue
        still = [dx if move else torch.zeros_like(dx) for dx, move in zip(directions, moves, strict=True)]
        with sdpa_kernel(SDPBackend.MATH):
            expected = torch.func.jvp(lambda *xs: tuple(_floats(call(*xs))), tuple(tensors), tuple(still))[1]
        duals = [Dual(x, dx) if move else x for x, dx, move in zip(tensors, directions, moves, strict=True)]
        output = call(*duals)
        tangents = _tangents(output, list(expected))
        for tangent, reference in zip(tangents, expected, strict=True):
            tolerance = 1e-9 if reference.dtype in (torch.float64, torch.complex128) else 1e-2
            torch.testing.assert_close(tangent, reference, rtol=tolerance, atol=tolerance)
