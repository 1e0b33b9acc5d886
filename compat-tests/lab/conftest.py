"""A pair of machines for each file of tests, resumed in seconds from one that is saved in the cache."""

import tempfile
from pathlib import Path

import pytest

from pair import Pair

# The files that take longest, to be begun first when several pairs run beside each other.
LONGEST = ("test_parallel.py", "test_crashes.py", "test_walk.py", "test_multi_attach.py", "test_contract.py")


def pytest_collection_modifyitems(items):
    """The longest files first."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module")
def lab():
    """A storage node and a Xen node that run, with a guest that lets go of a used disk and one that does not."""
    with tempfile.TemporaryDirectory(prefix="vbs-lab-") as made:
        directory = Path(made) / "pair"
        try:
            pair = Pair.resumed(directory)
            pair.bring_iet()
            yield pair
        finally:
            # Also when it has come up only in part.
            if (directory / "images").exists():
                Pair(directory).remove()


@pytest.fixture
def storage(lab):
    return lab.storage


@pytest.fixture
def xen(lab):
    return lab.xen
