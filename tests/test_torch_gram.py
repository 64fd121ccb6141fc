"""Inner products on the device, taken on the CPU: against exact rational arithmetic, and the bound must hold."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from steepest.torch import gram  # noqa: E402 # needs torch
from steepest.torch.gram import block_gram, combined  # noqa: E402

PAIRS = [(0, 0), (0, 1), (1, 1)]
WORKING = [torch.float64, torch.float32]


def draw(n: int, dtype: Any, seed: int, spread: float = 4.0) -> Any:
    """Numbers of many magnitudes, with zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) * np.exp2(rng.uniform(-spread, spread, n)) * (rng.random(n) > 0.1)
    return torch.from_numpy(x).to(dtype)


def exact(a: Any, b: Any) -> Fraction:
    pairs = zip(a.double().flatten().tolist(), b.double().flatten().tolist(), strict=True)
    return sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))


def assert_bounded(found: Any, index: int, a: Any, b: Any, unit: int) -> float:
    """Error over bound."""
    hi, lo, bound = found.products[index]
    error = abs(Fraction(hi) + Fraction(lo) - exact(a, b) / Fraction(2) ** unit)
    assert error <= Fraction(bound), (index, float(error), bound)
    return float(error)


@pytest.mark.parametrize("working", WORKING)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 1023, 1024, 1025, 5000])
def test_against_exact_sums(n: int, dtype: str, working: Any) -> None:
    if dtype == "float64" and working == torch.float32:
        pytest.skip("a device without float64 holds no such tensors")
    y, g = (draw(n, getattr(torch, dtype), seed) for seed in (0, 1))
    (found,) = block_gram([[y], [g]], PAIRS, [y], working).fetch()
    for i, (a, b) in enumerate(PAIRS):
        vectors = (y, g)
        assert_bounded(found, i, vectors[a], vectors[b], found.exponents[a] + found.exponents[b])
    size = math.sqrt(found.products[0][0]) * math.sqrt(found.products[2][0])
    # (log2 n + c) units of the precision at most; the compensated ways reach nearly its square.
    compensated = dtype == "float64" or working == torch.float32
    unit = 2.0**-53 if working == torch.float64 else 2.0**-24
    assert found.products[1][2] <= size * ((60 * unit) ** 2 if compensated else (math.log2(n) + 8) * unit) + 1e-30
    square = sum(((Fraction(a) * Fraction(b)) ** 2 for a, b in zip(y.tolist(), g.tolist(), strict=True)), Fraction(0))
    square /= Fraction(4) ** (found.exponents[0] + found.exponents[1])
    assert found.square == pytest.approx(float(square), rel=1e-5 if unit > 1e-9 else 1e-12)


def test_shapes_orders_and_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_GROUP", 4096)  # blocks are cut, and share groups
    shapes = [(3, 5), (1,), (200, 61), (4097,), (2, 3, 4), (4096,)]
    y = [draw(math.prod(s), torch.float32, i).reshape(s) for i, s in enumerate(shapes)]
    g = [draw(math.prod(s), torch.float32, 10 + i).reshape(s) for i, s in enumerate(shapes)]
    y[2] = y[2].T.contiguous().T  # another order in memory
    g[4] = torch.zeros(()).expand(2, 3, 4)
    found = block_gram([y, g], PAIRS, y).fetch()
    for one, a, b in zip(found, y, g, strict=True):
        assert_bounded(one, 0, a, a, 0)
        assert_bounded(one, 1, a, b, 0)
        assert_bounded(one, 2, b, b, 0)
        spacing = np.linalg.norm(np.spacing(np.abs(a.numpy()[a.numpy() != 0])).astype(float))
        assert one.spacing == pytest.approx(float(spacing), rel=1e-6)
    assert found[4].products[2] == (0.0, 0.0, 0.0)
    whole = combined(found, PAIRS)
    flat = [torch.cat([x.flatten() for x in v]) for v in (y, g)]
    for i, (a, b) in enumerate(PAIRS):
        assert_bounded(whole, i, flat[a], flat[b], 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_mixed_types(dtype: str) -> None:
    y, g = draw(3000, getattr(torch, dtype), 0), draw(3000, torch.float32, 1)
    w, v = draw(10, torch.float64, 2), draw(10, torch.float32, 3)
    found = block_gram([[y, w], [g, v]], PAIRS).fetch()
    assert_bounded(found[0], 1, y, g, 0)
    assert_bounded(found[1], 1, w, v, sum(found[1].exponents))
    assert math.isnan(found[0].spacing)


@pytest.mark.parametrize(("dtype", "working"), [("float64", torch.float64), ("float32", torch.float32)])
def test_any_scale(dtype: str, working: Any) -> None:
    kind = getattr(torch, dtype)
    most = 300 if dtype == "float64" else 36
    for p, q in ((-most, -most), (most, most), (-most, most), (0, -most)):
        y, g = draw(2000, kind, 0) * 10.0**p, draw(2000, kind, 1) * 10.0**q
        y2, g2 = draw(30, kind, 2), draw(30, kind, 3)
        found = block_gram([[y, y2], [g, g2]], PAIRS, None, working).fetch()
        assert all(product[0] > 0 for i in (0, 2) for product in [found[0].products[i]])
        whole = combined(found, PAIRS)
        for i, (a, b) in enumerate(PAIRS):
            vectors, rest = (y, g), (y2, g2)
            unit = found[0].exponents[a] + found[0].exponents[b]
            assert_bounded(found[0], i, vectors[a], vectors[b], unit)
            hi, lo, bound = whole.products[i]
            total = (exact(vectors[a], vectors[b]) + exact(rest[a], rest[b])) / Fraction(2) ** (
                whole.exponents[a] + whole.exponents[b]
            )
            assert abs(Fraction(hi) + Fraction(lo) - total) <= Fraction(bound)


@pytest.mark.parametrize("working", WORKING)
def test_cancellation(working: Any) -> None:
    """Products of both signs that cancel to the last digits; the plain sum of float32 would be lost."""
    y = draw(4096, torch.float32, 0, 0.0)
    g = draw(4096, torch.float32, 1, 0.0)
    g -= (float(exact(y, g)) / float(exact(y, y))) * y
    (found,) = block_gram([[y], [g]], PAIRS, None, working).fetch()
    unit = sum(found.exponents)
    error = assert_bounded(found, 1, y, g, unit)
    true = abs(exact(y, g)) / Fraction(2) ** unit
    assert error <= 1e-6 * float(true)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(dtype: str, bad: float) -> None:
    y, g = draw(3000, getattr(torch, dtype), 0), draw(3000, getattr(torch, dtype), 1)
    y[1234] = bad
    fine = draw(5, getattr(torch, dtype), 2)
    found = block_gram([[y, fine], [g, fine]], PAIRS, [y, fine]).fetch()
    assert not math.isfinite(found[0].products[0][0])
    assert math.isfinite(found[1].products[0][0])
    assert math.isfinite(found[0].products[2][0])
    assert math.isnan(found[0].spacing)
    assert math.isnan(combined(found, PAIRS).products[0][0])


def test_large_sum_within_its_bound() -> None:
    """Two million equal signs: the bound stays at a few units, where n units would be the plain one."""
    torch.manual_seed(0)
    y = torch.rand(2_500_000)
    (found,) = block_gram([[y]], [(0, 0)]).fetch()
    reference = math.fsum((y.double() ** 2).tolist())  # exact products, rounded once
    hi, lo, bound = found.products[0]
    assert abs(hi + lo - reference) <= bound + math.ulp(reference)
    assert bound <= 10 * 2.0**-53 * reference
