"""A vbs over a pair of machines: the delegates inside, beside what they drive; Postgres, a gateway and its clients outside.

One storage node with one pair of drivers at a time, as an operator has it, with rows and delegates of its own. What it makes on
the nodes is asked of the nodes themselves.
"""

import functools
import json
import os
import secrets
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config

import bare
from machine import LabError, wait_for
from running import PROGRAM, Process, aws_environment, free_port, toml

ZONE = "us-east-1a"
# Seconds for one thing to be done. Two emulated machines on processors that others use as well are slow.
PATIENCE = 400
# Where the delegates listen.
PORT = 8080
# Seconds between two rounds of the sweeper, as they are when nobody says anything, and where nothing shall be mended by it: what is
# asked for must do all of it.
MENDS, NEVER = 5, 3600
# The names of the storage node's volumes in the kernel are of this group, and the pool is its thin pool.
GROUP = "vbs"
# What the lab's own volume group has when there is nothing in it.
OURS = {"pool", "pool_tdata", "pool_tmeta", "lvol0_pmspare"}
# Thick ones copy as fast as they can, where nobody wants to see them at it.
LAYOUTS = {"thin": {"pool": "pool"}, "thick": {"background_mib_s": 0}}
TARGETS = {
    "lio": {"lio": {"portal": bare.LIO}},
    "tgt": {"tgt": {"socket_dir": "/run/vbs/tgt", "control_port": 0, "portal": bare.TGT}},
    "iet": {"iet": {"portal": "192.168.77.4:3260"}},
}
# What is walked from end to end: a layout of volumes and a target.
CHAINS = ["thin-lio", "thin-tgt", "thick-tgt"]
if os.environ.get("VBS_LAB_IET"):
    CHAINS.append("thick-iet")


@dataclass(frozen=True)
class Account:
    """Where to send requests and how to sign them."""

    endpoint: str
    key: str
    secret: str


class CliError(Exception):
    """The AWS CLI failed, with these words."""


class Delegate:
    """`vbs volume-delegate` or `vbs vmm-delegate` in a machine."""

    def __init__(self, machine, role, node, drivers):
        self.machine = machine
        self.role = role
        self.node = node
        self.key = secrets.token_hex(16)
        self.data_dir = f"/var/lib/vbs-{uuid.uuid4().hex[:8]}"
        self.log = f"{self.data_dir}.log"
        self.drivers = drivers
        self.pid = None

    @property
    def url(self):
        """Where the gateway finds it. A machine that was switched on again has other ports."""
        return f"http://127.0.0.1:{self.machine.port(PORT)}"

    def install(self, program):
        self.machine.push_once(program, "/usr/local/bin/vbs")
        settings = {
            "node": self.node,
            "key": {"file": f"{self.data_dir}.key"},
            "server": {"listen": f"0.0.0.0:{PORT}"},
            "delegate": {"local": {"data_dir": self.data_dir} | self.drivers},
        }
        self.machine.push(toml(settings).encode(), f"{self.data_dir}.toml")
        self.machine.push(self.key.encode(), f"{self.data_dir}.key")
        # So that none of it is lost when the power is cut before a test has begun.
        self.machine.run("sync")

    def start(self):
        # tgtd was started with its usual socket, and the driver wants to be told a directory.
        self.machine.sh("mkdir -p /run/vbs/tgt; ln -sfn /var/run/tgtd/socket.0 /run/vbs/tgt/ipc.0")
        words = ["vbs", self.role, "--config", f"{self.data_dir}.toml"]
        self.pid = self.machine.start(*words, log=self.log, env={"VBS_LOG": "info,vbs=debug"})
        wait_for(f"the delegate of {self.node}", self.serves, 60)

    def serves(self):
        if not self.runs():
            raise LabError(f"{self.role} has ended:\n{self.tail()}")
        return "serving" in self.machine.run("tail", "-n", "200", self.log).out

    def runs(self):
        return self.machine.run("kill", "-0", self.pid, check=False).status == 0

    def kill(self):
        """SIGKILL: nothing is finished, nothing is said."""
        self.machine.run("kill", "-9", self.pid)
        wait_for(f"{self.role} to end", lambda: not self.runs(), 30)

    def restart(self):
        """Kills it and starts it again at once."""
        self.kill()
        self.machine.run("rm", "-f", self.log)
        self.start()

    def tail(self, lines=60):
        return self.machine.run("tail", "-n", lines, self.log, check=False).out


