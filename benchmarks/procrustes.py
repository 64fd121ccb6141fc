"""SPD Procrustes beside a general conic solver: n = 50, T = 200, interleaved, median of 5.

    python benchmarks/procrustes.py [n T]

Needs cvxpy with Clarabel and SCS. Objectives are relative to the smallest one found.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings

import cvxpy
import numpy as np

from steepest.identify.procrustes import spd_procrustes

REPEATS = 5
SOLVERS = {
    "Clarabel": {"solver": "CLARABEL"},
    "SCS": {"solver": "SCS"},
    "SCS 1e-7": {"solver": "SCS", "eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 20_000},
}


def problem(n: int, T: int, decades: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pairs of a metric with condition 100; singular values of X over some decades."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(n, n)))
    v, _ = np.linalg.qr(rng.normal(size=(T, n)))
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    X = np.sqrt(T) * (u * np.logspace(0, -decades, n)) @ v.T
    B = (q * np.logspace(0, -2, n)) @ q.T @ X
    return X, B + 0.5 * np.linalg.norm(B) / np.sqrt(B.size) * rng.normal(size=B.shape)


def conic(X: np.ndarray, B: np.ndarray, options: dict) -> np.ndarray:
    """A by cvxpy, the columns reduced to n by QR first, which is in its favour."""
    n = len(X)
    r = np.linalg.qr(np.concatenate([X, B]).T, mode="r")
    A = cvxpy.Variable((n, n), PSD=True)
    loss = cvxpy.sum_squares(A @ r[:n, :n].T - r[:n, n:].T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cvxpy.Problem(cvxpy.Minimize(loss)).solve(**options)
    return A.value


def feasible(A: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(0.5 * (A + A.T))
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def main() -> None:
    n, T = (int(x) for x in sys.argv[1:3]) if len(sys.argv) > 2 else (50, 200)
    for decades in (0.0, 2.0, 4.0):
        times: dict[str, list[float]] = {name: [] for name in ("steepest", *SOLVERS)}
        objectives: dict[str, list[float]] = {name: [] for name in times}
        for repeat in range(REPEATS):
            X, B = problem(n, T, decades, repeat)
            runs = {"steepest": lambda X=X, B=B: spd_procrustes(X, B).A}
            runs |= {name: lambda X=X, B=B, o=o: conic(X, B, o) for name, o in SOLVERS.items()}
            for name, run in runs.items():
                begin = time.perf_counter()
                A = run()
                times[name].append(time.perf_counter() - begin)
                objectives[name].append(float(np.sum((feasible(A) @ X - B) ** 2)))
        best = [min(values) for values in zip(*objectives.values(), strict=True)]
        own = statistics.median(times["steepest"])
        print(f"n = {n}, T = {T}, singular values over 10^{decades:.0f}")
        for name, found in times.items():
            worst = max(value / least - 1.0 for value, least in zip(objectives[name], best, strict=True))
            median = statistics.median(found)
            print(
                f"  {name:9s} {1e3 * median:10.1f} ms   x {median / own:8.1f}   objective above the best: {worst:.1e}"
            )


if __name__ == "__main__":
    main()
