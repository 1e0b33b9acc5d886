"""A volume that both Xen guests have at once: one node, two sessions with two targets, one backstore.

Of LIO, in whose kernel backstores are shared; tgt has a LUN of its own for each, which two initiators try without the lab.
"""

from cloud import ZONE, Cloud
from machine import wait_for


def test_both_guests_of_a_node_share_a_volume_and_one_goes_on_when_the_other_is_detached(lab, xen):
    new, old = lab.guest("new"), lab.guest("old")
    with Cloud(lab, "thin", "lio") as cloud:

        def states():
            found = (cloud.volume(volume) or {"Attachments": []})["Attachments"]
            return {item["InstanceId"]: item["State"] for item in found}

        def detach(guest):
            instance = cloud.instances[guest]
            cloud.aws("detach-volume", "--volume-id", volume, "--instance-id", instance)
            wait_for(f"{guest} to be detached", lambda: instance not in states(), 400, 0.1)

        def sessions():
            return len(xen.run("iscsiadm", "-m", "session", check=False).out.splitlines())

        options = ["--volume-type", "io2", "--iops", "100", "--multi-attach-enabled"]
        volume = cloud.aws("create-volume", "--availability-zone", ZONE, "--size", 4, *options)["VolumeId"]
        cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
        cloud.ask_to_attach(volume, "new", "/dev/sdf")
        cloud.ask_to_attach(volume, "old", "/dev/sdg")
        wait_for("both to be attached", lambda: list(states().values()) == ["attached"] * 2, 400, 0.1)
        assert sessions() == 2
        wait_for("their disks", lambda: (new.disks(), old.disks()) == ({"xvdf": 4 << 30}, {"xvdg": 4 << 30}), 120)

        # What one has written the other reads, past its own cache.
        written = new.fill("xvdf", seed=21, mib=4)
        old.run("echo 3 > /proc/sys/vm/drop_caches")
        assert old.checksum("xvdg", mib=4) == written

        # One is detached, and the other's writes go on without an error.
        new.count("xvdf")
        wait_for("some numbers", lambda: new.counted("xvdf").last > 3, 120)
        detach("old")
        assert sessions() == 1 and old.disks() == {}
        before = new.counted("xvdf").last
        wait_for("more numbers", lambda: new.counted("xvdf").last > before + 3, 120)
        assert new.counted("xvdf").failed == 0
        assert cloud.volume_state(volume) == "in-use"

        # Attached once more, it reads and writes as before.
        new.stop_counting("xvdf")
        cloud.ask_to_attach(volume, "old", "/dev/sdg")
        wait_for("both to be attached", lambda: list(states().values()) == ["attached"] * 2, 400, 0.1)
        wait_for("its disk", lambda: old.disks() == {"xvdg": 4 << 30}, 120)
        written = old.fill("xvdg", seed=22, mib=4)
        new.run("echo 3 > /proc/sys/vm/drop_caches")
        assert new.checksum("xvdf", mib=4) == written

        for guest in ("new", "old"):
            detach(guest)
        cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
        cloud.delete_volume(volume)
        cloud.assert_nothing_left()
