"""A pair of machines for each file of tests, resumed in seconds from one that is saved in the cache."""

import tempfile
from pathlib import Path

import pytest

from pair import Pair


@pytest.fixture(scope="module")
def lab():
    """A storage node and a Xen node that run, with a guest that lets go of a used disk and one that does not."""
    with tempfile.TemporaryDirectory(prefix="vbs-lab-") as made:
        pair = None
        try:
            pair = Pair.resumed(Path(made) / "pair")
            yield pair
        finally:
            if pair:
                pair.remove()


@pytest.fixture
def storage(lab):
    return lab.storage


@pytest.fixture
def xen(lab):
    return lab.xen
