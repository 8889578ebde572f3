"""``octavo ...`` and ``python -m octavo ...``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line with this process's arguments; the exit code."""
    from octavo.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
