"""Which client sent which action, and whether the tests in which it did passed.

The README holds the table of a whole run. It says nothing that changes from run to run: not how many tests there were, nor how long
they took.
"""

from collections import defaultdict
from importlib.metadata import version


class Ledger:
    def __init__(self):
        self.test = None
        self.sent_in = defaultdict(set)
        self.failed = set()
        self.whole = False
        # Whether one of several processes has ended without a word.
        self.lost = False
        self.versions = {}
        # Clients that need a flag which was not given, with the flag.
        self.not_run = {}

    def client(self, name, version):
        """A client that is no Python distribution."""
        self.versions[name] = version

    def sent(self, client, action):
        """Notes that `client`, a distribution's name or one that was told, sends `action` in the test that runs."""
        self.sent_in[client, action].add(self.test)

    def noted(self):
        """All of it in plain values, as one process can send it to another."""
        return {
            "sent_in": [[client, action, sorted(tests)] for (client, action), tests in self.sent_in.items()],
            "whole": self.whole,
            "versions": self.versions,
            "not_run": self.not_run,
        }

    def add(self, noted):
        """Takes in what another process has `noted` in a run of the same tests."""
        for client, action, tests in noted["sent_in"]:
            self.sent_in[client, action].update(tests)
        self.whole = noted["whole"]
        self.versions |= noted["versions"]
        self.not_run |= noted["not_run"]

    def table(self):
        """A table in Markdown: actions down, clients across, how many tests used it in each cell."""
        clients = sorted({client for client, _ in self.sent_in})
        actions = sorted({action for _, action in self.sent_in})
        lines = [row("action", *(f"{client} {self.version(client)}" for client in clients))]
        lines.append(row("---", *("---" for _ in clients)))
        for action in actions:
            lines.append(row(action, *(self.cell(client, action) for client in clients)))
        return "\n".join(lines) + "\n"

    def results(self):
        """What the README's table is made of: whether it went well, by client with its version and by action."""
        found = defaultdict(dict)
        for client, action in self.sent_in:
            failed = self.sent_in[client, action] & self.failed
            found[f"{client} {self.version(client)}"][action] = "FAILED" if failed else "passed"
        not_run = {client: {"(all)": f"not run (needs {flag})"} for client, flag in self.not_run.items()}
        return not_run | found

    def version(self, client):
        return self.versions.get(client) or version(client)

    def cell(self, client, action):
        tests = self.sent_in.get((client, action), set())
        failed = tests & self.failed
        if not tests:
            return ""
        return f"FAILED in {len(failed)} of {len(tests)}" if failed else f"passed in {len(tests)}"


BEGIN = "<!-- Written by a whole run of the tests. -->\n"
END = "<!-- The end of what is written. -->\n"


def update(path, results):
    """Writes the table into the README. A client that was not run this time keeps what it had, unless it needs a flag."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    run = {client.split()[0] for client in results}
    kept = {client: cells for client, cells in read(written).items() if client.split()[0] not in run}
    new = before + BEGIN + results_table(kept | results) + END + after
    if new != text:
        path.write_text(new)


def results_table(results):
    clients = sorted(results)
    actions = sorted({action for cells in results.values() for action in cells})
    lines = [row("action", *clients), row("---", *("---" for _ in clients))]
    lines += [row(action, *(results[client].get(action, "") for client in clients)) for action in actions]
    return "\n".join(lines) + "\n"


def read(table):
    """What `results_table` made its table of."""
    header, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() or [""])
    results = {client: {} for client in header[1:]}
    for action, *cells in lines[1:]:
        for client, cell in zip(results, cells):
            if cell:
                results[client][action] = cell
    return results


def row(*cells):
    return f"| {' | '.join(cells)} |"
