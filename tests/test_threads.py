"""Threads and instruction sets: the same bits for any number of threads, concurrent callers, fork, settings."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core_cases import DTYPES, doubles, stored
from steepest import _core

SIZE = 100_003  # 13 blocks
LIMIT = 60  # seconds, for what would hang


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = _core.get_num_threads()
    yield
    _core.set_num_threads(before)


def numbers(gram: Any) -> list[Any]:
    return [gram.hi, gram.lo, gram.bound, np.array(gram.exponents), np.array(gram.sign_flip_variance)]


def results(dtype: str) -> list[Any]:
    """Every kernel on vectors of one type."""
    rng = np.random.default_rng(0)
    w, v, x = (stored(rng.standard_normal(SIZE), dtype) for _ in range(3))
    d = stored(rng.uniform(0.5, 2, SIZE), dtype)
    found: list[Any] = []
    for precision in ("fast", "compensated", "exact"):
        found += numbers(_core.gram([w, v], precision))
        found += numbers(_core.gram([w[::-1], v, x], precision))
    found += numbers(_core.angle_gram(w, v)) + numbers(_core.angle_gram(w, v, d))
    bad = d.copy()
    bad[70000:] = 0
    found.append(np.array(_core.first_not_positive(bad)))
    core = np.array([[0.1, 0.02], [0.02, -0.3]]) / 1000
    for options in ({}, {"diagonal": d}, {"diagonal": d, "inverse": True}):
        for columns in ([w, v], [w[::-1], v]):
            operator = _core.Operator(columns, [0, 0], [False] * 2, core, **options)
            for shape in ((SIZE,), (SIZE, 3)):
                out = np.zeros(shape, x.dtype)
                operator.apply(
                    np.broadcast_to(x.reshape(-1, 1), shape) if len(shape) > 1 else x,
                    out,
                    columns=len(shape) > 1,
                )
                found.append(out)
    small = _core.Operator([w[:300], v[:300]], [0, 0], [False] * 2, core)
    matrix = np.zeros((300, 300))
    small.assemble(matrix)
    found.append(matrix)
    for onto in (True, False):
        out = np.zeros_like(x)
        _core.project([w, v], x, out, onto=onto)
        found.append(out)
    out = np.zeros_like(x)
    basis = _core.Complement(w)
    basis.apply(x[1:], out)
    found.append(out)
    short = np.zeros_like(x[1:])
    basis.apply(x, short, transpose=True)
    return [*found, short]


def same_bits(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype: str) -> None:
    _core.set_num_threads(1)
    one = results(dtype)
    for threads in (2, 3, 7):
        _core.set_num_threads(threads)
        assert _core.get_num_threads() == threads
        for _ in range(2):
            assert same_bits(results(dtype), one), threads


def test_concurrent_callers() -> None:
    _core.set_num_threads(3)
    expected = {dtype: results(dtype) for dtype in DTYPES}
    start = threading.Barrier(4)

    def work(index: int) -> bool:
        start.wait(LIMIT)
        return all(same_bits(results(dtype), expected[dtype]) for dtype in list(DTYPES)[index % 4 :: 2])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_one_operator_in_many_threads_while_settings_change() -> None:
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((2, SIZE))
    operator = _core.Operator([w], [0], [False], np.eye(1) / SIZE)
    expected = np.empty(SIZE)
    operator.apply(x, expected)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for n in (1, 2, 5, 3):
                _core.set_num_threads(n)

    def work(_: int) -> bool:
        out = np.empty(SIZE)
        for _round in range(30):
            operator.apply(x, out)
            if not np.array_equal(out, expected):
                return False
        return True

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        stop.set()
        changer.join(LIMIT)


def test_the_interpreter_runs_on_while_a_kernel_works() -> None:
    # A kernel without the interpreter lock lets another thread count; with it, none would get in between.
    x = np.ones(3_000_000)
    _core.set_num_threads(1)
    steps, done = 0, threading.Event()

    def kernel() -> None:
        for _ in range(3):
            _core.gram([x, x], "exact")
        done.set()

    worker = threading.Thread(target=kernel)
    worker.start()
    while not done.is_set():
        steps += 1
        time.sleep(0.001)
    worker.join()
    assert steps > 10


def wait_for(child: int) -> int:
    """Exit status of a child process; killed if it hangs."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child process hangs")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
# Python 3.12 and later warn of any fork of a process with threads, which is the point here; so does JAX once imported.
forks = pytest.mark.filterwarnings("ignore:.*fork.*")


def in_child(work: Callable[[], bool]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return wait_for(child)


@needs_fork
@forks
def test_fork_after_the_pool_has_started() -> None:
    _core.set_num_threads(4)
    expected = results("float64")

    def grandchild_too() -> bool:
        return (
            same_bits(results("float64"), expected) and in_child(lambda: same_bits(results("float64"), expected)) == 0
        )

    for _ in range(3):
        assert in_child(grandchild_too) == 0
    assert same_bits(results("float64"), expected)


@needs_fork
@forks
def test_fork_while_another_thread_computes() -> None:
    _core.set_num_threads(3)
    expected = results("float32")
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            _core.gram([np.ones(200_000), np.ones(200_000)])

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        for _ in range(4):
            assert in_child(lambda: same_bits(results("float32"), expected)) == 0
    finally:
        stop.set()
        worker.join(LIMIT)


def digest(dtype: str) -> bytes:
    return b"".join(r.tobytes() for r in results(dtype))


@needs_fork
@forks
def test_multiprocessing_by_fork() -> None:
    _core.set_num_threads(3)
    expected = digest("float64")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(digest, ["float64"] * 4).get(LIMIT) == [expected] * 4


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("3", 3), ("256", 256), ("100000", 256)])
def test_number_of_threads_from_the_environment(text: str, expected: int) -> None:
    found = run("from steepest import _core; print(_core.get_num_threads())", STEEPEST_NUM_THREADS=text)
    assert found.stdout.strip() == str(expected), found.stderr


