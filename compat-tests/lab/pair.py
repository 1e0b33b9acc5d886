"""A pair of machines: a storage node and a Xen node, with a network between them that is nobody else's."""

import base64
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import build
from machine import CommandFailed, Done, Hardware, LabError, Machine, wait_for

# Without these, dom0 faults at its first instructions or programs crash at random, for the emulation is not perfect.
XEN_CPU = "max,-smap,-smep,-pku,-pks,-la57,-svm,-xsave,-avx,-avx2,-avx512f"
DATA_SIZE = 24 << 30
GUESTS = ("new", "old")
# Seconds that a guest may take for one script, on processors that others use as well. A hanging disk takes as long to be found.
GUEST_PATIENCE = 400
# How many numbers of a count a disk has room for, 1 MiB apart.
PLACES = 64


def hardware(images):
    """What the two machines are made of."""
    common = "mitigations=off nokaslr panic=-1 net.ifnames=0"
    kernel, initrd = images / "kernel", images / "initrd"
    storage = Hardware(
        name="storage",
        memory=384,
        cache=128,
        cpu="max",
        link="xen",
        boot=("-kernel", kernel, "-initrd", initrd, "-append", f"console=ttyS0 quiet {common} lab.role=storage"),
        disks=(("storage.qcow2", "qcow2", "writeback"), ("data.raw", "raw", "unsafe")),
    )
    dom0 = "dom0_mem=640M,max:640M dom0_max_vcpus=1 console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=none"
    xen = Hardware(
        name="xen",
        memory=1024,
        cache=256,
        cpu=XEN_CPU,
        link="storage",
        boot=(
            *("-kernel", images / "xen", "-append", f"{dom0} smap=0 smep=0"),
            *("-initrd", f"{kernel} console=hvc0 quiet {common} lab.role=xen,{initrd}"),
        ),
        disks=(("xen.qcow2", "qcow2", "writeback"),),
    )
    return storage, xen


class Pair:
    """A pair in a directory of its own. `create` makes a new one, the constructor finds one that is there."""

    def __init__(self, directory):
        self.directory = Path(directory).resolve()
        written = self.directory / "images"
        if not written.exists():
            raise LabError(f"there is no pair in {self.directory}")
        self.images = Path(written.read_text())
        self.storage, self.xen = (Machine(made, self.directory) for made in hardware(self.images))

    @classmethod
    def create(cls, directory, images=None):
        """A pair with fresh disks, not yet started."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        written = directory / "images"
        if written.exists() and any(machine.runs() for machine in cls(directory).machines):
            raise LabError(f"the pair in {directory} runs already")
        # A pair stays with the images that it was made of, also when the recipe has changed since.
        written.write_text(str(images or build.images()))
        pair = cls(directory)
        for machine in pair.machines:
            overlay(pair.images / "root.img", "raw", machine.file("qcow2"))
        with pair.data.open("wb") as data:
            data.truncate(DATA_SIZE)
        return pair

    @classmethod
    def resumed(cls, directory):
        """A pair that goes on in seconds from where another was when it had come up."""
        at = saved()
        pair = cls.create(directory)
        for machine in pair.machines:
            overlay(at / machine.file("qcow2").name, "qcow2", machine.file("qcow2"))
        subprocess.run(["cp", "--sparse=always", at / pair.data.name, pair.data], check=True, timeout=60)
        for machine in pair.machines:
            machine.power_on(incoming=at / f"{machine.name}.state")
        pair.wait_until_up()
        for machine in pair.machines:
            machine.set_clock()
        return pair

    @property
    def data(self):
        return self.directory / "data.raw"

    @property
    def machines(self):
        return self.storage, self.xen

    def power_on(self):
        """Starts both and waits until both are up, with their guests."""
        for machine in self.machines:
            machine.power_on()
        self.wait_until_up()

    def wait_until_up(self):
        for machine in self.machines:
            machine.wait_until_up()
        self.wait_for_guests()

    def wait_for_guests(self):
        for name in GUESTS:
            wait_for(f"guest {name}", self.guest(name).answers, 240, 0.5)

    def bring_iet(self):
        """Starts the IET target on the storage node, when `VBS_LAB_IET` says where to find it; else says False."""
        given = os.environ.get("VBS_LAB_IET")
        if not given:
            return False
        for name in ("iscsi_trgt.ko", "ietd", "ietadm"):
            self.storage.push(Path(given) / name, f"/lab/iet/{name}")
        self.storage.sh("chmod 755 /lab/iet/ietd /lab/iet/ietadm; ln -sf /lab/iet/ietadm /usr/local/sbin/ietadm")
        self.storage.run("/lab/start-iet")
        return True

    def power_cut(self):
        for machine in self.machines:
            machine.power_cut()

    def remove(self):
        """Stops both and deletes all they had."""
        self.power_cut()
        shutil.rmtree(self.directory, ignore_errors=True)

    def guest(self, name):
        return Guest(self.xen, name)


class Guest:
    """A PV guest of the Xen node: `new` has kernel 6.1, `old` 5.10."""

    def __init__(self, xen, name):
        self.xen = xen
        self.name = name

    def run(self, script, timeout=60, check=True):
        """Runs a script of busybox's shell in the guest. Its output and its complaints come as one."""
        request = {"verb": "guest", "guest": self.name, "timeout": timeout}
        head, data = self.xen.ask(request, base64.b64encode(script.encode()), timeout + 30)
        text = base64.b64decode(data).decode(errors="replace")
        done = Done(head["status"], text, "", head["late"], 0.0)
        if check and (done.late or done.status != 0):
            raise CommandFailed([f"guest {self.name}", script], done)
        return done

    def answers(self):
        try:
            return self.run("true", timeout=5).status == 0
        except (OSError, LabError):
            return False

    def disks(self):
        """The guest's disks and their sizes in bytes."""
        lines = self.run("disk list").out.splitlines()
        return {name: int(size) for name, size in map(str.split, lines)}

    def hold(self, device):
        """Has a process hold the disk open."""
        self.run(f"disk hold {device}")

    def release(self, device):
        self.run(f"disk release {device}")

    def mount(self, device):
        """Mounts the disk, with a new file system when it has none."""
        self.run(f"disk mount {device}")

    def unmount(self, device):
        self.run(f"disk umount {device}")

    def count(self, device):
        """Begins to write numbers onto the disk, and goes on until `stop_counting`. Holds it open."""
        self.run(f"disk count {device}")

    def counted(self, device):
        """How far the count has come."""
        last, failed = self.run(f"disk counted {device}").out.split()
        return Counted(int(last), int(failed))

    def stop_counting(self, device):
        self.run(f"disk stop {device}")

    def fill(self, device, seed, mib):
        """Writes data that `seed` determines from the start of the disk, and returns its checksum."""
        return self.run(f"disk fill {device} {seed} {mib}", timeout=GUEST_PATIENCE).out.strip()

    def checksum(self, device, mib):
        """The checksum of the disk's first `mib` MiB."""
        return self.run(f"disk sum {device} {mib}", timeout=GUEST_PATIENCE).out.strip()


