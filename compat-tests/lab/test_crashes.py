"""Delegates that are killed, a target that is started anew, nodes that lose their power or sight of each other: afterwards what
vbs says is so.

An attached volume is attached, with its bytes; work that was half done is done or undone; what is deleted is gone.
"""

import contextlib

import pytest

from cloud import PATIENCE, ZONE, Cloud, on_xen
from machine import wait_for
from pair import numbers, one_instant

# Takes the place of a program that the delegate runs. When it is called with such words, once, it kills its caller, and then
# does what it was called for: what a delegate has begun goes on without it.
IN_PLACE = """#!/bin/sh
case " $* " in *" {word} "*) rm /usr/local/sbin/{program}; kill -9 $PPID ;; esac
exec {real} "$@"
"""
# Kills the delegate with these settings as soon as something with a name of this pattern is there, or is there no more.
KILLER = """
import glob, os, signal, sys, time
settings, kind, pattern = sys.argv[1:]
end = time.monotonic() + 300
while bool(glob.glob(pattern)) != (kind == "exists"):
    assert time.monotonic() < end
    time.sleep(0.005)
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{process}/cmdline") as line:
            argv = line.read().split("\\0")
    except OSError:
        continue
    if argv[0] == "vbs" and settings in argv:
        os.kill(int(process), signal.SIGKILL)
"""


def arm(delegate, kind, *words):
    """Makes a moment deadly for a delegate: that it runs a program with this argument, or what `KILLER` waits for."""
    machine = delegate.machine
    if kind == "runs":
        program, word = words
        real = machine.run("which", program).out.strip()
        script = IN_PLACE.format(program=program, word=word, real=real)
        machine.sh(f"cat > /usr/local/sbin/{program}.new; chmod 755 /usr/local/sbin/{program}.new; "
                   f"mv /usr/local/sbin/{program}.new /usr/local/sbin/{program}", stdin=script.encode())
    else:
        machine.start("python3", "-c", KILLER, f"{delegate.data_dir}.toml", kind, *words, log="/tmp/killer.log")


@contextlib.contextmanager
def killed(*moments):
    """Kills delegates at moments of what is asked for meanwhile, one after another, and starts each again."""
    for moment in moments:
        arm(*moment)
    yield
    for delegate, *moment in moments:
        wait_for(f"{delegate.role} to be killed when {moment}", lambda d=delegate: not d.runs(), PATIENCE, 0.2)
        delegate.machine.run("rm", "-f", delegate.log)
        delegate.start()


# Slow enough to be met at work.
CHAINS = {"thin-lio": {}, "thick-tgt": {"background_mib_s": 100}}


@pytest.fixture(scope="module")
def cloud(lab, request):
    with Cloud(lab, *request.param.split("-"), **CHAINS[request.param]) as made:
        yield made


thin_lio, thick_tgt = (pytest.mark.parametrize("cloud", [chain], indirect=True) for chain in CHAINS)


def told(cloud, volume):
    """What the AWS CLI is told of a volume: its state, and the state and the device of each attachment."""
    (shown,) = cloud.aws("describe-volumes", "--volume-ids", volume)["Volumes"]
    return shown["State"], *((a["State"], a["Device"]) for a in shown["Attachments"])


ATTACHED = ("in-use", ("attached", "/dev/sdf"))


def set_patience(xen, seconds):
    """How long the I/O of disks that are logged in to waits for a storage node that is away."""
    xen.sh(f"for session in /sys/class/iscsi_session/*/recovery_tmo; do echo {seconds} > $session; done")


def count_on(guest, device="xvdf", more=5, seconds=240):
    """Waits until more numbers have been answered as written than when it was called, and returns how far it is."""
    begun = guest.counted(device).last
    wait_for("the count to go on", lambda: guest.counted(device).last >= begun + more, seconds, 0.3)
    return guest.counted(device)


def exists(storage, pattern):
    return storage.run("sh", "-c", f"ls -d {pattern}", check=False).status == 0


