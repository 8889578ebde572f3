"""The executor of one process: the runner is called where the engine runs."""

from __future__ import annotations

from typing import Protocol

from octavo.errors import StepFailed
from octavo.types.engine import StepPlan, StepResult


class StepRunner(Protocol):
    """What an executor drives: see runner.runner.Runner."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step."""


class InlineExecutor:
    """Runs each plan in the caller's thread; the native step releases the GIL."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. Raises StepFailed for any exception of the runner, which stays usable."""
        try:
            return self._runner.run(plan)
        except Exception as error:
            raise StepFailed(f"The step failed with {type(error).__name__}: {error}") from error
