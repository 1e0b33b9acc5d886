"""A guest gets the operations a second that its volume has, and no more: the kernel of the Xen node holds it to them.

Nothing here is of an absolute speed but the limit itself, by the guest's own clock: a slow machine stays below it.
"""

from cloud import ZONE, Cloud
from machine import wait_for

FEW, MANY = 100, 2000
# So much more than the few, by a guest that may do many.
CLEARLY = 1.3
# Writers at once, so that what one of them waits for is not what is measured; each write goes past the guest's cache.
BEGIN = """
for n in 0 1 2 3 4 5 6 7; do
    setsid dd if=/dev/zero of=/dev/xvdf bs=4k count=1000000 seek=$((n * 100000)) conv=notrunc oflag=direct 2>/dev/null &
    echo $! >> /tmp/writers
done
"""
END = "kill $(cat /tmp/writers); while pidof dd > /dev/null; do usleep 50000; done; rm /tmp/writers"
# Writes that were done in these seconds, and the seconds.
MEASURE = """
at() { read -r now rest < /proc/uptime; set -- $(cat /sys/block/xvdf/stat); echo "$5 $now"; }
sleep 2; at; sleep 8; at
"""


def rate(guest):
    """Writes a second, some seconds long."""
    began, ended = ([float(word) for word in line.split()] for line in guest.run(MEASURE, timeout=240).out.splitlines())
    return (ended[0] - began[0]) / (ended[1] - began[1])


def test_a_guest_gets_the_iops_of_its_volume_and_others_when_they_are_modified(lab, xen):
    guest = lab.guest("new")
    with Cloud(lab, "thin", "lio", sweep_s=20, overcommit=100.0) as cloud:
        options = ["--volume-type", "io1", "--iops", FEW, "--size", MANY // 50]
        volume = cloud.aws("create-volume", "--availability-zone", ZONE, *options)["VolumeId"]
        cloud.wait_for(volume, lambda: cloud.volume_state(volume), "available")
        cloud.attach(volume, "new")
        guest.run(BEGIN)
        few = rate(guest)
        assert few <= FEW * 1.1

        # Nobody needs the delegate for it.
        cloud.xen.restart()
        again = rate(guest)
        assert again <= FEW * 1.1

        cloud.aws("modify-volume", "--volume-id", volume, "--iops", MANY)
        wait_for("the new limit", lambda: limits(xen) == [f"riops={MANY} wiops={MANY}"], 240, 0.3)
        many = rate(guest)
        print(f"of {FEW} a second: {few:.0f}, with another delegate {again:.0f}; of {MANY}: {many:.0f}")
        assert FEW * CLEARLY < many <= MANY * 1.1
        guest.run(END, timeout=240)
        cloud.detach(volume)
        cloud.delete_volume(volume)
        cloud.assert_nothing_left()


def limits(xen):
    """The limits that the kernel has, each disk's operations."""
    lines = xen.sh("cat /sys/fs/cgroup/vbs/iqn.*/io.max").splitlines()
    return [" ".join(line.split()[3:]) for line in lines]