@thick_tgt
def test_thick_volumes_that_tgt_serves_survive_delegates_tgtd_and_node_in_the_middle_of_what_they_do(
    lab, cloud, storage, xen
):
    guest, delegate = lab.guest("new"), cloud.storage

    # Half zeroed; then half exported.
    with killed((delegate, "exists", "/dev/vbs/vol-*")):
        volume = cloud.aws("create-volume", "--availability-zone", ZONE, "--size", 1)["VolumeId"]
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
    with killed((delegate, "runs", "tgtadm", "logicalunit")):
        cloud.ask_to_attach(volume, "new")
    cloud.wait_for(volume, lambda: cloud.attachment_state(volume), "attached")
    assert told(cloud, volume) == ATTACHED
    wait_for("the guest's disk", lambda: guest.disks() == {"xvdf": 1 << 30}, 60, 0.2)
    set_patience(xen, 600)
    guest.count("xvdf")

    # Before it is cut or just then; then the power goes while it is copied.
    before = count_on(guest).last
    with killed((delegate, "runs", "lvcreate", "-s")):
        snapshot = cloud.aws("create-snapshot", "--volume-id", volume)["SnapshotId"]
        wait_for("the kill", lambda: not delegate.runs(), PATIENCE, 0.1)
        (shown,) = cloud.aws("describe-snapshots", "--snapshot-ids", snapshot)["Snapshots"]
        assert shown["State"] == "pending"
    wait_for("the copy", lambda: exists(storage, f"/dev/vbs/{snapshot}"), PATIENCE, 0.1)
    after = guest.counted("xvdf").last
    cloud.power_cycle(storage)
    assert cloud.snapshot_state(snapshot) == "pending"
    assert count_on(guest).failed == 0

    # More than once: what the initiator finds, no target or half a one, depends on when it looks.
    for _ in range(2):
        storage.sh("kill -9 $(pidof tgtd)")
        wait_for("tgtd to end", lambda: storage.run("pidof", "tgtd", check=False).status != 0, 30)
        storage.run("/lab/start-tgtd")
        assert count_on(guest).failed == 0
    assert told(cloud, volume) == ATTACHED
    cloud.wait_for(snapshot, lambda: cloud.snapshot_state(snapshot), "completed")
    cloud.assert_nodes_match()
    guest.stop_counting("xvdf")
    last = guest.counted("xvdf").last
    with killed((delegate, "runs", "tgtadm", "delete")):
        cloud.aws("detach-volume", "--volume-id", volume)
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
    on_disk = numbers(storage, f"/dev/vbs/{volume}")
    assert max(on_disk) == last
    assert one_instant(on_disk)
    with killed((delegate, "runs", "lvremove", "-y")):
        cloud.aws("delete-volume", "--volume-id", volume)
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "gone")

    # Half filled.
    with killed((delegate, "exists", "/dev/vbs/vol-*")):
        second = cloud.aws("create-volume", "--availability-zone", ZONE, "--snapshot-id", snapshot)["VolumeId"]
    cloud.wait_for(second, lambda: cloud.volume_state(second), "available")
    on_disk = numbers(storage, f"/dev/vbs/{second}")
    assert one_instant(on_disk)
    assert before <= max(on_disk) <= after + 1
    cloud.delete_volume(second)
    with killed((delegate, "runs", "lvremove", "-y")):
        cloud.aws("delete-snapshot", "--snapshot-id", snapshot)
    cloud.wait_for(snapshot, lambda: cloud.snapshot_state(snapshot), "gone")
    cloud.assert_nothing_left()


@thick_tgt
def test_a_snapshot_whose_copy_on_write_overflows_is_an_error_and_never_complete(cloud, storage):
    volume = cloud.create_volume(1)
    with killed((cloud.storage, "exists", "/dev/vbs/snap-*-cow")):
        snapshot = cloud.aws("create-snapshot", "--volume-id", volume)["SnapshotId"]
        wait_for("the kill", lambda: not cloud.storage.runs(), PATIENCE, 0.1)
        # As large as its volume it cannot overflow; so it is made smaller by hand, and more is written than it holds then.
        storage.sh(f"""
            lvreduce -y -f -L 8M vbs/{snapshot}-cow
            dd if=/dev/zero of=/dev/vbs/{volume} bs=1M seek=1000 count=16 oflag=direct status=none
        """, timeout=120)
        assert storage.sh(f"lvs --noheadings -o lv_attr vbs/{snapshot}-cow").strip()[4] == "I"
    wait_for("the snapshot to end", lambda: cloud.snapshot_state(snapshot) != "pending", PATIENCE, 0.2)
    assert cloud.snapshot_state(snapshot) == "error"
    cloud.delete_snapshot(snapshot)
    cloud.delete_volume(volume)
    cloud.assert_nothing_left()


