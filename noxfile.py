#!/usr/bin/env -S uv run
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///

"""Developer tasks: ``nox -l`` lists them, ``nox -s tests -- -k metric`` passes arguments on to pytest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"

PROJECT = nox.project.load_toml("pyproject.toml")


def install_group(session: nox.Session, *names: str) -> None:
    session.install(*nox.project.dependency_groups(PROJECT, *names))


def build_wheel(session: nox.Session, build_dir: str, *settings: str, **definitions: str) -> Path:
    """Build a wheel in a build tree that stays, for ctest to find its tests in; return its path."""
    install_group(session, "build")
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    defined = [f"-Ccmake.define.{name}={value}" for name, value in definitions.items()]
    session.run(
        *("python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}"),
        *(f"-Cbuild-dir={build_dir}", *settings, *defined, "."),
    )
    (wheel,) = wheels.glob("*.whl")
    return wheel


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's linter and formatter, and the spelling."""
    install_group(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def typing(session: nox.Session) -> None:
    """Run mypy (strict) on the package, and stubtest on the compiled module."""
    install_group(session, "typing")
    session.install(".[test]")
    session.run("mypy")
    session.run(
        *("python", "-m", "mypy.stubtest", "--mypy-config-file=pyproject.toml"),
        *("--allowlist=.ci/stubtest-allowlist", "steepest._core"),
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on NumPy, without the optional array libraries."""
    session.install(".[test]")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """Run the tests on the oldest NumPy and SciPy that are supported."""
    session.install(".[test]", "numpy==2.0.*", "scipy==1.13.*")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def arrays(session: nox.Session) -> None:
    """Run the tests with PyTorch and JAX installed."""
    session.install(".[test,torch,jax]")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run the tests and report which lines of Python they do not reach."""
    install_group(session, "coverage")
    session.install(".[test]")
    session.run("pytest", "--cov", "--cov-report=term-missing", *session.posargs)


@nox.session
def cpp(session: nox.Session) -> None:
    """Run the C++ checks, warnings being errors."""
    build_wheel(session, "build/cpp", STEEPEST_CPP_TESTS="ON", STEEPEST_WERROR="ON")
    session.run("ctest", "--test-dir", "build/cpp", "--output-on-failure", "--no-tests=error")


# Tests of the kernels, of their callers, and of threads of the user's own: all that ThreadSanitizer can judge.
THREADED = (
    "threads",
    *("core_apply", "core_bad_input", "core_gram", "block_products", "distance", "metric", "bad_input"),
    *("recorder", "recording", "sources", "storage", "vector_store", "step_batches", "step_pass", "elementwise"),
    *("hessian_products", "node_perturbation", "gradient_estimate", "identify_low_rank"),
)


@nox.session(default=False)
@nox.parametrize("sanitize", ["address,undefined", "thread"], ids=["asan", "tsan"])
def sanitizers(session: nox.Session, sanitize: str) -> None:
    """Run the C++ checks and the Python tests under ASan with UBSan, and under TSan (of Python, what uses threads)."""
    # As the presets, but by way of a wheel, for Python to import; not stripped, so that reports name functions.
    threads = sanitize == "thread"
    build_dir = "build/python-tsan" if threads else "build/python-asan"
    wheel = build_wheel(
        session,
        build_dir,
        "-Cinstall.strip=false",
        STEEPEST_CPP_TESTS="ON",
        STEEPEST_SANITIZE=sanitize,
        CMAKE_BUILD_TYPE="RelWithDebInfo",
    )
    # After a fork, TSan would end a process that starts threads. Leaks of the interpreter would be counted as ours.
    strict = {
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0",
        "ASAN_OPTIONS": "detect_leaks=0",
        "STEEPEST_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "1",
    }
    session.run("ctest", "--test-dir", build_dir, "--output-on-failure", "--no-tests=error", env=strict)
    # Python itself is not instrumented, so the runtime has to be loaded first, with the C++ library whose exceptions it
    # looks for then. The report goes to the file descriptor of stderr as the process ends: pytest must not hold it.
    session.install(f"steepest[test] @ {wheel.resolve().as_uri()}")
    runtime = " ".join(
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libtsan.so" if threads else "libasan.so", "libstdc++.so")
    )
    # A browser does not start with the runtime loaded.
    default = [f"tests/test_{name}.py" for name in THREADED] if threads else ["-k", "not browser"]
    chosen = session.posargs or default
    session.run("pytest", "--capture=sys", *chosen, env={**strict, "LD_PRELOAD": runtime})


@nox.session(default=False)
def isa(session: nox.Session) -> None:
    """Run the tests under each instruction set that the build has and this CPU too."""
    session.install(".[test]")
    compiled = "import steepest; print(*steepest.build_config()['instruction_sets'])"
    for name in str(session.run("python", "-c", compiled, silent=True)).split():
        forced = {"STEEPEST_ISA": name}
        ask = ("python", "-c", "import steepest; steepest.build_config()")
        said = session.run(*ask, env=forced, silent=True, success_codes=[0, 1])
        if said:  # the error of a CPU without it
            session.warn(str(said).strip().splitlines()[-1])
        else:
            session.run("pytest", *session.posargs, env=forced)


@nox.session(default=False)
def sdist(session: nox.Session) -> None:
    """Build the sdist, a wheel from it, and run the sdist's own tests on that wheel."""
    session.install("build", "twine")
    target = Path(session.create_tmp()) / "sdist"
    shutil.rmtree(target, ignore_errors=True)
    session.run("python", "-m", "build", "--sdist", f"--outdir={target}")
    (archive,) = target.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(archive))
    session.run("python", "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={target}", str(archive))
    (wheel,) = target.glob("*.whl")
    session.install(f"steepest[test] @ {wheel.resolve().as_uri()}")
    shutil.unpack_archive(archive, target, filter="data")
    session.chdir(target / archive.name.removesuffix(".tar.gz"))
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the asv suite once, quickly, on the installed package: vectors of 1000, or what is given to asv."""
    install_group(session, "bench")
    session.install(".[test]")
    session.chdir("benchmarks")
    session.run("asv", "machine", "--yes")
    chosen = session.posargs or ["--bench", r"\(1000,"]  # all of it takes hours
    session.run("asv", "run", "--quick", "--python=same", "--show-stderr", *chosen)


if __name__ == "__main__":
    nox.main()
