"""What runs hidden tests in the sandbox: pytest, told of nothing that lies in the working folder.

The text of this file is the program, started with ``python -I``: no path of the candidate's is on ``sys.path`` until
pytest is imported. It reads a nonce, and writes it with how each test ended to a copy of standard output.
"""

from __future__ import annotations

import json
import os
import sys

TESTS = "/program/tests"


class Reporter:
    """How each test ended: ``passed`` only if no phase of it said otherwise."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}

    def pytest_runtest_logreport(self, report) -> None:
        """A phase of a test: set up, called or torn down."""
        if self.ended.get(report.nodeid, "passed") == "passed":
            self.ended[report.nodeid] = report.outcome

    def pytest_collectreport(self, report) -> None:
        """A file that cannot be imported is a test that failed."""
        if report.outcome != "passed":
            self.ended[f"{report.nodeid} (import)"] = "failed"


def main() -> None:
    """Writes the nonce and ``{test: outcome}``."""
    nonce, told = sys.stdin.readline().strip(), os.dup(1)
    os.dup2(2, 1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    sys.path.insert(0, os.getcwd())
    reporter = Reporter()
    options = [
        "-q",
        "--continue-on-collection-errors",
        "-c",
        "/dev/null",
        "--rootdir",
        TESTS,
        "--noconftest",
        "-p",
        "no:cacheprovider",
        TESTS,
    ]
    pytest.main(["--import-mode=importlib", *options], plugins=[reporter])
    left = (nonce + json.dumps(reporter.ended)).encode()
    while left:
        left = left[os.write(told, left) :]
    os._exit(0)


if __name__ == "__main__":
    main()
