"""A pair of machines for each file of tests, resumed in seconds from one that is saved in the cache."""

import tempfile
from pathlib import Path

import pytest

from pair import Pair


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
