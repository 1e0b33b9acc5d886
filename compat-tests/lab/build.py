"""Builds what the lab's machines boot from, once, out of Debian packages.

Both machines share one root file system (which one a machine becomes is told on its kernel's command line) and one
kernel. The root holds the kernels and initial file systems of the Xen node's own guests as well.

Everything lies in directories of the cache that are named by a hash of what they are made of, so a changed recipe is a
new directory and a finished one is never written to again. What was downloaded is in one directory and what was made
of it in another, for the second changes often and is made in seconds.
"""

import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vbs" / "lab"
SUITE = "bookworm"
# The last kernel whose blkfront refuses to give a disk back that something in the guest holds open.
OLD_SUITE = "bullseye"
PACKAGES = (
    "busybox-static kmod udev iproute2 lvm2 thin-provisioning-tools tgt open-iscsi xen-utils-4.17 xenstore-utils "
    "xen-hypervisor-4.17-amd64 util-linux mount sg3-utils procps"
).split()
EXCLUDED = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
RECIPE = sorted(path for folder in ("first", "node", "guest") for path in (HERE / folder).iterdir() if path.is_file())

NODE_MODULES = (
    "virtio_pci virtio_blk virtio_net ext4 crc32c_generic loop dm-mod dm-snapshot dm-thin-pool dm-mirror iscsi_tcp "
    "target_core_mod target_core_iblock target_core_file iscsi_target_mod sd_mod sg xen-blkback xen-gntdev xen-evtchn "
    "xen-gntalloc xen-privcmd xen-netback xenfs configfs md5 sha256_generic libcrc32c"
).split()
FIRST_MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
GUEST_MODULES = ["xen-blkfront", "crc32c_generic", "ext4"]



def images():
    """The directory of the finished images; builds them when they are not there."""
    return cached("images", [Path(__file__).read_bytes(), *(path.read_bytes() for path in RECIPE)], build)


def downloads():
    """The directory of what comes from Debian: the packages as a tar file, and two kernels taken apart."""
    return cached("debian", [SUITE, OLD_SUITE, *PACKAGES, *EXCLUDED], download)


def cached(kind, inputs, make):
    """The finished directory that `make` makes of these inputs."""
    digest = hashlib.sha256()
    for value in inputs:
        data = value if isinstance(value, bytes) else value.encode()
        digest.update(b"%d " % len(data) + data)
    made = CACHE / f"{kind}-{digest.hexdigest()[:16]}"
    if (made / "complete").exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    # Several may ask at once; one makes it and the others wait.
    with (CACHE / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            print(f"lab: makes {made}", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix="making.", dir=CACHE) as work:
                out = Path(work) / "out"
                out.mkdir()
                make(Path(work), out)
                (out / "complete").touch()
                shutil.rmtree(made, ignore_errors=True)
                out.rename(made)
    return made


def download(work, out):
    """Fetches all that the images are made of."""
    unpacked_kernel(work, out / "kernel", node_repositories())
    unpacked_kernel(work, out / "old-kernel", old_repositories())
    sources = work / "sources.list"
    sources.write_text("\n".join(node_repositories()) + "\n")
    run(
        ["mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(PACKAGES)}", *EXCLUDED, *proxies()]
        + ["--dpkgopt=force-unsafe-io", "--aptopt=APT::Install-Recommends false", SUITE, out / "root.tar", sources],
        timeout=1800,
    )


def build(work, out):
    """Makes the images."""
    debian = downloads()
    kernel, old_kernel = debian / "kernel", debian / "old-kernel"
    overlay = work / "overlay"
    install_modules(kernel, overlay / "usr", NODE_MODULES)
    shutil.copytree(HERE / "node", overlay / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name, tree in {"new": kernel, "old": old_kernel}.items():
        guest = overlay / "lab" / "guests" / name
        guest.mkdir(parents=True)
        (guest / "kernel").write_bytes(vmlinux(tree))
        initramfs(guest / "initrd", tree, GUEST_MODULES, HERE / "guest")
    (out / "kernel").write_bytes(vmlinux(kernel))
    initramfs(out / "initrd", kernel, FIRST_MODULES, HERE / "first")
    packed_xen = work / "xen.gz"
    root_file_system(debian / "root.tar", overlay, out / "root.img", packed_xen)
    (out / "xen").write_bytes(gzip.decompress(packed_xen.read_bytes()))


def repositories(wanted):
    """The machine's own Debian repositories as lines for apt, `wanted` choosing by codename."""
    listed = run(
        ["apt-get", "indextargets", "--format", "$(LABEL)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages"], text=True
    )
    lines = set()
    for line in listed.splitlines():
        label, codename, uri = line.split("|")
        suite = wanted(label, codename)
        if suite:
            lines.add(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main")
    if not lines:
        raise SystemExit(f"lab: this machine's apt has no Debian {SUITE}; run apt-get update, or use a Debian 12 machine")
    return sorted(lines)


def node_repositories():
    return repositories(lambda label, name: name if label.startswith("Debian") and name.startswith(SUITE) else None)


def old_repositories():
    return repositories(lambda label, name: OLD_SUITE if (label, name) == ("Debian", SUITE) else None)


def unpacked_kernel(work, tree, lines):
    """The kernel that these repositories' linux-image-amd64 stands for, taken apart and with its modules indexed."""
    state = work / f"{tree.name}.apt"
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (state / folder).mkdir(parents=True)
    (state / "sources.list").write_text("\n".join(lines) + "\n")
    (state / "status").touch()
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": run(["id", "-un"], text=True).strip(),
        "Acquire::Languages": "none",
    }
    apt = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", "-q", *apt, "update"])
    depends = run(["apt-cache", *apt, "depends", "linux-image-amd64"], text=True)
    package = re.search(r"Depends: (linux-image-\d\S*)", depends)[1]
    run(["apt-get", "-q", *apt, "download", package], cwd=state / "debs")
    tree.mkdir()
    (deb,) = (state / "debs").iterdir()
    run(["dpkg-deb", "-x", deb, tree])
    run(["depmod", "-b", tree, version_of(tree)])
    return tree


def version_of(tree):
    (modules,) = (tree / "lib" / "modules").iterdir()
    return modules.name


def vmlinux(tree):
    """The plain ELF kernel inside vmlinuz: emulated machines and PV guests start it many times faster."""
    (packed,) = (tree / "boot").glob("vmlinuz-*")
    data = packed.read_bytes()
    start = data.index(b"\xfd7zXZ\0")
    return lzma.LZMADecompressor().decompress(data[start:])


def with_dependencies(tree, names):
    """Paths of the named modules and of all they need, each after what it needs."""
    folder = tree / "lib" / "modules" / version_of(tree)
    needs, by_name = {}, {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[Path(path).name.removesuffix(".ko").replace("_", "-")] = path
    found = []

    def add(path):
        for other in reversed(needs[path]):
            add(other)
        if path not in found:
            found.append(path)

    built_in = (folder / "modules.builtin").read_text().replace("_", "-")
    for name in names:
        dashed = name.replace("_", "-")
        if dashed in by_name:
            add(by_name[dashed])
        elif f"/{dashed}.ko" not in built_in:
            raise SystemExit(f"lab: {version_of(tree)} has no module {name}")
    return folder, found


def install_modules(tree, into, names):
    """Copies modules into `into`/lib/modules and indexes them."""
    folder, paths = with_dependencies(tree, names)
    target = into / "lib" / "modules" / folder.name
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path, target / path)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(folder / name, target / name)
    run(["depmod", "-b", into, folder.name])


def initramfs(path, tree, modules, programs):
    """A compressed cpio archive with busybox, modules in the order in which to load them, and a folder's programs."""
    folder, paths = with_dependencies(tree, modules)
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "root", "tmp", "mnt", "modules"):
        archive.folder(name)
    for number, module in enumerate(paths):
        archive.file(f"modules/{number:02}-{Path(module).name}", (folder / module).read_bytes())
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes())
    for program in sorted(programs.iterdir()):
        archive.file("init" if program.name == "init" else f"bin/{program.name}", program.read_bytes())
    archive.device("dev/console", 5, 1)
    path.write_bytes(gzip.compress(archive.bytes(), 1))