@thin_lio
def test_delegates_killed_in_the_middle_of_each_step_of_the_walk_lose_and_leave_nothing(lab, cloud):
    guest, storage, xen = lab.guest("new"), cloud.storage, cloud.xen
    targets = "/sys/kernel/config/target"

    with killed((storage, "runs", "lvcreate", "-y")):
        volume = cloud.aws("create-volume", "--availability-zone", ZONE, "--size", 1)["VolumeId"]
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")

    with killed(
        (storage, "exists", f"{targets}/core/*/*{volume}*"),
        (xen, "runs", "iscsiadm", "--login"),
        (xen, "runs", "xl", "block-attach"),
    ):
        cloud.ask_to_attach(volume, "new")
    cloud.wait_for(volume, lambda: cloud.attachment_state(volume), "attached")
    assert told(cloud, volume) == ATTACHED
    wait_for("the guest's disk", lambda: guest.disks() == {"xvdf": 1 << 30}, 60, 0.2)
    written = guest.fill("xvdf", seed=3, mib=8)

    with killed((storage, "runs", "lvcreate", "-s")):
        snapshot = cloud.aws("create-snapshot", "--volume-id", volume)["SnapshotId"]
    cloud.wait_for(snapshot, lambda: cloud.snapshot_state(snapshot), "completed")
    assert told(cloud, volume) == ATTACHED
    assert guest.checksum("xvdf", mib=8) == written

    with killed(
        (xen, "runs", "xl", "block-detach"),
        (xen, "runs", "blockdev", "--flushbufs"),
        (xen, "runs", "iscsiadm", "--logout"),
        (storage, "gone", f"{targets}/iscsi/*{volume[4:]}*/tpgt_1/acls/*"),
    ):
        cloud.aws("detach-volume", "--volume-id", volume)
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
    assert told(cloud, volume) == ("available",)
    assert guest.disks() == {}

    with killed((storage, "runs", "lvremove", "-y")):
        cloud.aws("delete-volume", "--volume-id", volume)
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "gone")

    with killed((storage, "runs", "lvcreate", "-y")):
        second = cloud.aws("create-volume", "--availability-zone", ZONE, "--snapshot-id", snapshot)["VolumeId"]
    cloud.wait_for(second, lambda: cloud.volume_state(second), "available")
    cloud.attach(second, "new")
    assert guest.checksum("xvdf", mib=8) == written
    cloud.detach(second)

    with killed((storage, "runs", "lvremove", "-y")):
        cloud.aws("delete-snapshot", "--snapshot-id", snapshot)
    cloud.wait_for(snapshot, lambda: cloud.snapshot_state(snapshot), "gone")
    cloud.delete_volume(second)
    cloud.assert_nothing_left()


@thin_lio
def test_a_guests_writes_go_on_when_the_storage_node_is_back_from_a_power_cut(lab, cloud, storage, xen):
    guest = lab.guest("new")
    volume = cloud.create_volume(1)
    cloud.attach(volume, "new")
    # Long enough for an emulated machine to come up.
    set_patience(xen, 600)
    guest.count("xvdf")
    known = count_on(guest)

    cloud.power_cycle(storage)
    after = count_on(guest)
    assert after.failed == 0
    assert told(cloud, volume) == ATTACHED
    cloud.assert_nodes_match()
    guest.stop_counting("xvdf")
    last = guest.counted("xvdf").last
    cloud.detach(volume)
    on_disk = numbers(storage, f"/dev/vbs/{volume}")
    assert known.last < last == max(on_disk)
    assert one_instant(on_disk), str(on_disk)
    cloud.delete_volume(volume)
    cloud.assert_nothing_left()


