"""Tests over real verbs. They run where SHOAL_TEST_RDMA names an address that a device carries: in the guest."""

import os
import sys
from pathlib import Path

import pytest

from harness.verbs import be_patient


def pytest_collection_modifyitems(items):
    if "SHOAL_TEST_RDMA" in os.environ:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="NOT RUN: no RDMA device: ./check rdma boots a guest with one"))


def pytest_runtest_logreport(report):
    """At once, and not only at the end, which a guest whose time is up does not reach."""
    if report.failed and "SHOAL_TEST_RDMA" in os.environ:
        print(f"\n{report.nodeid}: {report.longreprtext}", file=sys.stderr, flush=True)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    be_patient(monkeypatch)
