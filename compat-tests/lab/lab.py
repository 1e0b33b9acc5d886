#!/usr/bin/env python3
"""The lab by hand: each DIR is a pair of machines of its own, so several people can work at once."""

import argparse
import sys
import time
from pathlib import Path

import build
from machine import LabError
from pair import GUESTS, Pair


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build the images into the cache and print where they are")
    for name, text in (
        ("up", "start a new pair with fresh disks"),
        ("down", "stop the pair and delete its directory"),
        ("status", "show what runs and which ports lead to it"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("dir", type=Path)
        if name == "up":
            verb.add_argument("--cold", action="store_true", help="boot it, instead of resuming a saved pair")
    for name, text in (
        ("on", "start a machine again with the disks that it had"),
        ("cut", "cut a machine's power"),
        ("console", "print a machine's console"),
        ("run", "run a command in a machine, or a script in a guest: run DIR xen -- xl list"),
        ("push", "put a file into a machine: push DIR storage FILE PATH"),
        ("start", "start a daemon in a machine, its output in LOG: start DIR storage LOG -- COMMAND..."),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("dir", type=Path)
        places = ("storage", "xen", *GUESTS) if name == "run" else ("storage", "xen")
        verb.add_argument("machine", choices=places)
        if name == "run":
            verb.add_argument("--timeout", type=float, default=60)
            verb.add_argument("--stdin", action="store_true", help="hand on this program's standard input")
        elif name == "push":
            verb.add_argument("file", type=Path)
            verb.add_argument("path")
        elif name == "start":
            verb.add_argument("log")
        if name in ("run", "start"):
            verb.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    try:
        return VERBS[chosen.verb](chosen)
    except (LabError, OSError) as fault:
        print(f"lab: {fault}", file=sys.stderr)
        return 125


def up(chosen):
    started = time.monotonic()
    if chosen.cold:
        Pair.create(chosen.dir).power_on()
    else:
        Pair.resumed(chosen.dir)
    Pair(chosen.dir).bring_iet()
    print(f"up after {time.monotonic() - started:.0f} s", file=sys.stderr)
    return status(chosen)


def status(chosen):
    for machine in Pair(chosen.dir).machines:
        ports = machine.file("ports").read_text() if machine.runs() else ""
        print(machine.name, "runs" if machine.runs() else "is off", ports)


def run(chosen):
    pair = Pair(chosen.dir)
    if chosen.machine in GUESTS:
        done = pair.guest(chosen.machine).run(" ".join(chosen.command), timeout=chosen.timeout, check=False)
    else:
        stdin = sys.stdin.buffer.read() if chosen.stdin else b""
        machine = getattr(pair, chosen.machine)
        done = machine.run(*chosen.command, timeout=chosen.timeout, check=False, stdin=stdin)
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    if done.late:
        print(f"lab: not done after {chosen.timeout} s", file=sys.stderr)
        return 124
    return done.status if done.status >= 0 else 128 - done.status


def on(chosen):
    machine = getattr(Pair(chosen.dir), chosen.machine)
    machine.power_on()
    machine.wait_until_up()


VERBS = {
    "build": lambda chosen: print(build.images()),
    "up": up,
    "down": lambda chosen: Pair(chosen.dir).remove(),
    "status": status,
    "on": on,
    "cut": lambda chosen: getattr(Pair(chosen.dir), chosen.machine).power_cut(),
    "console": lambda chosen: print(getattr(Pair(chosen.dir), chosen.machine).file("console").read_text(errors="replace")),
    "run": run,
    "push": lambda chosen: getattr(Pair(chosen.dir), chosen.machine).push(chosen.file, chosen.path),
    "start": lambda chosen: print(getattr(Pair(chosen.dir), chosen.machine).start(*chosen.command, log=chosen.log)),
}

if __name__ == "__main__":
    sys.exit(main())
