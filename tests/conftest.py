"""Options and the header of the test run."""

from __future__ import annotations

import pytest

import steepest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="also run tests that need several GiB or many seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--large"):
        return
    skip = pytest.mark.skip(reason="needs --large")
    for item in items:
        if "large" in item.keywords:
            item.add_marker(skip)


def pytest_report_header() -> str:
    config = steepest.build_config()
    return "steepest: " + ", ".join(f"{key} {value}" for key, value in config.items())
