"""What /metrics says, as numbers: one look at a server, and what happened between two."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from octavo.errors import OctavoError

_RUNNING = "num_requests_running"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Look:
    """Every series of a server at one moment: name without prefix to labels to value."""

    at_s: float
    series: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str) -> float:
        """The sum over a metric's series; 0 where there is none."""
        return sum(self.series.get(name, {}).values())

    def labels(self, name: str, label: str) -> list[str]:
        """The values of a label, each once, those that are empty left out."""
        values = (dict(labels).get(label, "") for labels in self.series.get(name, {}))
        return sorted({value for value in values if value})

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's sums by the values of one label."""
        found: dict[str, float] = {}
        for labels, value in self.series.get(name, {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found


def look(text: str, at_s: float) -> Look:
    """Read Prometheus' text, whatever the prefix of the names. Raises OctavoError for anything else."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except (ValueError, KeyError, IndexError) as error:
        raise OctavoError(f"/metrics is not in Prometheus' format: {error}.") from None
    prefix = next((s.name.removesuffix(_RUNNING) for s in samples if s.name.endswith(_RUNNING)), None)
    if prefix is None:
        raise OctavoError(
            "The server's /metrics names no requests.",
            hint="It may still be loading its model, or be no Octavo or vLLM.",
        )
    series: dict[str, dict[Labels, float]] = {}
    for sample in samples:
        name = sample.name.removeprefix(prefix)
        series.setdefault(name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return Look(at_s, series)


def rate(before: Look, now: Look, name: str) -> float:
    """Growth of a counter per second; 0 after a restart."""
    passed_s = now.at_s - before.at_s
    return max(0.0, now.total(name) - before.total(name)) / passed_s if passed_s > 0 else 0.0


def quantiles(before: Look, now: Look, name: str, shares: Sequence[float]) -> list[float | None]:
    """Quantiles of what a histogram took in between two looks, of all that it has where that is nothing."""
    after, past = now.by(f"{name}_bucket", "le"), before.by(f"{name}_bucket", "le")
    fresh = {edge: count - past.get(edge, 0.0) for edge, count in after.items()}
    counts = fresh if max(fresh.values(), default=0.0) > 0 and min(fresh.values()) >= 0 else after
    buckets = sorted((float(edge), count) for edge, count in counts.items())
    return [_quantile(buckets, share) for share in shares]


def _quantile(buckets: Iterable[tuple[float, float]], share: float) -> float | None:
    """As Prometheus' histogram_quantile: straight lines between the edges, the last edge for all above."""
    listed = list(buckets)
    if not listed or listed[-1][1] <= 0:
        return None
    wanted = share * listed[-1][1]
    low, below = 0.0, 0.0
    for edge, count in listed:
        if count >= wanted and count > below:
            if math.isinf(edge):
                return low
            return low + (edge - low) * (wanted - below) / (count - below)
        low, below = edge, count
    return low