class Cloud:
    """A vbs with a storage node and a Xen node, for as long as the `with` lasts. What a test leaves behind is its finding."""

    def __init__(self, lab, layout, target, sweep_s=MENDS, **settings):
        self.lab = lab
        self.sweep_s = sweep_s
        lvm = {"lvm": {"volume_group": GROUP, "layout": {layout: LAYOUTS[layout] | settings}}}
        drivers = {"volumes": lvm, "target": TARGETS[target]}
        self.storage = Delegate(lab.storage, "volume-delegate", "storage-1", drivers)
        self.xen = Delegate(lab.xen, "vmm-delegate", "xen-1", {"hypervisor": {"xen": {}}})
        self.directory = None
        self.gateway = None

    @property
    def delegates(self):
        return self.storage, self.xen

    # ---- start and end

    def __enter__(self):
        self._made = tempfile.TemporaryDirectory(prefix="vbs-cloud-")
        self.directory = Path(self._made.name)
        self._postgres = None
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _start(self):
        command = [PROGRAM, "postgres"]
        with (self.directory / "postgres.log").open("wb") as log:
            self._postgres = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        program = stripped()
        for delegate in self.delegates:
            delegate.install(program)
            delegate.start()
        self.database = self._postgres.stdout.readline().strip()
        if not self.database:
            raise LabError(f"there is no Postgres: {(self.directory / 'postgres.log').read_text()}")
        (self.directory / "master.key").write_text(secrets.token_hex(32))
        self.listen = f"127.0.0.1:{free_port()}"
        self.owner = "123456789012"
        self._configure()
        self.operator("migrate")
        self.operator("account", "create", "owner", "--id", self.owner)
        self.account = Account(f"http://{self.listen}", *self.operator("access-key", "create", "owner").split())
        self.environment = aws_environment(self.account, self.directory)
        self.ec2 = boto3.Session().client(
            "ec2",
            endpoint_url=self.account.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.account.key,
            aws_secret_access_key=self.account.secret,
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=20, read_timeout=60),
        )
        # It is the sweeper that learns of the guests.
        wanted, self.sweep_s = self.sweep_s, MENDS
        self.start_gateway()
        found = wait_for("the guests to be instances", lambda: self._running_guests() or None, 120, 0.3)
        self.instances = {machine: instance for instance, machine in found}
        if wanted != self.sweep_s:
            self.sweep_s = wanted
            self.restart_gateway()

    def _running_guests(self):
        # Columns: instance, state, zone, node, machine, owner.
        lines = [line.split("\t") for line in self.operator("instance", "list").splitlines()]
        found = [(line[0], line[4]) for line in lines if line[1] == "running"]
        return found if {machine for _, machine in found} >= {"new", "old"} else []

    def _configure(self):
        def node(delegate):
            key_file = self.directory / f"{delegate.node}.key"
            key_file.write_text(delegate.key)
            remote = {"url": delegate.url, "key": {"file": str(key_file)}}
            return {"name": delegate.node, "zone": ZONE, "delegate": {"remote": remote}}

        settings = {
            "region": "us-east-1",
            "zones": [ZONE],
            "master_key": {"file": str(self.directory / "master.key")},
            "database": {"url": self.database},
            "gateway": {"server": {"listen": self.listen}},
            # A machine that is switched on takes longer to come up here than one of metal.
            "workers": {"step_deadline_s": 600, "sweep_s": self.sweep_s},
            "volume_node": [node(self.storage)],
            "vmm_node": [node(self.xen) | {"default_owner": self.owner}],
        }
        self.config = self.directory / "vbs.toml"
        self.config.write_text(toml(settings))

    def start_gateway(self):
        """Starts the gateway, with the ports that the machines have now."""
        self._configure()
        log = self.directory / "gateway.log"
        log.unlink(missing_ok=True)
        self.gateway = Process("gateway", ["gateway", "--config", self.config], self.directory)
        wait_for("the gateway", lambda: self.gateway.says("serving"), 60)

    def restart_gateway(self):
        self.gateway.kill()
        self.start_gateway()

    def __exit__(self, kind, *_):
        if kind is not None:
            print(self.story())
        try:
            if self.gateway:
                self.gateway.kill()
            for delegate in self.delegates:
                if delegate.pid is not None and delegate.machine.runs() and delegate.runs():
                    delegate.kill()
        finally:
            if self._postgres:
                self._postgres.stdin.close()
                self._postgres.wait(60)
                self._postgres.stdout.close()
            self._made.cleanup()

    def story(self):
        """What vbs has said last, for a test that failed."""
        told = []
        if self.gateway:
            told.append(f"--- gateway\n{self.gateway.tail()}")
            told.append(f"--- workflows\n{self.operator('workflow', 'list')}")
        for delegate in self.delegates:
            try:
                told.append(f"--- {delegate.role}\n{delegate.tail()}")
            except (OSError, LabError) as error:
                told.append(f"--- {delegate.role} cannot be asked: {error}")
        return "\n".join(told)

    def power_cycle(self, machine):
        """Cuts a machine's power and switches it on again, and starts its delegate: what an init system does."""
        machine.power_cut()
        self.power_on(machine)

    def power_on(self, machine):
        machine.power_on()
        machine.wait_until_up()
        if machine is self.lab.xen:
            self.lab.wait_for_guests()
        (delegate,) = [delegate for delegate in self.delegates if delegate.machine is machine]
        delegate.start()
        # The way to it is another now; an operator's node keeps its address.
        self.restart_gateway()

    # ---- clients

    def operator(self, *arguments):
        """Runs an operator's command and returns what it prints."""
        done = self._operate(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def _operate(self, *arguments):
        command = [PROGRAM, *arguments, "--config", self.config]
        return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)

    def aws(self, command, *arguments):
        """Runs the AWS CLI: `aws("describe-volumes")` is what it prints, as JSON."""
        line = ["aws", "ec2", command, *map(str, arguments)]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            raise CliError(done.stderr.strip())
        return json.loads(done.stdout) if done.stdout.strip() else None

    def volume(self, volume):
        """What is said of a volume, None when it is gone."""
        found = self.ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [volume]}])["Volumes"]
        return found[0] if found else None

    def volume_state(self, volume):
        return (self.volume(volume) or {"State": "gone"})["State"]

    def attachment(self, volume):
        """What is said of a volume's attachment, None when it has none."""
        found = (self.volume(volume) or {"Attachments": []})["Attachments"]
        return found[0] if found else None

    def attachment_state(self, volume):
        return (self.attachment(volume) or {"State": "none"})["State"]

    def snapshot_state(self, snapshot):
        found = self.ec2.describe_snapshots(Filters=[{"Name": "snapshot-id", "Values": [snapshot]}])["Snapshots"]
        return found[0]["State"] if found else "gone"

    def modification_state(self, volume):
        (shown,) = self.ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"]
        return shown["ModificationState"]

    def wait_for(self, what, state, wanted, seconds=PATIENCE):
        """Waits until `state()` is `wanted`; one that has failed will not get there."""

        def there():
            now = state()
            assert now == wanted or now not in ("error", "failed"), f"{what} is {now}"
            return now == wanted

        # Not more often: asking takes the processors from what is asked for.
        wait_for(f"{what} to be {wanted}", there, seconds, 0.2)

    # ---- a tenant's work, each until it is done

    def create_volume(self, size=1, snapshot=None):
        of = ["--snapshot-id", snapshot] if snapshot else ["--size", size]
        made = self.aws("create-volume", "--availability-zone", ZONE, *of)["VolumeId"]
        self.wait_for(made, lambda: self.volume_state(made), "available")
        return made

    def attach(self, volume, guest, device="/dev/sdf"):
        self.ask_to_attach(volume, guest, device)
        self.wait_for(volume, lambda: self.attachment_state(volume), "attached")
        # A guest's kernel says that it is connected a moment before it makes the disk.
        wait_for(f"the disk in {guest}", lambda: f"xvd{device[-1]}" in self.lab.guest(guest).disks(), 60, 0.1)

    def ask_to_attach(self, volume, guest, device="/dev/sdf"):
        arguments = ["--volume-id", volume, "--instance-id", self.instances[guest], "--device", device]
        return self.aws("attach-volume", *arguments)

    def detach(self, volume, force=False):
        self.aws("detach-volume", "--volume-id", volume, *(["--force"] if force else []))
        self.wait_for(volume, lambda: self.volume_state(volume), "available")

    def grow(self, volume, size):
        self.aws("modify-volume", "--volume-id", volume, "--size", size)
        self.wait_for(f"the growth of {volume}", lambda: self.modification_state(volume), "completed")

    def snapshot(self, volume):
        made = self.aws("create-snapshot", "--volume-id", volume)["SnapshotId"]
        self.wait_for(made, lambda: self.snapshot_state(made), "completed")
        return made

    def delete_volume(self, volume):
        self.aws("delete-volume", "--volume-id", volume)
        self.wait_for(volume, lambda: self.volume_state(volume), "gone")

    def delete_snapshot(self, snapshot):
        self.aws("delete-snapshot", "--snapshot-id", snapshot)
        self.wait_for(snapshot, lambda: self.snapshot_state(snapshot), "gone")

    # ---- what is left, asked of the nodes themselves

    def leftovers(self):
        """All that should be gone when nothing is attached and all is deleted: what it is -> what there is of it."""
        found = on_storage(self.lab.storage) | on_xen(self.lab.xen)
        found |= {f"disks of {guest}": list(self.lab.guest(guest).disks()) for guest in ("new", "old")}
        found["volumes"] = [item["VolumeId"] for item in self.ec2.describe_volumes()["Volumes"]]
        own = self.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
        found["snapshots"] = [item["SnapshotId"] for item in own]
        return {what: these for what, these in found.items() if these}

    def assert_nothing_left(self, *but):
        """Waits a little: a snapshot is not shown any more before its bytes are gone, and what undoes the rest of a thing may
        come after the answer."""
        last = {}

        def none(*but):
            last["left"] = {what: these for what, these in self.leftovers().items() if what not in but}
            return not last["left"]

        try:
            # A group that held a disk to its limits goes when somebody looks at the node next.
            wait_for("nothing to be left", lambda: none("groups", *but), 120, 1)
            self.assert_nodes_match()
            wait_for("no groups to be left", lambda: none(*but), 30, 1)
        except LabError:
            raise AssertionError(f"left behind: {last['left']}") from None

    def assert_nodes_match(self):
        """What the nodes have is what the rows say, once what is under way is done."""
        last = {}

        def found():
            last["audit"] = self._operate("audit")
            return last["audit"].returncode == 0

        try:
            wait_for("an audit that finds nothing", found, 60, 1)
        except LabError:
            raise AssertionError(f"vbs audit: {last['audit'].stdout}{last['audit'].stderr}") from None


