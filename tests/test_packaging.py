"""What an installation holds: one version everywhere, type information, and a stub that tells the truth."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import re
from pathlib import Path

import pytest

from steepest import _core

ROOT = Path(__file__).parents[1]
PACKAGE = importlib.resources.files("steepest")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, object]]:
    """Name and default of each parameter; ... where there is no default."""
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults = [ast.literal_eval(node) for node in function.args.defaults]
    without: list[object] = [...] * (len(positional) - len(defaults))
    named = [
        (argument.arg, ... if node is None else ast.literal_eval(node))
        for argument, node in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    ]
    return [*zip((argument.arg for argument in positional), without + defaults, strict=True), *named]


def stub_functions() -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of the stub that is not a property, by dotted name."""
    found = {}
    tree = ast.parse(PACKAGE.joinpath("_core.pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, FUNCTIONS):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, FUNCTIONS) and not item.decorator_list]
            found |= {f"{node.name}.{method.name}": method for method in methods}
    return found


@pytest.mark.parametrize("name", stub_functions())
def test_stub_has_the_parameters_of_the_compiled_function(name: str) -> None:
    # stubtest cannot see them: a compiled function has no signature to inspect. pybind11 writes it as the
    # first line of the docstring.
    compiled: object = _core
    for part in name.split("."):
        compiled = getattr(compiled, part)
    signature = (compiled.__doc__ or "").partition("\n")[0]
    (function,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    assert parameters(stub_functions()[name]) == parameters(function)


def test_installed_package_is_typed() -> None:
    assert PACKAGE.joinpath("py.typed").is_file()


def test_one_version() -> None:
    version = importlib.metadata.version("steepest")
    assert _core.build_config()["version"] == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [version]
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
