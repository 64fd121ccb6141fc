"""The package as a whole: versions, documentation, what an import costs, and the settings of the core."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import steepest
from steepest import _core

ROOT = Path(__file__).parents[1]
OPTIONAL = ("torch", "jax", "matplotlib", "sklearn", "pandas", "xarray", "ml_dtypes", "mpmath")


# Modules that are nothing without a package that may be missing.
NEEDS = {"steepest.torch": "torch", "steepest.optax": "optax", "steepest.jax": "jax"}


def modules() -> list[ModuleType]:
    """All Python modules of the package that can be imported here."""
    missing = tuple(name for name, needed in NEEDS.items() if importlib.util.find_spec(needed) is None)
    names = [info.name for info in pkgutil.walk_packages(steepest.__path__, "steepest.")]
    left_out = [name for name in names if name.endswith(("_core", "__main__")) or name.startswith(missing)]
    return [steepest, *(importlib.import_module(name) for name in names if name not in left_out)]


def test_version() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert steepest.__version__ == declared
    assert importlib.metadata.version("steepest") == declared
    assert _core.build_config()["version"] == declared


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_docstring_examples(module: ModuleType) -> None:
    threads = steepest.get_num_threads()
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    steepest.set_num_threads(threads)
    assert failed == 0


def test_there_are_examples() -> None:
    documented = [steepest.align, steepest.metric, steepest.distance, steepest.canonical_form, steepest.build_config]
    for function in documented:
        assert ">>>" in (function.__doc__ or ""), function


def test_public_names_are_documented() -> None:
    assert sorted(steepest.__all__) == sorted(set(steepest.__all__))
    for name in steepest.__all__:
        thing = getattr(steepest, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    # An override is documented where it is declared first.
                    assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"
            if dataclasses.is_dataclass(thing):
                for field in dataclasses.fields(thing):
                    assert field.name.startswith("_") or field.name in (thing.__doc__ or ""), f"{name}.{field.name}"
        elif inspect.isfunction(thing):
            for parameter in inspect.signature(thing).parameters:
                assert f"{parameter}" in (thing.__doc__ or ""), f"{name}({parameter})"


def test_results_are_frozen() -> None:
    for name in ("Alignment", "CanonicalForm", "Distance", "Spectrum"):
        assert getattr(steepest, name).__dataclass_params__.frozen


def run(code: str, **environment: str) -> str:
    """Output of a fresh interpreter in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout


def test_import_brings_no_optional_dependency_and_is_silent() -> None:
    code = f"import sys, steepest; print([m for m in {OPTIONAL} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_use_brings_no_optional_dependency() -> None:
    code = (
        "import sys, numpy as np, steepest; g, u = np.array([1.0, 2.0]), np.array([-1.0, 0.0]);"
        "M = steepest.metric(g, u); repr(M), M @ g, M.log() @ g, steepest.distance(M, 2 * M);"
        f"print([m for m in {OPTIONAL} if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_build_config() -> None:
    config = steepest.build_config()
    assert set(config) >= {
        "version", "compiler", "cplusplus", "eigen", "pybind11", "assertions", "instruction_sets", "instruction_set",
        "num_threads",
    }  # fmt: skip
    assert config["instruction_set"] in config["instruction_sets"]
    assert "baseline" in config["instruction_sets"]
    assert config["num_threads"] == steepest.get_num_threads() >= 1
    assert config["eigen"][0] == "3"


def test_threads() -> None:
    before = steepest.get_num_threads()
    rng = np.random.default_rng(0)
    grad, noise = rng.standard_normal((2, 300_001))
    update = -grad + noise
    bits = []
    for n in (1, 2, 3, 7):
        steepest.set_num_threads(n)
        assert steepest.get_num_threads() == n
        metric = steepest.metric(grad, update)
        bits.append((metric.alpha, metric.cond(), (metric @ noise).tobytes(), metric.solve(noise).tobytes()))
    steepest.set_num_threads(before)
    assert all(found == bits[0] for found in bits)
    with pytest.raises(ValueError, match="1"):
        steepest.set_num_threads(0)


def test_environment_variables() -> None:
    code = "import steepest; print(steepest.get_num_threads(), steepest.build_config()['instruction_set'])"
    assert run(code, STEEPEST_NUM_THREADS="3", STEEPEST_ISA="baseline").split() == ["3", "baseline"]


def test_instruction_sets_agree() -> None:
    """Residuals stay within the contract, and results within rounding, whatever the CPU offers."""
    code = (
        "import numpy as np, steepest; r = np.random.default_rng(0); g, z = r.standard_normal((2, 10_001)); u = z - g;"
        "M = steepest.metric(g, u); print(repr(M.cond()), repr(float(np.abs(M @ u + g).max())))"
    )
    found = [run(code, STEEPEST_ISA=isa).split() for isa in steepest.build_config()["instruction_sets"]]
    for cond, residual in found:
        assert float(cond) == pytest.approx(float(found[0][0]), rel=1e-14)
        assert float(residual) < 1e-14