@dataclass(frozen=True)
class Counted:
    """`last` was answered as being on the disk for good; `failed` writes were answered with an error."""

    last: int
    failed: int


def numbers(machine, device, first=0):
    """What a count has left on a device of a machine: the number in each of its places, 0 where there is none yet."""
    script = f"""
import mmap, os
disk = os.open({device!r}, os.O_RDONLY | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
for place in range({first}, {PLACES}):
    os.preadv(disk, [block], place << 20)
    print(int(block[:15].strip(bytes(1)) or 0))
"""
    return [int(line) for line in machine.run("python3", "-c", script).out.split()]


def mark(machine, device):
    """Leaves something to be found on a device of a machine, at the start of each 4 MiB, which are LVM's extents."""
    script = f"""
import mmap, os
disk = os.open({device!r}, os.O_WRONLY | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
block[:] = b"another tenant's".ljust(4096, b"!")
for at in range(0, os.lseek(disk, 0, os.SEEK_END), 4 << 20):
    os.pwritev(disk, [block], at)
os.fsync(disk)
"""
    machine.run("python3", "-c", script, timeout=240)


def marks(machine, device):
    """How many of the places where `mark` leaves something have anything in them."""
    script = f"""
import mmap, os
disk = os.open({device!r}, os.O_RDONLY | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
found = 0
for at in range(0, os.lseek(disk, 0, os.SEEK_END), 4 << 20):
    os.preadv(disk, [block], at)
    found += block[:] != bytes(4096)
print(found)
"""
    return int(machine.run("python3", "-c", script, timeout=240).out)


def one_instant(found):
    """Whether numbers are as the count left them at one instant: all that it wrote up to the highest, and no other."""
    last = max(found)
    return sorted(number for number in found if number) == list(range(max(1, last - PLACES + 1), last + 1))


def saved():
    """The directory with a pair that has come up and was stopped there; makes it when it is not there."""
    images = build.images()
    # What the machines are made of must be as it was.
    recipe = [word for made in hardware(images) for word in map(str, Machine(made, "/").command())]

    def make(work, out):
        pair = Pair.create(work / "pair", images)
        try:
            pair.power_on()
            for machine in pair.machines:
                machine.run("sync")
                machine.save(pair.directory / f"{machine.name}.state")
        finally:
            pair.power_cut()
        for name in ("storage.qcow2", "storage.state", "xen.qcow2", "xen.state", "data.raw"):
            (pair.directory / name).rename(out / name)

    return build.cached("saved", recipe, make)


def overlay(base, base_format, path):
    """A disk that starts as `base` and keeps what is written to itself."""
    path.unlink(missing_ok=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format, "-b", os.fspath(base), os.fspath(path)]
    subprocess.run(command, check=True, timeout=60)
