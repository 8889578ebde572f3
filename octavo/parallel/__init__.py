"""Executors: who runs a StepPlan, and where."""
