"""Attention's tangent without the N x M matrix: equal to the written-out one, lean, and the Triton kernel likewise."""

from __future__ import annotations

import functools
import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_dual import shipped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from trigflow.dual import Dual, attention, attention_blocks, fallbacks, value_and_tangent

# Leading dimensions, N, M, head size, head size of the values. Blocks are 128 x 256.
SHAPES = [
    ((2, 3), 1, 1, 4, 4),
    ((2, 3), 7, 7, 24, 24),
    ((2, 1), 64, 64, 64, 64),
    ((1, 2), 300, 300, 80, 80),
    ((1, 2), 64, 300, 64, 64),
    ((1, 2), 300, 1, 4, 4),
    ((3,), 300, 270, 24, 40),
    ((), 7, 300, 80, 24),
    ((2, 1, 2), 129, 257, 8, 4),
]
MASKS = ["none", "causal", "scale", "boolean", "padding", "additive", "blind"]


def tensors(shape: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    lead, n, m, d, e = shape
    return [torch.randn(*lead, *size, dtype=torch.float64).to(dtype) for size in ((n, d), (m, d), (m, e))]


def options(kind: str, shape: Any) -> dict[str, Any]:
    """Arguments of scaled_dot_product_attention."""
    lead, n, m = shape[:3]
    seen = torch.rand(n, m) > 0.4
    seen[:, 0] = True
    if kind == "blind":  # a query that sees no key
        seen[n // 2] = False
    return {
        "none": {},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.7},
        "boolean": {"attn_mask": seen},
        "blind": {"attn_mask": seen},
        "padding": {"attn_mask": torch.rand(*lead, 1, m).argsort(-1) < max(1, m // 2)},
        "additive": {"attn_mask": torch.randn(*(1 for _ in lead), n, m, dtype=torch.float64)},
    }[kind]


def exact(attend: Callable[..., Tensor], primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """In float64, by the backend that writes the matrix out."""
    with sdpa_kernel(SDPBackend.MATH):
        output: Any = torch.func.jvp(attend, tuple(primals), tuple(tangents))
    return output


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks in torch at any size."""
    monkeypatch.setattr(attention, "FULL_MATRIX", 0)
    monkeypatch.setenv("TRIGFLOW_TRITON", "0")


# ----------------------------------------------------------------------------------------------------------------------
# Blocks against the matrix.


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_equal_the_matrix_in_float64(shape: Any, kind: str) -> None:
    qkv = tensors(shape)
    attend = functools.partial(F.scaled_dot_product_attention, **options(kind, shape))
    directions = tuple(torch.randn_like(item) for item in qkv)
    plain = [item.clone().requires_grad_() for item in qkv]
    leaves = [item.clone().requires_grad_() for item in qkv]
    with fallbacks() as names:
        output = value_and_tangent(attend, tuple(leaves), directions)
    value, tangent = exact(attend, qkv, directions)
    torch.testing.assert_close(output.value, value, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.tangent, tangent, rtol=0, atol=1e-10)
    assert not names and not output.tangent.requires_grad
    cotangent = torch.randn_like(value)
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.autograd.grad(attend(*plain), plain, cotangent)
    found = torch.autograd.grad(output.value, leaves, cotangent)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_some_of_query_key_and_value_move(moving: tuple[int, ...]) -> None:
    qkv = tensors(((1, 2), 140, 270, 8, 8))
    directions = [torch.randn_like(qkv[place]) for place in moving]

    def attend(*moved: Tensor) -> Tensor:
        items: list[Any] = list(qkv)
        for place, item in zip(moving, moved, strict=True):
            items[place] = item
        return F.scaled_dot_product_attention(*items)

    primals = [qkv[place] for place in moving]
    output = value_and_tangent(attend, tuple(primals), tuple(directions))
    torch.testing.assert_close(output.tangent, exact(attend, primals, directions)[1], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("_blocks")
def test_heads_go_in_groups_and_masks_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "ROWS", 8)
    monkeypatch.setattr(attention_blocks, "COLUMNS", 8)
    monkeypatch.setattr(attention_blocks, "ELEMENTS", 4 * 64)
    shape = ((2, 3), 20, 20, 4, 4)
    qkv = tensors(shape)
    directions = [torch.randn_like(item) for item in qkv]
    for lead in ((2, 3), (2, 1), (1, 3), (3,), ()):
        for size in ((20, 20), (1, 20), (20, 1)):
            mask = torch.randn(*lead, *size, dtype=torch.float64)
            attend = functools.partial(F.scaled_dot_product_attention, attn_mask=mask)
            output = value_and_tangent(attend, tuple(qkv), tuple(directions))
            torch.testing.assert_close(output.tangent, exact(attend, qkv, directions)[1], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("_blocks")
def test_grouped_broadcast_and_strided_queries() -> None:
    grouped = functools.partial(F.scaled_dot_product_attention, enable_gqa=True)
    q, k, v = tensors(((2, 2), 30, 20, 8, 8))
    cases: list[tuple[Any, list[Tensor]]] = [
        (grouped, [torch.randn(2, 4, 30, 8, dtype=torch.float64), k, v]),
        (F.scaled_dot_product_attention, [q, k[:1], v[:, :1]]),
        (F.scaled_dot_product_attention, [torch.randn(2, 2, 8, 30, dtype=torch.float64).mT, k, v]),
    ]
    for attend, primals in cases:
        directions = [torch.randn_like(item) for item in primals]
        output = value_and_tangent(attend, tuple(primals), tuple(directions))
        value, tangent = exact(attend, primals, directions)
        torch.testing.assert_close(output.value, value, rtol=0, atol=1e-10)
        torch.testing.assert_close(output.tangent, tangent, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", [(0, 2, 30, 8), (2, 0, 30, 8), (1, 2, 0, 8)])
def test_nothing_to_attend(shape: tuple[int, ...]) -> None:
    qkv = [torch.randn(shape) for _ in range(3)]
    assert value_and_tangent(F.scaled_dot_product_attention, tuple(qkv), tuple(qkv)).tangent.shape == shape


def test_both_ways_are_taken_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    original = attention._without_matrix
    monkeypatch.setattr(attention, "_without_matrix", lambda *args: (taken.append(1), original(*args))[1])
    for n in (256, 257):
        q = torch.randn(1, 1, n, 4)
        value_and_tangent(F.scaled_dot_product_attention, (q, q, q), (q, q, q))
    assert len(taken) == 1


@pytest.mark.usefixtures("_blocks")
def test_a_large_score_does_not_overflow() -> None:
    qkv = tensors(((1, 1), 40, 600, 8, 8), torch.float32)
    qkv[0] *= 200
    directions = [torch.randn_like(item) for item in qkv]
    output = value_and_tangent(F.scaled_dot_product_attention, tuple(qkv), tuple(directions))
    expected = exact(
        F.scaled_dot_product_attention, [x.double() for x in qkv], [x.double() for x in directions]
    )
    assert relative(output.tangent, expected[1]) < 1e-4


# ----------------------------------------------------------------------------------------------------------------------
# Half precision: measured 2.1e-4 in float16 and 1.6e-3 in bfloat16, the rounding of the result itself.

HALVES = [(torch.float16, 4e-4), (torch.bfloat16, 3e-3)]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("dtype", "bound"), HALVES)
@pytest.mark.parametrize("shift", [0, 30])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, bound: float, shift: float) -> None:
    """Also where all keys move alike, which changes no probability: each term is then far larger than the sum."""
    qkv = tensors(((1, 2), 200, 300, 64, 64), dtype)
    directions = [torch.randn_like(item) for item in qkv]
    directions[1] += shift
    output = value_and_tangent(F.scaled_dot_product_attention, tuple(qkv), tuple(directions))
    expected = exact(
        F.scaled_dot_product_attention, [x.double() for x in qkv], [x.double() for x in directions]
    )
    assert output.tangent.dtype == output.value.dtype == dtype
    assert relative(output.tangent, expected[1]) < bound


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(("dtype", "bound"), HALVES)
def test_autocast(dtype: torch.dtype, bound: float) -> None:
    qkv = tensors(((1, 2), 200, 300, 64, 64), torch.float32)
    directions = [torch.randn_like(item) for item in qkv]
    with torch.autocast("cpu", dtype):
        output = value_and_tangent(F.scaled_dot_product_attention, tuple(qkv), tuple(directions))
    expected = exact(
        F.scaled_dot_product_attention, [x.double() for x in qkv], [x.double() for x in directions]
    )
    assert output.tangent.dtype == output.value.dtype == dtype
    assert relative(output.tangent, expected[1]) < 2 * bound


# ----------------------------------------------------------------------------------------------------------------------
# Memory.


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation returns, backward passes included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *made, 0)
        return output


def largest(shape: Any, **kwargs: Any) -> int:
    qkv = [item.requires_grad_() for item in tensors(shape, torch.float32)]
    attend = functools.partial(F.scaled_dot_product_attention, **kwargs)
    with Largest() as counted:
        value_and_tangent(attend, tuple(qkv), tuple(map(torch.ones_like, qkv))).value.sum().backward()
    return counted.elements


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize(
    ("lead", "sizes"), [((1, 1), (16, 16)), ((1,), (16, 16)), ((), (16, 16)), ((1, 1, 1), (16, 24))]
)
def test_no_tensor_of_the_size_of_the_matrix(lead: Any, sizes: tuple[int, int]) -> None:
    n = 2048
    assert largest((lead, n, n, *sizes)) <= max(
        attention_blocks.ROWS * attention_blocks.COLUMNS, 2 * n * max(sizes)
    )


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("kwargs", [{"is_causal": True}, {"attn_mask": torch.rand(1, 1, 1, 2048) > 0.5}])
def test_no_such_tensor_with_a_mask(kwargs: Any) -> None:
    assert largest(((1, 1), 2048, 2048, 16, 16), **kwargs) < 2048 * 2048 // 32


# ----------------------------------------------------------------------------------------------------------------------
# Where it is used.


def test_the_derivative_of_a_network_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, primals, tangents = shipped("dit")
    whole = value_and_tangent(net, primals, tangents)
    monkeypatch.setattr(attention, "FULL_MATRIX", 0)
    monkeypatch.setattr(attention_blocks, "COLUMNS", 3)
    blocks = value_and_tangent(net, primals, tangents)
    assert torch.equal(blocks.value, whole.value)
    torch.testing.assert_close(blocks.tangent, whole.tangent, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_blocks")
def test_one_operation_for_the_compiler() -> None:
    """A whole graph, which knows shapes and types of the operation without running it."""

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x * t, x.sin(), x, is_causal=True).cos()

    x, t = torch.randn(2, 3, 20, 8, requires_grad=True), torch.tensor(0.5)
    directions = (torch.randn(2, 3, 20, 8), torch.tensor(1.0))
    compiled: Any = torch.compile(value_and_tangent, fullgraph=True, backend="aot_eager")
    output, eager = compiled(Net(), (x, t), directions), value_and_tangent(Net(), (x, t), directions)
    torch.testing.assert_close(output.value, eager.value)
    torch.testing.assert_close(output.tangent, eager.tangent)
    found, expected = (torch.autograd.grad(item.value.sum(), x) for item in (output, eager))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("_blocks")
def test_shapes_without_numbers() -> None:
    q, k, v = (torch.empty(2, 3, size, 8, device="meta") for size in (300, 500, 500))
    output = value_and_tangent(F.scaled_dot_product_attention, (q, k, v), (q, k, v))
    assert output.value.shape == output.tangent.shape == (2, 3, 300, 8)


def test_dropout_takes_the_matrix_and_one_mask() -> None:
    """The tangent along v is linear in v, with the mask of the value."""
    q, k, v = tensors(((1, 1), 300, 300, 4, 4))
    attend = functools.partial(F.scaled_dot_product_attention, q, k, dropout_p=0.5)
    output = value_and_tangent(attend, (v,), (v,))
    torch.testing.assert_close(output.value, output.tangent)


# ----------------------------------------------------------------------------------------------------------------------
# The Triton kernel: on the GPU where there is one, else run by Triton's interpreter. 1e-3 of float64 in float16.

NO_TRITON = "Triton is not there; on Linux: pip install -c constraints.txt triton"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernel() -> Any:
    """The module of the kernel."""
    pytest.importorskip("triton", reason=NO_TRITON)
    return importlib.import_module("trigflow.dual.attention_triton")


# The interpreter cuts bfloat16 off where a GPU rounds, which doubles its error.
PRECISIONS = [(torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 1.5e-2)]
KERNEL_SHAPES = [
    ((2, 3), 1, 1, 4, 4),
    ((1, 2), 7, 7, 24, 24),
    ((1, 2), 65, 100, 64, 24),
    ((2, 2), 30, 70, 40, 64),
]


def by_kernel(kernel: Any, shape: Any, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tangent of the kernel, and in float64."""
    qkv = tensors(shape, dtype)
    directions = [torch.randn_like(item) for item in qkv]
    kwargs = options(kind, shape)
    attend = functools.partial(F.scaled_dot_product_attention, **kwargs)
    value, expected = exact(attend, [x.double() for x in qkv], [x.double() for x in directions])
    mask = None if "attn_mask" not in kwargs else attention._four_mask(kwargs["attn_mask"], shape[0])
    scale = kwargs.get("scale", 1 / math.sqrt(shape[3]))
    arguments = (*qkv, *directions, value.to(dtype), mask)
    placed = [item if item is None else item.to(DEVICE) for item in arguments]
    return kernel.tangent(*placed, kwargs.get("is_causal", False), scale).cpu(), expected


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_the_kernel_equals_float64(kernel: Any, dtype: torch.dtype, bound: float, kind: str) -> None:
    for shape in KERNEL_SHAPES:
        found, expected = by_kernel(kernel, shape, kind, dtype)
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= bound * expected.norm()


def test_the_kernel_takes_large_heads(kernel: Any) -> None:
    found, expected = by_kernel(kernel, ((1, 1), 40, 40, 200, 256), "none", torch.float16)
    assert relative(found, expected) < 1e-3


@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_the_kernel_when_some_move(kernel: Any, moving: tuple[int, ...]) -> None:
    q, k, v = (item.to(DEVICE) for item in tensors(((1, 2), 40, 70, 8, 8), torch.float32))
    moved = [torch.randn_like(item) if place in moving else None for place, item in enumerate((q, k, v))]
    y = F.scaled_dot_product_attention(q, k, v)
    found = kernel.tangent(q, k, v, *moved, y, None, False, 8**-0.5)
    expected = attention_blocks.tangent_by_blocks(q, k, v, *moved, y, None, False, 8**-0.5)
    assert relative(found, expected.double()) < 1e-6


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("low", [False, True])
def test_a_network_reaches_the_kernel(kernel: Any, monkeypatch: pytest.MonkeyPatch, low: bool) -> None:
    """Behind F.scaled_dot_product_attention, also under autocast; the value and its gradient stay torch's."""
    q, k, v = (item.to(DEVICE) for item in tensors(((1, 2), 40, 70, 8, 8), torch.float32))
    q.requires_grad_()
    calls, original = [], kernel.tangent
    monkeypatch.setattr(kernel, "tangent", lambda *args: (calls.append(1), original(*args))[1])
    found: dict[str, Dual] = {}
    for way in ("0", "1"):
        monkeypatch.setenv("TRIGFLOW_TRITON", way)
        with torch.autocast(DEVICE, torch.float16, enabled=low):
            found[way] = value_and_tangent(F.scaled_dot_product_attention, (q, k, v), (q, k, v))
        assert len(calls) == int(way)
    assert torch.equal(found["0"].value, found["1"].value) and found["1"].value.requires_grad
    assert found["1"].tangent.dtype == found["1"].value.dtype
    assert relative(found["1"].tangent, found["0"].tangent.double()) < (2e-3 if low else 1e-6)


COMPILE = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from trigflow.dual import attention_triton

def built(dtype, width, kind, causal):
    settings = attention_triton.launch_settings(dtype, width, width)
    choices = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
    constants = {**settings, "KIND": kind, "CAUSAL": causal, "WIDE": False}
    constants |= dict.fromkeys(("Q_MOVES", "K_MOVES", "V_MOVES"), True)
    number = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    names = attention_triton.tangent_kernel.arg_names
    kinds = {"scale": "fp32", "mask": "*u8" if kind == 2 else f"*{number}"}
    for name in names:
        pointer = f"*{number}" if name.endswith("_") or name == "out" else "i32"
        kinds[name] = "constexpr" if name in constants else kinds.get(name, pointer)
    source = ASTSource(
        attention_triton.tangent_kernel, {name: kinds[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
    )
    return compile(source, target=GPUTarget("cuda", 80, 32), options=choices)

for dtype, width, kind, causal in [
    (torch.float16, 64, 1, True), (torch.bfloat16, 256, 2, False), (torch.float32, 32, 0, False)
]:
    print(built(dtype, width, kind, causal).metadata.shared)
"""


def test_the_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """For sm_80, without one: into the shared memory that every GPU since has."""
    pytest.importorskip("triton", reason=NO_TRITON)
    pytest.importorskip("triton.backends.nvidia", reason="this Triton has no compiler for CUDA")
    path = [*sys.path, str(Path(attention.__file__).parents[2])]
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(path), "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert all(int(size) <= 99 * 1024 for size in run.stdout.split())
