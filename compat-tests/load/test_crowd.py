"""A thousand clients at once: nobody gets an error but throttling, and the memory of the gateway does not grow with time."""

import subprocess
import time

import crowd
from gateways import Account, Site, resident_mib
from running import REPOSITORY, free_port, until

CLIENTS = 1000
SECONDS = 60
MOTO_SECONDS = 15
# By then every client has a connection and all caches are filled.
WARM_UP = 20
# A connection's buffers and its request are some 100 KiB at most.
MOST_MIB = 256
GROWTH = 1.2
# What a gateway says that has more to do than it can.
THROTTLED = "503 RequestLimitExceeded"


def test_a_thousand_clients_see_no_error_but_throttling_and_the_memory_stays_flat(table):
    with Site("a") as site:
        site.knows("storage", "a", site.storage_node("storage"))
        gateway = site.gateway("gateway")
        started = crowd.start(site.account(gateway.address), "mixed", CLIENTS, SECONDS)
        begun = time.monotonic()
        memory = []
        while started.poll() is None and time.monotonic() < begun + SECONDS:
            gateway.assert_runs()
            memory.append((time.monotonic() - begun, resident_mib(gateway.child.pid)))
            time.sleep(0.5)
        seen = crowd.seen(started, 120)
        warm = max(mib for at, mib in memory if at < WARM_UP)
        end = max(mib for _, mib in memory[-10:])
        beside = moto()
        table(
            f"{CLIENTS} clients, mixed requests",
            [["", "answers/s", "p50", "p99", "throttled", "errors", "resident"]]
            + [line("vbs", seen, end), line("moto", beside, beside["resident"])],
        )
        print(memory[:: len(memory) // 12], seen["of_action"])
        errors = {what: count for what, count in seen["answers"].items() if not well(what)}
        assert not errors and seen["answers"]["200"] > CLIENTS, errors
        assert end <= GROWTH * warm and end < MOST_MIB, memory
        # Nobody is left behind: what was accepted is made and, if it was deleted, gone.
        until("all work done", lambda: not site.operator("workflow", "list"), 300)


def well(answer):
    return answer == "200" or answer.endswith(THROTTLED)


def line(name, seen, resident):
    errors = sum(count for what, count in seen["answers"].items() if not well(what))
    throttled = sum(count for what, count in seen["answers"].items() if what.endswith(THROTTLED))
    times = (f"{seen[share]:.0f} ms" for share in ("p50_ms", "p99_ms"))
    return [name, f"{seen['rate']:.0f}", *times, str(throttled), str(errors), f"{resident:.0f} MiB"]


def moto():
    """The same at moto's server, for a shorter time."""
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    command = [REPOSITORY / "compat-tests/.venv-bench/bin/moto_server", "-H", host, "-p", port]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        account = Account(f"http://{address}", "AKIAIOSFODNN7EXAMPLE", "secret")
        until("moto", lambda: answers(account), 120)
        seen = crowd.seen(crowd.start(account, "mixed", CLIENTS, MOTO_SECONDS), 300)
        return seen | {"resident": resident_mib(server.pid)}
    finally:
        server.kill()
        server.wait()


def answers(account):
    return crowd.seen(crowd.start(account, "mixed", 1, 0.2), 60)["answers"].get("200")
