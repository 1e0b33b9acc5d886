"""What an operator gets for the time: thin snapshots and volumes whose size does not matter, and an attach not far from the price of its commands.

Times in an emulated machine say nothing by themselves. Two of them, taken by turns, can be compared.
"""

import time
from datetime import datetime
from statistics import median

import pytest

import bare
from cloud import Cloud
from verbs import ask, new_id

MIB = 1 << 20
SMALL, LARGE = 100 * MIB, 10 << 30
SIZE_ROUNDS = 7
ATTACH_ROUNDS = 5


@pytest.fixture(scope="module")
def cloud(lab):
    with Cloud(lab, "thin", "lio", overcommit=100.0) as made:
        yield made


def test_a_thin_volume_of_10_gib_is_snapshotted_and_restored_as_fast_as_one_of_100_mib(cloud, storage):
    """A tenant's volumes have a GiB at least, so this talks to the node's delegate, as the gateway does."""
    took = {(what, size): [] for what in ("snapshot", "restore") for size in (SMALL, LARGE)}
    node, volumes = cloud.storage, {SMALL: new_id("vol"), LARGE: new_id("vol")}
    for size, volume in volumes.items():
        ask(node, "ensure_volume", {"volume": volume, "size_bytes": size, "snapshot": None})
        # With data in proportion to the size, up to half a GiB.
        storage.run("lvchange", "-ay", "-K", f"vbs/{volume}")
        mib = min(size, 512 * MIB) // MIB * 4 // 5
        storage.sh(f"dd if=/dev/zero of=/dev/vbs/{volume} bs=1M count={mib} oflag=direct status=none", timeout=300)
    for turn in range(SIZE_ROUNDS):
        # First the one, then the other: what comes second has it easier.
        for size in (SMALL, LARGE) if turn % 2 else (LARGE, SMALL):
            snapshot, copy = new_id("snap"), new_id("vol")
            cut = {"snapshot": snapshot, "volume": volumes[size]}
            took["snapshot", size].append(ask(node, "ensure_snapshot", cut).seconds)
            made = {"volume": copy, "size_bytes": size, "snapshot": snapshot}
            took["restore", size].append(ask(node, "ensure_volume", made).seconds)
            ask(node, "ensure_no_volume", copy)
            ask(node, "ensure_no_snapshot", cut)
    for volume in volumes.values():
        ask(node, "ensure_no_volume", volume)
    cloud.assert_nothing_left()

    for what in ("snapshot", "restore"):
        small, large = median(took[what, SMALL]), median(took[what, LARGE])
        print(f"{what}: 100 MiB {small:.2f} s, 10 GiB {large:.2f} s, ratio {large / small:.2f}")
        assert large / small < 1.3, took


def test_an_attach_takes_less_than_a_tenth_longer_than_its_commands_by_hand(cloud, storage, xen):
    """By vbs: from the call's being accepted until the row says `attached`, with all looks before and after each command and what is
    written to Postgres. By hand: what `bare.py` has, the export, the node record with an update for each setting, the log-in and
    `xl block-attach`, one right after another, without a look at what came of them. Both of a thin volume by LIO to a guest that
    has no other disk, by turns."""
    by_hand, by_vbs = [], []
    volume = cloud.create_volume(1)
    bare.make_thin(storage, "byhand", "1G")

    def vbs():
        cloud.attach(volume, "new", "/dev/sdf")
        by_vbs.append(seconds_of_last(cloud, "attach_volume"))
        cloud.detach(volume)

    def hand():
        began = time.monotonic()
        made = bare.export_by_lio(storage, "byhand")
        bare.login(xen, made)
        bare.attach(xen, "new", made, "xvdf")
        by_hand.append(time.monotonic() - began)
        bare.detach(xen, "new", "xvdf")
        bare.logout(xen, made)
        bare.unexport_by_lio(storage, made)

    for turn in range(ATTACH_ROUNDS):
        for attach in (vbs, hand) if turn % 2 else (hand, vbs):
            attach()
    storage.run("lvremove", "-y", "vbs/byhand")
    cloud.delete_volume(volume)
    cloud.assert_nothing_left()
    one, other = median(by_vbs), median(by_hand)
    print(f"an attach: {one:.2f} s by vbs, {other:.2f} s by hand, {(one / other - 1) * 100:+.0f} %; {by_vbs} {by_hand}")
    assert one < other * 1.1


def seconds_of_last(cloud, kind):
    """How long the last workflow of a kind took, from its being accepted until its last step was done."""
    lines = [line.split("\t") for line in cloud.operator("workflow", "list", "--all").splitlines()]
    number = next(line[0] for line in lines if line[1] == kind)
    shown = [line.split("\t") for line in cloud.operator("workflow", "show", number).splitlines()]
    (began,), (ended,) = ([line[1] for line in shown if line[0] == what] for what in ("enqueued", "finished"))
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()
