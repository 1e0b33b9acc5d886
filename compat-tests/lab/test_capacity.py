"""A thin pool promises more than it has. Nothing new is made of one that is nearly full, so those who have a volume keep on writing."""

import pytest
from botocore.exceptions import ClientError

from cloud import ZONE, CliError, Cloud
from machine import wait_for

MIB = 256


@pytest.fixture
def pool(storage):
    """A small thin pool of its own."""
    storage.run("lvcreate", "-y", "--type", "thin-pool", "-L", f"{MIB}M", "-Zy", "-n", "small", "vbs", timeout=120)
    yield "small"
    storage.run("lvremove", "-y", "vbs/small", timeout=120)


def test_a_nearly_full_pool_refuses_what_is_new_and_no_attached_volume_sees_an_error(lab, storage, pool):
    guest = lab.guest("new")
    # Enough for four volumes of 1 GiB.
    with Cloud(lab, "thin", "lio", pool=pool, overcommit=18.0) as cloud:
        counted, filled = cloud.create_volume(1), cloud.create_volume(1)
        snapshot = cloud.snapshot(filled)
        cloud.attach(counted, "new", "/dev/sdf")
        cloud.attach(filled, "new", "/dev/sdg")
        guest.count("xvdf")

        # What is promised has a limit, with the pool still empty. The gateway knows it once it has looked at the node again; what it took
        # before, the node refuses.
        fourth = cloud.create_volume(1)
        wait_for("the refusal of what would be promised", lambda: refused(cloud), 240, 0.5)
        with pytest.raises(CliError, match="InsufficientVolumeCapacity"):
            cloud.aws("create-volume", "--availability-zone", ZONE, "--size", 1)
        cloud.delete_volume(fourth)

        # And so has what is written: from 90 per cent on nothing is made, though it is not full.
        wait_for("some numbers", lambda: guest.counted("xvdf").last > 3, 300, 0.3)
        share = data_percent(storage, pool)
        mib = int((93 - share) / 100 * MIB)
        guest.run(f"dd if=/dev/zero of=/dev/xvdg bs=1M count={mib} conv=fsync 2>&1", timeout=300)
        share = data_percent(storage, pool)
        assert 90 <= share < 100, share

        wait_for("the refusal of what would be written", lambda: refused(cloud), 240, 0.5)
        with pytest.raises(CliError, match="InsufficientVolumeCapacity"):
            cloud.aws("create-volume", "--availability-zone", ZONE, "--snapshot-id", snapshot)

        now = guest.counted("xvdf")
        wait_for("the guest to go on", lambda: guest.counted("xvdf").last > now.last + 20, 240, 0.3)
        assert guest.counted("xvdf").failed == 0
        guest.stop_counting("xvdf")
        guest.run("dmesg | grep -i 'error.*xvd' && exit 1 || true")
        print(f"refused at {share} % full, with {data_percent(storage, pool)} % the guest still writes")

        cloud.detach(filled)
        cloud.delete_volume(filled)
        cloud.delete_snapshot(snapshot)

        # Room that was given back is seen.
        again = wait_for("room", lambda: accepted(cloud), 240, 1)
        cloud.wait_for(again, lambda: cloud.volume_state(again), "available")
        cloud.delete_volume(again)
        cloud.detach(counted)
        cloud.delete_volume(counted)


def accepted(cloud):
    """A new volume, or None when there is no room for it."""
    try:
        return cloud.ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InsufficientVolumeCapacity"
        return None


def refused(cloud):
    """Whether the gateway refuses a volume. One that it takes all the same must not be made."""
    volume = accepted(cloud)
    if volume is None:
        return True
    cloud.wait_for(volume, lambda: cloud.volume_state(volume), "error")
    cloud.delete_volume(volume)
    return False


def data_percent(storage, pool):
    return float(storage.run("lvs", "--noheadings", "-o", "data_percent", f"vbs/{pool}").out)