class Cpio:
    """A cpio archive in the `newc` format, as the kernel takes it, made without needing to be root."""

    def __init__(self):
        self.parts = []

    def folder(self, name):
        self._entry(name, 0o040755)

    def file(self, name, data):
        self._entry(name, 0o100755, data)

    def device(self, name, major, minor):
        self._entry(name, 0o020600, device=(major, minor))

    def bytes(self):
        self._entry("TRAILER!!!", 0)
        return b"".join(self.parts)

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        number = len(self.parts) + 1
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self.parts += [padded(head), padded(data)]


def padded(data):
    return data + b"\0" * (-len(data) % 4)


def root_file_system(packages, overlay, image, packed_xen):
    """Debian's packages and `overlay` as an ext4 image; Xen itself is left in a file beside it."""
    # Files that belong to others than the caller: where that is not root, in a user namespace.
    alone = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto"]
    script = """set -eu
        mkdir "$1"
        tar -x -C "$1" --exclude './dev/*' -f "$2"
        cp -r "$3/." "$1/"
        chown -R 0:0 "$1/lab" "$1/usr/lib/modules"
        chmod 755 "$1"/lab/*
        mv "$1"/lab/inittab "$1"/etc/inittab
        cp "$1"/boot/xen-4.17-amd64.gz "$5"
        rm -rf "$1"/boot/* "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*
        mke2fs -q -F -t ext4 -L root -d "$1" "$4" 2G
        rm -rf "$1"
    """
    tree = packed_xen.with_name("root")
    run([*alone, "sh", "-c", script, "sh", tree, packages, overlay, image, packed_xen])


def proxies():
    """What apt was told about proxies here, told to mmdebstrap's apt as well."""
    text = run(["apt-config", "dump"], text=True)
    return [f"--aptopt={line}" for line in text.splitlines() if re.match(r"Acquire::https?::Proxy ", line)]


def run(command, timeout=600, **options):
    """Runs a command and returns what it printed; its complaints are shown only when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, check=False, **options)
    if done.returncode:
        shown = done.stderr if isinstance(done.stderr, str) else done.stderr.decode(errors="replace")
        raise SystemExit(f"lab: {' '.join(map(str, command[:3]))} ... ended with {done.returncode}:\n{shown[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    print(images())