def on_storage(machine):
    """Volumes, device-mapper devices, targets, sessions, backstores and accounts of the storage node."""
    volumes = machine.sh(f"lvs -a --noheadings -o lv_name {GROUP}").split()
    lio = machine.sh("ls /sys/kernel/config/target/iscsi /sys/kernel/config/target/core/* 2>/dev/null || true")
    tgt = machine.sh("tgtadm --lld iscsi --mode target --op show; tgtadm --lld iscsi --mode account --op show")
    iet = machine.sh("cat /proc/net/iet/volume /proc/net/iet/session 2>/dev/null || true")
    allow = machine.sh("cat /etc/iet/initiators.allow 2>/dev/null || true")
    mapped = machine.sh("ls /dev/mapper").split()
    return {
        "logical volumes": [name for name in volumes if name.strip("[]") not in OURS],
        "mapped devices": [name for name in mapped if "--" in name],
        "LIO": [word for word in lio.split() if word.startswith("iqn.") or "vol-" in word],
        "tgt": [line.strip() for line in tgt.splitlines() if "iqn." in line or "vol-" in line or "vbs-" in line],
        "IET": [line.strip() for line in [*iet.splitlines(), *allow.splitlines()] if "iqn." in line],
    }


def on_xen(machine):
    """Sessions, records, device links, throttles and block backends of the Xen node."""
    sessions = machine.run("iscsiadm", "-m", "session", check=False)
    records = machine.sh("find /etc/iscsi/nodes /etc/iscsi/send_targets -type f 2>/dev/null || true")
    links = machine.sh("ls /dev/disk/by-path 2>/dev/null || true")
    disks = machine.sh("xenstore-list /local/domain/0/backend/vbd 2>/dev/null || true").split()
    backends = [machine.run("xenstore-list", f"/local/domain/0/backend/vbd/{domain}", check=False).out for domain in disks]
    return {
        "sessions": sessions.out.splitlines(),
        "records": records.split(),
        "links": [link for link in links.split() if "iscsi" in link],
        "groups": machine.sh("ls -d /sys/fs/cgroup/vbs/*/ 2>/dev/null || true").split(),
        "SCSI disks": machine.sh("ls /sys/block | grep ^sd || true").split(),
        "vbds": [line for backend in backends for line in backend.split()],
    }


# Gone when the run ends.
RUN = tempfile.TemporaryDirectory(prefix="vbs-lab-run-")


@functools.cache
def stripped():
    """The program without what only a debugger wants, which would take long to bring into the machines."""
    made = Path(RUN.name) / "vbs"
    subprocess.run(["strip", "-o", made, PROGRAM], check=True, timeout=120)
    return made
