"""Which client sent which action, and whether the tests in which it did passed."""

from collections import defaultdict
from importlib.metadata import version


class Ledger:
    def __init__(self):
        self.test = None
        self.sent_in = defaultdict(set)
        self.failed = set()
        self.versions = {}

    def client(self, name, version):
        """A client that is no Python distribution."""
        self.versions[name] = version

    def sent(self, client, action):
        """Notes that `client`, a distribution's name or one that was told, sends `action` in the test that runs."""
        self.sent_in[client, action].add(self.test)

    def table(self):
        """A table in Markdown: actions down, clients across, how many tests used it in each cell."""
        clients = sorted({client for client, _ in self.sent_in})
        actions = sorted({action for _, action in self.sent_in})
        lines = [row("action", *(f"{client} {self.version(client)}" for client in clients))]
        lines.append(row("---", *("---" for _ in clients)))
        for action in actions:
            lines.append(row(action, *(self.cell(client, action) for client in clients)))
        return "\n".join(lines) + "\n"

    def version(self, client):
        return self.versions.get(client) or version(client)

    def cell(self, client, action):
        tests = self.sent_in.get((client, action), set())
        failed = tests & self.failed
        if not tests:
            return ""
        return f"FAILED in {len(failed)} of {len(tests)}" if failed else f"passed in {len(tests)}"


def row(*cells):
    return f"| {' | '.join(cells)} |"
