"""``python -m octavo.as_vllm script.py [arguments]``, or ``-m module`` in the place of the script."""

from __future__ import annotations

import os
import runpy
import sys

from octavo.as_vllm import install

_USAGE = "Usage: python -m octavo.as_vllm SCRIPT.py [ARGUMENT ...], or -m MODULE [ARGUMENT ...]"


def main() -> int:
    """Run the script (or module) as ``__main__`` with `sys.argv` as it would see it; 2 when none is named."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help") or (words[0] == "-m" and len(words) < 2):
        sys.stderr.write(_USAGE + "\n")
        return 0 if words and words[0] in ("-h", "--help") else 2
    install()
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return 0
    if not os.path.exists(words[0]):
        sys.stderr.write(f"octavo: there is no script {words[0]!r}.\n")
        return 2
    sys.argv = words
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
    runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