@thin_lio
def test_guests_get_their_disks_after_a_power_cut_of_the_xen_node_also_those_that_were_on_their_way(lab, cloud, xen):
    guest, other = lab.guest("new"), lab.guest("old")
    volume, second = cloud.create_volume(1), cloud.create_volume(1)
    cloud.attach(volume, "new")
    written = guest.fill("xvdf", seed=5, mib=8)
    cloud.ask_to_attach(second, "old")
    sessions = "ls /sys/class/iscsi_session"
    wait_for("the second log-in", lambda: len(xen.sh(sessions).split()) == 2, PATIENCE)

    cloud.power_cycle(xen)
    wait_for("the disk to be given back", lambda: guest.disks() == {"xvdf": 1 << 30}, 240, 0.5)
    assert guest.checksum("xvdf", mib=8) == written
    cloud.wait_for(second, lambda: cloud.attachment_state(second), "attached")
    wait_for("the other's disk", lambda: other.disks() == {"xvdf": 1 << 30}, 60, 0.5)
    assert told(cloud, volume) == told(cloud, second) == ATTACHED
    cloud.assert_nodes_match()
    for made in (volume, second):
        cloud.detach(made)
        cloud.delete_volume(made)
    cloud.assert_nothing_left()


@thin_lio
def test_a_detach_while_the_storage_node_is_away_waits_for_what_the_guest_has_under_way(lab, cloud, storage, xen):
    """The new guest gives the disk back at once, though a write of it still waits in the node's kernel."""
    new, old = lab.guest("new"), lab.guest("old")
    volume = cloud.create_volume(1)
    cloud.attach(volume, "new")
    set_patience(xen, 600)
    new.count("xvdf")
    count_on(new)

    link = storage.sh("ip -o address show to 192.168.77.1 | cut -d' ' -f2").strip()
    storage.run("ip", "link", "set", link, "down")
    wait_for("a write to hang", lambda: xen.sh("cat /sys/block/sd*/inflight").split() != ["0", "0"], 120)
    cloud.aws("detach-volume", "--volume-id", volume)

    def asked():
        return int(xen.run("grep", "-c", 'path="/v1/ensure_d', cloud.xen.log, check=False).out)

    before = asked()
    wait_for("the detach to be tried again and again", lambda: asked() >= before + 3, 240, 0.5)
    assert cloud.volume_state(volume) == "in-use"
    storage.run("ip", "link", "set", link, "up")
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
    on_disk = numbers(storage, f"/dev/vbs/{volume}")
    last = new.counted("xvdf").last
    assert last <= max(on_disk) <= last + 1

    cloud.attach(volume, "old")
    old.checksum("xvdf", mib=16)
    assert numbers(storage, f"/dev/vbs/{volume}") == on_disk
    new.stop_counting("xvdf")
    cloud.detach(volume)
    cloud.delete_volume(volume)
    cloud.assert_nothing_left()


@thin_lio
def test_a_write_under_way_when_a_detach_is_forced_from_a_node_that_is_away_never_arrives_later(lab, cloud, storage, xen):
    """Last in this file: the guest keeps a dead disk. The two nodes lose sight of each other, so that a write waits in the
    one's kernel for the way to the other."""
    new, old = lab.guest("new"), lab.guest("old")
    volume = cloud.create_volume(1)
    cloud.attach(volume, "old", "/dev/sdh")
    set_patience(xen, 10)
    old.count("xvdh")
    count_on(old, "xvdh")

    link = storage.sh("ip -o address show to 192.168.77.1 | cut -d' ' -f2").strip()
    storage.run("ip", "link", "set", link, "down")
    wait_for("a write to hang", lambda: xen.sh("cat /sys/block/sd*/inflight").split() != ["0", "0"], 120)
    cloud.aws("detach-volume", "--volume-id", volume, "--force")
    wait_for("the disk to be taken", lambda: not on_xen(xen)["vbds"], 240, 0.5)
    storage.run("ip", "link", "set", link, "up")
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
    on_disk = numbers(storage, f"/dev/vbs/{volume}")
    known = old.counted("xvdh")
    assert known.last <= max(on_disk) <= known.last + 1

    snapshot = cloud.snapshot(volume)
    cloud.attach(volume, "new")
    first = new.checksum("xvdf", mib=16)
    # The guest still waits for its dead disk, or is answered with errors; none of what it has to write is on the volume or in
    # the snapshot.
    second = cloud.create_volume(snapshot=snapshot)
    assert new.checksum("xvdf", mib=16) == first
    assert numbers(storage, f"/dev/vbs/{volume}") == on_disk
    assert numbers(storage, f"/dev/vbs/{second}") == on_disk
    assert old.counted("xvdh").last == known.last
    cloud.detach(volume)
    for made in (volume, second):
        cloud.delete_volume(made)
    cloud.delete_snapshot(snapshot)
    cloud.assert_nothing_left("disks of old")
