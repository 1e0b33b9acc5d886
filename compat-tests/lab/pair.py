"""A pair of machines: a storage node and a Xen node, with a network between them that is nobody else's."""

import base64
import os
import shutil
import subprocess
from pathlib import Path

import build
from machine import CommandFailed, Done, Hardware, LabError, Machine, wait_for

# Without these, dom0 faults at its first instructions or programs crash at random, for the emulation is not perfect.
XEN_CPU = "max,-smap,-smep,-pku,-pks,-la57,-svm,-xsave,-avx,-avx2,-avx512f"
DATA_SIZE = 24 << 30
GUESTS = ("new", "old")


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
    """A pair in a directory of its own. Use `create` for a new one and the constructor for one that is there."""

    def __init__(self, directory):
        self.directory = Path(directory).resolve()
        written = self.directory / "images"
        if not written.exists():
            raise LabError(f"there is no pair in {self.directory}")
        self.images = Path(written.read_text())
        self.storage, self.xen = (Machine(made, self.directory) for made in hardware(self.images))

    @classmethod
    def create(cls, directory):
        """A pair with fresh disks, not yet started."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # A pair stays with the images that it was made of, also when the recipe has changed since.
        written = directory / "images"
        if written.exists() and any(machine.runs() for machine in cls(directory).machines):
            raise LabError(f"the pair in {directory} runs already")
        written.write_text(str(build.images()))
        pair = cls(directory)
        for machine in pair.machines:
            overlay(pair.images / "root.img", "raw", machine.file("qcow2"))
        with (pair.directory / "data.raw").open("wb") as data:
            data.truncate(DATA_SIZE)
        return pair

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
        for name in GUESTS:
            wait_for(f"guest {name}", lambda name=name: self.guest(name).answers(), 240, 0.5)

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


def overlay(base, base_format, path):
    """A disk that starts as `base` and keeps what is written to itself."""
    path.unlink(missing_ok=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format, "-b", os.fspath(base), os.fspath(path)]
    subprocess.run(command, check=True, timeout=60)
