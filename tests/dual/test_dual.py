"""The derivative: each rule against torch.func.jvp, the modes against one another, and what must not be recorded."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from broken_networks import Straight
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from trigflow.dual import MODES, RULES, Dual, NotForDuals, fallbacks, value_and_tangent
from trigflow.dual.elementwise import constant
from trigflow.dual.value import read_number
from trigflow.networks import NETWORKS
from trigflow.system.errors import UserError

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


def is_method(function: Any) -> bool:
    return isinstance(function, functools.partial)


def as_called(function: Any) -> Any:
    """A method is called on its object: Tensor.add(x, y) does not take a Dual, x.add(y) does."""
    name = name_of(function)
    return functools.partial(_call_method, name) if getattr(Tensor, name, None) is function else function


def _call_method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(x, name)(*args, **kwargs)


X = (2, 3, 4)
IMAGE = (2, 4, 6, 6)
QKV = ((2, 2, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3))
INDEX = torch.tensor([2, 0, 1])


def scaled() -> list[Sample]:
    """x + alpha y and its kind: both move, each alone, and a shape that is broadcast."""
    return [
        two(lambda f, x, y: f(x, y, alpha=3), X, (4,)),
        two(lambda f, x, y: f(x, y, alpha=-0.5), (4,), X),
        one(lambda f, x: f(x, torch.ones(4, dtype=torch.float64), alpha=3)),
        one(lambda f, x: f(torch.ones(4, dtype=torch.float64), x, alpha=3)),
        one(lambda f, x: f(x, 2, alpha=3)),
    ]


def one(
    call: Callable[..., Any] = lambda f, x: f(x), shape: tuple[int, ...] = X, unit: bool = False
) -> Sample:
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
    "ravel neg negative positive trace exp exp2 expm1 log1p square reciprocal sin cos tan atan sinh cosh "
    "tanh sigmoid expit erf sinc abs absolute nan_to_num relu relu6 silu mish hardswish hardsigmoid "
    "logsigmoid softsign clone contiguous"
)
UNIT = ["log", "log2", "log10", "sqrt", "rsqrt", "asin", "acos"]
TRANSFORMS = "fft ifft fft2 ifft2 fftn ifftn fftshift ifftshift rfft irfft rfft2 irfft2 rfftn irfftn"
CASTS = ["float", "double", "half", "bfloat16", "cpu"]

SAMPLES: dict[str, list[Sample]] = {
    **{name: [one()] for name in UNARY.split()},
    **{name: [one(unit=True)] for name in UNIT},
    **{name: [one()] for name in TRANSFORMS.split()},
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
    **{
        name: [one(lambda f, x: f(x, 0, 2))]
        for name in ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis")
    },
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
    "unfold": [one(lambda f, x: f(x, 2, 2, 1) if is_method(f) else f(x, 2), IMAGE)],
    "fold": [one(lambda f, x: f(x, (3, 3), 2), (2, 8, 4))],
    "pixel_shuffle": [one(lambda f, x: f(x, 2), IMAGE)],
    "pixel_unshuffle": [one(lambda f, x: f(x, 2), IMAGE)],
    "tril": [one()],
    "triu": [one()],
    "pad": [one(lambda f, x: f(x, (1, 2), value=3.0)), one(lambda f, x: f(x, (1, 1), mode="reflect"))],
    "interpolate": [
        one(lambda f, x: f(x, scale_factor=2), IMAGE),
        one(lambda f, x: f(x, scale_factor=2, mode="bilinear"), IMAGE),
    ],
    "remainder": [],  # torch.func.jvp has none for two tensors; see test_less_usual_arithmetic
    "upsample": [],  # deprecated by torch in favour of interpolate, and warns
    "real": [one()],
    "view_as_real": [one(lambda f, x: f(torch.view_as_complex(x)), (3, 2))],
    "view_as_complex": [one(lambda f, x: torch.view_as_real(f(x) * 2), (3, 2))],
    "masked_fill": [
        one(lambda f, x: f(x, torch.arange(4) > 1, 2.0)),
        two(lambda f, x, y: f(x, x > 0, y), X, ()),
    ],
    "where": [two(lambda f, x, y: f(x, x > 0, y) if is_method(f) else f(x > 0, x, y), X, (4,))],
    # sums and products
    "sum": [one(), one(lambda f, x: f(x, (0, 2), keepdim=True))],
    "mean": [one(), one(lambda f, x: f(x, dim=1))],
    "cumsum": [one(lambda f, x: f(x, 1))],
    "diff": [one()],
    **{f"avg_pool{d}d": [one(lambda f, x: f(x, 2), (2, 3, *(4,) * d))] for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": [one(lambda f, x: f(x, 2), (2, 3, *(5,) * d))] for d in (1, 2, 3)},
    **{
        name: [two(), two(second=(4,)), two(first=(3, 1)), *extra]
        for names, extra in (("mul multiply", []), ("add sub subtract", scaled()))
        for name in names.split()
    },
    "rsub": [two(), one(lambda f, x: f(x, 2)), *scaled()],
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
    "clamp": [
        one(lambda f, x: f(x, -0.5, 0.5)),
        one(lambda f, x: f(x, min=0.1)),
        two(lambda f, x, y: f(x, max=y)),
    ],
    "clip": [one(lambda f, x: f(x, -0.5, 0.5))],
    "clamp_min": [one(lambda f, x: f(x, 0.1))],
    "clamp_max": [one(lambda f, x: f(x, 0.1))],
    "leaky_relu": [one(lambda f, x: f(x, 0.2)), one(lambda f, x: f(x * 1, inplace=True))],
    "elu": [one(lambda f, x: f(x, 0.7))],
    "gelu": [one(), one(lambda f, x: f(x, approximate="tanh"))],
    "softplus": [one(lambda f, x: f(x, 2.0))],
    "hardtanh": [one(lambda f, x: f(x, -0.5, 0.5))],
    "pow": [one(lambda f, x: f(x, 3)), one(lambda f, x: f(x, -0.5), unit=True), two(unit=True)],
    "__pow__": [one(lambda f, x: f(x, 2)), two(unit=True)],
    **{name: [two()] for name in ("atan2", "arctan2", "hypot", "maximum", "minimum")},
    "lerp": [Sample(lambda f, x, y, w: f(x, y, w), X, X, X), two(lambda f, x, y: f(x, y, 0.3))],
    # layers
    "softmax": [one(lambda f, x: f(x, dim=1)), one(lambda f, x: f(x, dim=-1, dtype=torch.float64))],
    "log_softmax": [one(lambda f, x: f(x, dim=1))],
    "logsumexp": [one(lambda f, x: f(x, 1)), one(lambda f, x: f(x, (0, 2), keepdim=True))],
    "layer_norm": [
        Sample(lambda f, x, w, b: f(x, (3, 4), w, b), X, (3, 4), (3, 4)),
        one(lambda f, x: f(x, (4,), None, None, 1e-3)),
    ],
    "group_norm": [
        Sample(lambda f, x, w, b: f(x, 2, w, b), IMAGE, (4,), (4,)),
        one(lambda f, x: f(x, 4), (2, 4)),
    ],
    "instance_norm": [
        Sample(lambda f, x, w, b: f(x, w, b, None, None, True, 0.1, 1e-5, False), IMAGE, (4,), (4,))
    ],
    "batch_norm": [
        one(
            lambda f, x: f(x, torch.arange(4.0).double(), torch.ones(4).double() * 2, torch.ones(4).double()),
            IMAGE,
        )
    ],
    "rms_norm": [two(lambda f, x, w: f(x, (4,), w), second=(4,)), one(lambda f, x: f(x, (3, 4), None, 0.1))],
    "vector_norm": [one(), one(lambda f, x: f(x, dim=1, keepdim=True)), one(lambda f, x: f(x, 1, dim=1))],
    "max_pool1d": [one(lambda f, x: f(x, 2), (2, 3, 6))],
    "max_pool2d": [one(lambda f, x: f(x, 2), IMAGE), one(lambda f, x: f(x, 3, 2, 1), IMAGE)],
    "max_pool3d": [one(lambda f, x: f(x, 2), (2, 3, 4, 4, 4))],
    "max": [one(), one(lambda f, x: f(x, 1)), one(lambda f, x: f(x, dim=1, keepdim=True)), two()],
    "min": [one(), one(lambda f, x: f(x, 1)), two()],
    "dropout": [one(lambda f, x: f(x, 0.0, True))],
    **{f"dropout{d}d": [one(lambda f, x: f(x, 0.0, True), (2, 3, *(4,) * d))] for d in (1, 2, 3)},
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
    leaves = [
        leaf for leaf in leaves if isinstance(leaf, Dual) or leaf.is_floating_point() or leaf.is_complex()
    ]
    assert len(leaves) == len(like)
    return [leaf.tangent if isinstance(leaf, Dual) else torch.zeros_like(leaf) for leaf in leaves]


@pytest.mark.parametrize(("function", "sample"), CASES)
def test_rule_is_the_derivative(function: Any, sample: Sample) -> None:
    """For each choice of which arguments move: as torch.func.jvp, shapes and types included."""
    tensors = sample.tensors()
    directions = [torch.randn_like(x) for x in tensors]

    called = as_called(function)

    def call(*xs: Any) -> Any:
        return sample.call(called, *xs)

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


CONSTANT = [function for function, rule in RULES.items() if rule is constant]
# What these ask for besides a tensor.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("full_like", "new_full"), (2.0,)),
    "new_tensor": ([1.0],),
    "new_full": ((2,), 1.0),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty"), ((2, 3),)),
    "randint_like": (5,),
    **dict.fromkeys(("floor_divide", "bucketize", "result_type"), (torch.arange(4.0).double(),)),
}
TWO = (
    "eq ne lt le gt ge greater greater_equal less less_equal not_equal equal allclose isclose logical_and logical_or "
    "heaviside is_same_size"
)


@pytest.mark.parametrize("function", CONSTANT, ids=torch.overrides.resolve_name)
def test_what_has_no_derivative_gives_what_a_tensor_gives(function: Any) -> None:
    name = name_of(function)
    x = torch.rand(1 if name == "is_nonzero" else 4, dtype=torch.float64)
    x = (x > 0.5).long() if name == "one_hot" else x
    arguments = (torch.rand(4, dtype=torch.float64),) if name in TWO.split() else ARGUMENTS.get(name, ())
    output, plain = (as_called(function)(item, *arguments) for item in (Dual(x, x), x))
    assert not isinstance(output, Dual)
    if "rand" not in name and "empty" not in name:
        assert torch.equal(output, plain) if isinstance(plain, Tensor) else output == plain


@pytest.mark.parametrize("name", ["item", "tolist", "numpy"])
def test_reading_a_number_is_refused(name: str) -> None:
    x = Dual(torch.ones(1), torch.ones(1))
    with pytest.raises(UserError, match=name):
        getattr(x, name)()
    for cast in (float, int):
        with pytest.raises(UserError, match=cast.__name__):
            cast(x)  # type: ignore[call-overload]


# ----------------------------------------------------------------------------------------------------------------------
# Functions without a rule.


def test_a_function_without_a_rule_goes_through_func_jvp_and_is_recorded() -> None:
    x, dx = torch.rand(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    with fallbacks() as names:
        output = value_and_tangent(lambda x: torch.lgamma(x) * 2, (x,), (dx,))
    assert names == ["torch.lgamma"]
    torch.testing.assert_close(output.tangent, 2 * dx * torch.digamma(x).detach(), rtol=1e-9, atol=0)
    assert output.value.requires_grad and not output.tangent.requires_grad


def test_a_random_function_without_a_rule_draws_one_mask() -> None:
    x = torch.ones(1000, dtype=torch.float64)
    output = value_and_tangent(lambda x: F.alpha_dropout(x, 0.5, True), (x,), (x,))
    assert len(torch.stack([output.value, output.tangent]).unique(dim=1).T) == 2


def test_a_function_without_a_derivative_is_named() -> None:
    with pytest.raises(UserError, match=r"torch\.igamma has no forward derivative"):
        value_and_tangent(lambda x: torch.igamma(x, x + 1), (torch.ones(2),), (torch.ones(2),))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.normalize(x, dim=1),
        lambda x: x.norm(dim=1),
        lambda x: F.cosine_similarity(x, torch.ones(4, dtype=x.dtype), dim=-1),
        lambda x: F.softmin(x, dim=1),
        lambda x: F.instance_norm(x[None]),
        lambda x: F.glu(x),
        lambda x: torch.var(x, 1),
        lambda x: x.T + x.mT.transpose(0, 1).T,
        lambda x: -x + abs(x) + 2 / (x.exp() + 1) - (1 - x) + 2**x + x**2 * (3 - x),
        lambda x: torch.ones(4, 3, dtype=x.dtype) @ x + torch.ones(4, 3, dtype=x.dtype) @ x,
        lambda x: sum(row * k for k, row in enumerate(x)),
        lambda x: torch.ones_like(x) / x.exp() + torch.full((3, 4), 2.0, dtype=x.dtype) ** x,
        lambda x: x.to(torch.float64).float().double().type(torch.float64),
        lambda x: x[:, ::2].reshape(-1).view(3, 2)[None].squeeze(0) * x.sum(),
        lambda x: F.relu(x * 1, inplace=True) + nn.SiLU(inplace=True)(x * 1) + (x * 1).mul_(2),
    ],
)
def test_compositions_and_operators(function: Any) -> None:
    x, dx = torch.randn(2, 3, 4, dtype=torch.float64)
    output = value_and_tangent(function, (x,), (dx,))
    expected = torch.func.jvp(function, (x,), (dx,))
    torch.testing.assert_close((output.value, output.tangent), expected, rtol=1e-9, atol=1e-12)


def test_compound_assignment_is_seen_by_every_name() -> None:
    def function(x: Tensor) -> Tensor:
        before = x
        x += 1
        x *= x
        return x + before

    x = torch.randn(3)
    kept = x.clone()
    output = value_and_tangent(function, (x,), (torch.ones(3),))
    torch.testing.assert_close(output.tangent, 4 * (kept + 1))
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.__setitem__(0, 1.0), r"x\[...\] = y"),
        (lambda x: (x.view(-1).mul_(2), x + 0)[1], r"shares its memory"),
        (lambda x: (x[1:].mul_(2), x)[1], r"shares its memory"),
        (lambda x: add_after_view(x * 1), r"shares its memory"),
        (lambda x: setattr(x, "data", x.data * 2), r"x\.data = y"),
        (lambda x: torch.zeros(3).add_(x), r"add_\(\) of a tensor that has no derivative"),
    ],
)
def test_writes_that_would_be_lost_are_refused(function: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        value_and_tangent(function, (torch.ones(3),), (torch.ones(3),))


def add_after_view(h: Tensor) -> Tensor:
    view = h.view(-1)
    h += 1
    return view * 2


def in_place_by_alias(x: Tensor) -> Tensor:
    h = x * 2
    alias = h
    h += x.sin()
    h *= x
    h -= 0.5
    h /= x.exp()
    same = h.contiguous()
    same.add_(x)
    h.float().mul_(2) if h.dtype == torch.float32 else h.double().mul_(2)
    return alias + h


def complex_values(x: Tensor) -> Tensor:
    z = torch.fft.fft(x)
    total = z.abs() + torch.linalg.vector_norm(z, dim=1, keepdim=True) + torch.tanh(z * 0.1).real
    return total + torch.sigmoid(z * 0.1).imag + z.mH.abs().sum() + z[0].T.H.real.sum()


def called_by_name(x: Tensor) -> Tensor:
    y = torch.mul(input=x, other=x) + x.add(other=x) + torch.where(condition=x > 0, input=x, other=2 * x)
    y = y + torch.matmul(x, other=x.mT @ x) + F.pad(x, pad=(0, 0)) + x.pow(exponent=2)
    return torch.cat(tensors=[y, y.where(condition=x > 0, other=x)], dim=0)


@pytest.mark.parametrize(
    "function",
    [
        in_place_by_alias,
        complex_values,
        called_by_name,
        lambda x: (
            torch.diff(x, prepend=torch.ones(2, 3, 1, dtype=x.dtype)) + torch.diff(x, append=x[..., :1])
        ),
        lambda x: (
            x.max(dim=1).values + x.topk(2, dim=1).values[:, 0] + torch.min(x, 1)[0] + x.sort(1).values[:, 0]
        ),
        lambda x: x.imag.real if x.is_complex() else x.H.H if x.ndim == 2 else x.mH.mH,
    ],
)
def test_less_usual_code(function: Any) -> None:
    """Value, tangent and the gradient of what lies before, as in torch.func.jvp and plain autograd."""
    x, dx = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    output = value_and_tangent(function, (x.clone(),), (dx,))
    expected = torch.func.jvp(function, (x.clone(),), (dx,))
    torch.testing.assert_close((output.value, output.tangent), expected, rtol=1e-9, atol=1e-12)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    own = value_and_tangent(lambda x: function(x * weight), (x,), (dx,)).value
    found, plain = (torch.autograd.grad(y.sum(), weight)[0] for y in (own, function(x * weight)))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_less_usual_arithmetic() -> None:
    x, dx = torch.randn(2, 5, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return x % 1.0 + x * (x // 2) + 3.0 % x

    outputs = [value_and_tangent(function, (x,), (dx,), mode=mode) for mode in ("dual", "finite_difference")]
    torch.testing.assert_close(outputs[0].tangent, outputs[1].tangent, rtol=1e-6, atol=1e-6)


def test_no_tangent_is_nan_where_the_function_is_flat() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    assert torch.equal(value_and_tangent(lambda x: x**0, (x,), (x,)).tangent, torch.zeros(3))
    quiet = value_and_tangent(lambda x: torch.nan_to_num(x / F.relu(x), nan=0.0), (x,), (x,))
    assert torch.equal(quiet.tangent, torch.zeros(3))


def test_an_attribute_that_would_lose_the_derivative_is_refused() -> None:
    with pytest.raises(UserError, match=r"\._base of a tensor"):
        value_and_tangent(lambda x: (x * 1).view(-1)._base, (torch.ones(3),), (torch.ones(3),))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Straight.apply, "Straight"),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=True), "use_reentrant=False"),
    ],
)
def test_custom_autograd_functions_are_refused_while_a_pass_runs(function: Any, words: str) -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(UserError, match=words):
        value_and_tangent(function, (x,), (torch.ones(3),))
    assert "apply" not in torch.autograd.function._SingleLevelFunction.__dict__
    output = value_and_tangent(
        lambda t: t * Straight.apply(x), (torch.ones(3),), (torch.ones(3),)
    )  # no Dual in it
    torch.testing.assert_close(torch.autograd.grad(output.value.sum(), x)[0], torch.full((3,), 2.0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("wrap", "words"), [(lambda y: (y, y), "a tuple"), (lambda y: None, "None")])
def test_an_output_that_is_no_tensor_is_refused(mode: str, wrap: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"must return one tensor, not {words}"):
        value_and_tangent(wrap, (torch.ones(3),), (torch.ones(3),), mode=mode)


# ----------------------------------------------------------------------------------------------------------------------
# The modes on whole networks.


class Mixed(nn.Module):
    """Plain PyTorch: convolutions, group norm, attention as torch has it, pooling, dropout."""

    def __init__(self, dropout: float = 0.0, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.norm, self.time, self.label = nn.GroupNorm(2, 8), nn.Linear(2, 8), nn.Embedding(3, 8)
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=dropout, batch_first=True, activation="gelu"
        )

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.time(torch.stack([t.cos(), t.sin()], 1))
        emb = emb if labels is None else emb + self.label(labels)
        h = F.silu(self.norm(self.first(x))) + emb[:, :, None, None]
        tokens = h.flatten(2).transpose(1, 2)
        block = (
            functools.partial(checkpoint, self.block, use_reentrant=False)
            if self.checkpointed
            else self.block
        )
        tokens = block(tokens)
        h = F.max_pool2d(h + tokens.transpose(1, 2).reshape(h.shape), 2)
        return self.last(F.interpolate(h, scale_factor=2))


def mixed_inputs(dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    x, t = torch.randn(3, 2, 4, 4, dtype=dtype), torch.rand(3, dtype=dtype) + 0.2
    return (x, t), (torch.randn_like(x), torch.randn_like(t))


LABELS = {"labels": torch.tensor([0, 2, 1])}


def gradients(net: nn.Module) -> list[Tensor]:
    grads = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    return grads


@pytest.mark.parametrize("mode", MODES)
def test_modes_agree_on_a_plain_network_and_value_keeps_its_graph(mode: str) -> None:
    net, (primals, tangents) = Mixed().double(), mixed_inputs()
    plain = net(*primals, **LABELS)
    plain.square().sum().backward()
    expected = gradients(net)
    reference = value_and_tangent(net, primals, tangents, mode="func", cond=LABELS)
    output = value_and_tangent(net, primals, tangents, mode=mode, cond=LABELS)
    assert not output.tangent.requires_grad and output.tangent.grad_fn is None
    output.value.square().sum().backward()
    torch.testing.assert_close(output.value, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(net), expected, rtol=1e-9, atol=1e-9)
    error = (output.tangent - reference.tangent).norm() / reference.tangent.norm()
    assert error < (1e-6 if mode == "finite_difference" else 1e-12)


def test_finite_difference_in_float32_has_a_sensible_step() -> None:
    net, (primals, tangents) = Mixed(), mixed_inputs(torch.float32)
    exact = value_and_tangent(net, primals, tangents).tangent
    rough = value_and_tangent(net, primals, tangents, mode="finite_difference").tangent
    assert (rough - exact).norm() / exact.norm() < 2e-3


@pytest.mark.parametrize("mode", MODES)
def test_conditions_may_move(mode: str) -> None:
    def function(x: Tensor, *, s: Tensor, still: Tensor) -> Tensor:
        return x * s.exp() + still

    x, s = torch.randn(2, 3, dtype=torch.float64)
    dx, ds = torch.randn(2, 3, dtype=torch.float64)
    output = value_and_tangent(
        function, (x,), (dx,), mode=mode, cond={"s": s, "still": x}, cond_tangents={"s": ds}
    )
    torch.testing.assert_close(output.tangent, (dx + x * ds) * s.exp(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_function_of_nothing_that_moves_has_tangent_zero(mode: str) -> None:
    x = torch.ones(3)
    output = value_and_tangent(lambda x: torch.ones_like(x) * 2, (x,), (x,), mode=mode)
    assert torch.equal(output.tangent, torch.zeros(3))


@pytest.mark.parametrize("mode", MODES)
def test_one_dropout_mask(mode: str) -> None:
    """With y = mask * x the tangent along x is y itself; the generator moves on as in one plain pass."""
    layer, x = nn.Dropout(0.5), torch.randn(4, 50)
    torch.manual_seed(1)
    plain, after = layer(x), torch.rand(1)
    torch.manual_seed(1)
    output = value_and_tangent(layer, (x,), (x,), mode=mode)
    torch.testing.assert_close(output.value, plain, rtol=0, atol=0)
    torch.testing.assert_close(output.tangent, plain, rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.rand(1), after)


def test_dropout_inside_attention_is_one_mask_too() -> None:
    net, (primals, tangents) = Mixed(dropout=0.3).double(), mixed_inputs()
    outputs = []
    for mode in ("dual", "finite_difference"):
        torch.manual_seed(1)
        outputs.append(value_and_tangent(net, primals, tangents, mode=mode))
    torch.testing.assert_close(outputs[0].value, outputs[1].value, rtol=1e-9, atol=1e-9)
    assert (outputs[0].tangent - outputs[1].tangent).norm() / outputs[1].tangent.norm() < 1e-6


# ----------------------------------------------------------------------------------------------------------------------
# What is kept in memory, precision, checkpointing, compilation.


def saved_bytes(run: Callable[[], Any], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        inner = tensor
        while torch._C._functorch.is_functorch_wrapped_tensor(inner):
            inner = torch._C._functorch.get_unwrapped(inner)
        storage = inner.untyped_storage()
        if not inner._is_zerotensor() and storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    return sum(storages.values())


def test_memory_is_that_of_plain_training() -> None:
    net, (primals, tangents) = Mixed(dropout=0.1), mixed_inputs(torch.float32)
    plain = saved_bytes(lambda: net(*primals), list(net.parameters()))
    dual_mode = saved_bytes(lambda: value_and_tangent(net, primals, tangents), list(net.parameters()))
    func_mode = saved_bytes(
        lambda: value_and_tangent(net, primals, tangents, mode="func"), list(net.parameters())
    )
    assert dual_mode <= 1.10 * plain < func_mode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_tangents_of_the_type_of_the_value(dtype: torch.dtype) -> None:
    net, (primals, tangents) = Mixed(), mixed_inputs(torch.float32)
    with torch.no_grad():
        exact = value_and_tangent(net, primals, tangents)
        with torch.autocast("cpu", dtype):
            output = value_and_tangent(net, primals, tangents)
            plain = net(*primals)
    assert output.value.dtype == output.tangent.dtype == dtype
    torch.testing.assert_close(output.value, plain, rtol=0, atol=0)
    assert (output.tangent.float() - exact.tangent).norm() / exact.tangent.norm() < 0.03


def test_checkpointing_recomputes_values_only() -> None:
    primals, tangents = mixed_inputs()
    torch.manual_seed(2)
    net = Mixed(dropout=0.2).double()
    torch.manual_seed(2)
    checkpointed = Mixed(dropout=0.2, checkpointed=True).double()
    results = []
    for module in (net, checkpointed):
        torch.manual_seed(3)
        output = value_and_tangent(module, primals, tangents)
        with fallbacks() as names, CountMatmuls() as counted:
            output.value.square().sum().backward()
        results.append((output.tangent, gradients(module), counted.products))
        assert not names
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-12, atol=1e-12)
    plain = run_plain_checkpointed(checkpointed, primals)
    assert results[1][2] == plain


class CountMatmuls(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts products of matrices, whoever calls them."""

    products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in (
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten.bmm.default,
        )
        return func(*args, **(kwargs or {}))