def test_an_empty_number_leaves_the_default() -> None:
    found = run(
        "from steepest import _core; print(_core.get_num_threads(), _core.available_cpus())",
        STEEPEST_NUM_THREADS="",
    )
    threads, cpus = found.stdout.split()
    assert int(threads) == min(int(cpus), 256)


@pytest.mark.parametrize("text", ["0", "-2", "many", "3x", "1e3"])
def test_other_numbers_are_refused(text: str) -> None:
    found = run("import steepest", STEEPEST_NUM_THREADS=text)
    assert found.returncode != 0
    assert f"ValueError: expected STEEPEST_NUM_THREADS to be a positive integer, got '{text}'" in found.stderr


def test_available_cpus_respects_affinity() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    assert _core.available_cpus() == len(os.sched_getaffinity(0))


def test_set_num_threads() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1 thread"):
            _core.set_num_threads(wrong)
    _core.set_num_threads(1000)
    assert _core.get_num_threads() == 256


# Prints the bytes of a few results in hexadecimal: [fast Gram of float32, ...].
ISA_PROGRAM = """
import sys
import numpy as np
from steepest import _core
rng = np.random.default_rng(0)
x, y, d = rng.standard_normal((3, 50_001))
d = np.abs(d) + 0.1
def show(*arrays): print(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays).hex())
print(_core.build_config()["instruction_set"])
for dtype in ("f4", "f2"):
    g = _core.gram([x.astype(dtype), y.astype(dtype)])
    show(g.hi, g.lo)
g = _core.gram([x, y], "compensated")
show(g.hi)
for columns in ([x, y], [x[::-1], y]):
    for options in ({}, {"diagonal": d}):
        out = np.empty(50_001)
        _core.Operator(columns, [0, 0], [False] * 2, np.eye(2) / 1e5, **options).apply(d, out)
        show(out)
out = np.empty(50_001)
_core.project([x, y], d, out, onto=False)
show(out)
half = np.empty(50_001, np.float16)
_core.Operator([], [], [], np.zeros((0, 0))).apply(x, half)
show(half)
"""


def test_instruction_sets_agree() -> None:
    found: dict[str, list[bytes]] = {}
    for name in _core.build_config()["instruction_sets"]:
        ran = run(ISA_PROGRAM, STEEPEST_ISA=name)
        if ran.returncode != 0:
            assert f"STEEPEST_ISA={name} is not available here" in ran.stderr  # this CPU lacks it
            continue
        first, *lines = ran.stdout.split()
        assert first == name
        found[name] = [bytes.fromhex(line) for line in lines]
    baseline = found.pop("baseline")
    for name, other in found.items():
        # Products of narrow types are exact in double, and the order of sums is the same.
        assert other[:2] == baseline[:2], name
        for a, b in zip(other[2:-1], baseline[2:-1], strict=True):
            x, y = np.frombuffer(a), np.frombuffer(b)
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)
        assert other[-1] == baseline[-1], name


def test_an_unknown_instruction_set_is_refused() -> None:
    found = run("from steepest import _core; _core.build_config()", STEEPEST_ISA="avx9")
    assert found.returncode == 1
    assert "STEEPEST_ISA=avx9 is not available here; this CPU and build have: " in found.stderr
    assert "baseline" in found.stderr.splitlines()[-1]
    kernels = "import numpy as np\nfrom steepest import _core\nfor f in (lambda: _core.gram([np.ones(3)]), lambda: "
    kernels += "_core.first_not_positive(np.ones(10**6))):\n  try: f()\n  except ValueError as e: print(e)"
    try_twice = run(kernels.replace("from steepest import _core", LOAD_CORE), STEEPEST_ISA="avx9")
    assert try_twice.stdout.count("STEEPEST_ISA=avx9 is not available here") == 2, try_twice.stderr


# The compiled module alone: the package itself asks for the build on import.
LOAD_CORE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("steepest._core", {_core.__file__!r})
_core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_core)
""".strip()


def test_the_least_of_everything() -> None:
    _core.set_num_threads(7)
    for n in (0, 1, 2):
        x = np.ones(n)
        assert _core.gram([x]).hi[0, 0] == n
        assert doubles(x).size == n


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the affinity of threads from /proc")
def test_workers_use_only_the_cpus_of_the_process() -> None:
    """A worker moves away from the caller's CPU, but never to one that the process was not given."""
    program = """
import os, sys
import numpy as np
from steepest import _core
cpus = sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]
os.sched_setaffinity(0, cpus)
_core.set_num_threads(3)
x = np.ones(200_000)
for _ in range(200):
    assert _core.gram([x, x]).hi[0, 1] == x.size
tasks = [int(t) for t in os.listdir("/proc/self/task")]
assert len(tasks) >= 3, tasks
for task in tasks:
    assert os.sched_getaffinity(task) <= set(cpus), (task, os.sched_getaffinity(task), cpus)
"""
    for allowed in (1, 2):
        subprocess.run(
            [sys.executable, "-c", program, str(allowed)],
            check=True,
            timeout=LIMIT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
