"""Tests of kernels name the instruction set that they call, so one run of them tests all."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.name != "test_kernel_isa.py":  # that one is about the forced set
            item.add_marker(pytest.mark.any_isa)