def run_plain_checkpointed(net: nn.Module, primals: tuple[Tensor, ...]) -> int:
    loss = net(*primals).square().sum()
    with CountMatmuls() as counted:
        loss.backward()
    gradients(net)
    return counted.products


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("mode", ["dual", "func"])
def test_compiled(mode: str) -> None:
    """One graph, no break; affine norms of PyTorch fail in func mode under torch.compile (torch 2.13)."""
    net, (primals, tangents) = Mixed(), mixed_inputs(torch.float32)
    if mode == "func":
        net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.SiLU(), nn.Conv2d(8, 2, 2))  # type: ignore[assignment]
        primals, tangents = primals[:1], tangents[:1]
    compiled: Any = torch.compile(value_and_tangent, fullgraph=True)
    eager = value_and_tangent(net, primals, tangents, mode=mode)
    output = compiled(net, primals, tangents, mode=mode)
    torch.testing.assert_close(output.value, eager.value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.tangent, eager.tangent, rtol=1e-4, atol=1e-5)
    assert not output.tangent.requires_grad
    output.value.sum().backward()


# ----------------------------------------------------------------------------------------------------------------------
# The Dual as a container, and mistakes.


def test_hooks_find_both_tensors() -> None:
    x = Dual(torch.ones(2), torch.zeros(2))
    leaves, spec = pytree.tree_flatten({"x": [x]})
    assert len(leaves) == 2
    assert isinstance(pytree.tree_unflatten(leaves, spec)["x"][0], Dual)


