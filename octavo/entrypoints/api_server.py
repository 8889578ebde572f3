"""``python -m octavo.entrypoints.api_server --model X``: the same as ``octavo serve X``."""

from __future__ import annotations

import sys

from octavo.cli.serve import run_module

if __name__ == "__main__":
    sys.exit(run_module())
