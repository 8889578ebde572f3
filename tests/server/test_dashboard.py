"""deploy/grafana.json asks for nothing that /metrics does not have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
_NAME = re.compile(r"\b(?:vllm:|process_)\w+")


def test_every_metric_of_the_dashboard_is_there(client: Any) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    lines = client.get("/metrics").text.splitlines()
    there = {re.split(r"[{ ]", line)[0]: line for line in lines if not line.startswith("#")}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [item["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    names = {name for expression in asked for name in _NAME.findall(expression)}
    assert len(names) > 20
    assert names - set(there) == set()
    for expression in asked:
        for name, label in re.findall(r"sum by \((\w+)\) \(rate\((vllm:\w+)", expression):
            assert f'{name}="' in there[label], expression


def test_the_panels_stand_side_by_side() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
