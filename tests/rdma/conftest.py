"""Tests over real verbs. They run where SHOAL_TEST_RDMA names an address that a device carries: in the guest."""

import os

import pytest

from harness.verbs import be_patient


def pytest_collection_modifyitems(items):
    if "SHOAL_TEST_RDMA" not in os.environ:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="NOT RUN: no RDMA device: ./check rdma boots a guest with one"))


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    be_patient(monkeypatch)
