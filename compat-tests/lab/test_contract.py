"""The contract that the tests of every storage node check, kept by the real drivers: `tests/it/storage_lab.rs` against a node of the lab.

And what those cannot see, for they have no initiator: that nothing is taken from under one that is logged in.
"""

import os
import subprocess
from pathlib import Path

import pytest

import bare
from cloud import CHAINS, Cloud, stripped
from verbs import Refused, ask, new_id

PROJECT = Path(__file__).resolve().parents[2]
# Each layout and each target once: neither knows of the other.
NODES = [chain for chain in CHAINS if chain != "thin-tgt"]


@pytest.fixture(params=NODES)
def node(lab, request):
    """Its delegate alone: a gateway would wonder about volumes that it did not ask for."""
    made = Cloud(lab, *request.param.split("-")).storage
    made.install(stripped())
    made.start()
    yield made
    made.kill()


def test_a_storage_node_keeps_the_contract(node, xen, tmp_path):
    nothing_is_taken_from_under_a_live_session(node, xen)

    key = tmp_path / "key"
    key.write_text(node.key)
    told = {
        "VBS_CONTRACT_STORAGE_URL": node.url,
        "VBS_CONTRACT_STORAGE_KEY": str(key),
        "VBS_CONTRACT_STORAGE_NODE": node.node,
    }
    command = ["cargo", "test", "--locked", "--test", "it", "storage_lab", "--", "--ignored", "--test-threads=1"]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | told, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}\n{node.tail()}"
    assert "2 passed" in done.stdout


def nothing_is_taken_from_under_a_live_session(node, xen):
    volume = new_id("vol")
    ask(node, "ensure_volume", {"volume": volume, "size_bytes": 16 << 20, "snapshot": None})
    made = bare.Export(volume, "", 1)
    export = {"volume": volume, "iqn": made.iqn, "lun": made.lun, "initiator_iqn": bare.INITIATOR}
    export |= {"chap_user": made.user, "chap_secret": made.secret}
    made = bare.Export(volume, ask(node, "ensure_exported", export).value["address"], 1)
    bare.login(xen, made)
    xen.sh(f"seq 1 300000 | head -c 1048576 > /tmp/data; dd if=/tmp/data of={made.device} bs=1M oflag=direct status=none")

    refused = {}
    for verb, spec in (
        ("ensure_not_exported", volume),
        ("ensure_no_volume", volume),
        ("ensure_exported", export | {"iqn": f"{made.iqn}.2"}),
    ):
        with pytest.raises(Refused) as refusal:
            ask(node, verb, spec)
        refused[verb] = refusal.value.kind
    assert set(refused.values()) == {"retry"}, refused
    # What is asked for again is there already, and is left alone.
    ask(node, "ensure_exported", export)
    assert xen.sh("cat /sys/class/iscsi_session/*/state").split() == ["LOGGED_IN"]
    xen.sh(f"dd if={made.device} bs=1M count=1 iflag=direct status=none | cmp - /tmp/data")
    xen.sh(f"dd if=/tmp/data of={made.device} bs=1M seek=1 oflag=direct status=none; rm /tmp/data")

    bare.logout(xen, made)
    ask(node, "ensure_not_exported", volume)
    ask(node, "ensure_no_volume", volume)
