"""The contract that the tests of every storage node check, kept by the real drivers: `tests/it/storage_lab.rs` against a node of the lab."""

import os
import subprocess
from pathlib import Path

import pytest

from cloud import CHAINS, Cloud, stripped

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_storage_node_keeps_the_contract(lab, tmp_path, chain):
    # Its delegate alone: a gateway would wonder about volumes that it did not ask for.
    node = Cloud(lab, *chain.split("-")).storage
    node.install(stripped())
    node.start()
    key = tmp_path / "key"
    key.write_text(node.key)
    told = {
        "VBS_CONTRACT_STORAGE_URL": node.url,
        "VBS_CONTRACT_STORAGE_KEY": str(key),
        "VBS_CONTRACT_STORAGE_NODE": node.node,
    }
    command = ["cargo", "test", "--locked", "--test", "it", "storage_lab", "--", "--ignored", "--test-threads=1"]
    try:
        done = subprocess.run(command, cwd=PROJECT, env=os.environ | told, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}\n{node.tail()}"
        assert "2 passed" in done.stdout
    finally:
        node.kill()
