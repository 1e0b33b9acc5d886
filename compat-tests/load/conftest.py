"""The tests of what holds under load. They assert properties and print figures: `scripts/test crowd load` shows both."""

import pytest

TABLES = []


@pytest.fixture
def table():
    """Collects a table for the end of the run: `table(heading, rows)`, a row being texts."""
    return lambda heading, rows: TABLES.append((heading, rows))


def pytest_terminal_summary(terminalreporter):
    for heading, rows in TABLES:
        terminalreporter.section(heading)
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        for first, *others in rows:
            cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
            terminalreporter.write_line("  ".join(cells).rstrip())
