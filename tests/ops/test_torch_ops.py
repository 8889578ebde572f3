"""What is torch's own about the torch backend; its numbers are in test_ops."""

from __future__ import annotations

import subprocess
import sys

import pytest
from op_cases import CASES, LIMITS

from octavo.errors import ConfigError
from octavo.ops.torch_ops import TorchRunnable


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model = CASES[0].build()
    with pytest.raises(ConfigError, match=r"octavo\[torch\]"):
        TorchRunnable(model, model.tensors, CASES[0].precision, LIMITS)


def test_importing_it_does_not_load_torch() -> None:
    code = "import sys, octavo.ops.torch_ops, octavo.build.bind; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