def test_a_dual_answers_like_its_value() -> None:
    x = Dual(torch.arange(6.0).reshape(2, 3), torch.ones(2, 3))
    assert (x.shape, x.dtype, x.ndim, x.device, len(x), x.size(0)) == (
        (2, 3),
        torch.float32,
        2,
        x.value.device,
        2,
        2,
    )
    assert not x.requires_grad and not x.is_cuda and bool(x[1, 2] > 4)
    comparisons = [x < 3, x <= 3, x > 3, x >= 3, x == x, x != x]
    assert all(type(item) is Tensor for item in comparisons)
    assert not isinstance(x.data, Dual) and not isinstance(x.detach(), Dual)
    with pytest.raises(AttributeError):
        x.no_such_method()


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (((torch.ones(2),), (torch.ones(2),)), {"mode": "duel"}, r"did you mean 'dual'"),
        (((torch.ones(2),), ()), {}, r"1 primals need as many tangents"),
        (((torch.ones(2),), (torch.ones(3),)), {}, r"does not fit"),
        (((torch.ones(2),), (torch.ones(2).double(),)), {}, r"does not fit"),
        (
            ((torch.ones(2),), (torch.ones(2),)),
            {"cond_tangents": {"s": torch.ones(2)}},
            r"cond does not hold",
        ),
        (((torch.ones(2),), (torch.ones(2),)), {"mode": "finite_difference", "epsilon": 0.0}, r"epsilon"),
    ],
)
def test_mistakes_are_told(arguments: Any, options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        value_and_tangent(lambda x: x, *arguments, **options)


def test_what_takes_a_dual_for_a_number_is_told() -> None:
    x = torch.ones(2)
    with pytest.raises(NotForDuals, match=r"fails in the derivative mode 'dual'.*objective.derivative=func"):
        value_and_tangent(lambda x: x if isinstance(x, Tensor) else torch.tensor(x), (x,), (x,))
    with pytest.raises(TypeError, match="unexpected keyword"):  # fails without a derivative, too
        value_and_tangent(lambda x: torch.sin(x, wrong=1), (x,), (x,))


def test_batch_norm_in_training_is_refused_and_in_evaluation_passes() -> None:
    net, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    with pytest.raises(UserError, match="BatchNorm"):
        value_and_tangent(net, (x,), (x,))
    output = value_and_tangent(net.eval(), (x,), (x,))
    torch.testing.assert_close(output.tangent, output.value)


# ----------------------------------------------------------------------------------------------------------------------
# The networks that we ship.

SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((2,), {}),
    "unet": ((1, 8, 8), {"channels": 8, "num_blocks": 1, "attention_levels": (1,)}),
    "ddpmpp": ((1, 8, 8), {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1}),
    "dit": ((1, 8, 8), {"width": 16, "depth": 2, "heads": 2}),
    "edm2": ((1, 8, 8), {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_levels": (1,)}),
}


def shipped(name: str) -> tuple[nn.Module, Any, Any]:
    """A network with no zero layer, its inputs and directions, in float64."""
    shape, options = SMALL[name]
    net = NETWORKS[name](shape, num_classes=3, **options).double()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, *shape, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.2
    return net, (x, t), (torch.randn_like(x), torch.randn_like(t))


@pytest.mark.parametrize("name", NETWORKS)
def test_modes_agree_on_our_networks_and_nothing_falls_back(name: str) -> None:
    net, primals, tangents = shipped(name)
    outputs = {}
    for mode in MODES:
        with fallbacks() as names:
            outputs[mode] = value_and_tangent(net, primals, tangents, mode=mode, cond=LABELS)
        assert not names
    exact = outputs["func"].tangent
    assert (outputs["dual"].tangent - exact).norm() <= 1e-9 * exact.norm()
    assert (outputs["finite_difference"].tangent - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_of_our_networks_is_that_of_plain_training(name: str) -> None:
    net, primals, tangents = shipped(name)
    plain = saved_bytes(lambda: net(*primals), list(net.parameters()))
    dual_mode = saved_bytes(lambda: value_and_tangent(net, primals, tangents), list(net.parameters()))
    assert dual_mode <= 1.10 * plain
