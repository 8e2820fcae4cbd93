"""The engine's metrics as Triton's, on /metrics. For one thread only: see attendant.py."""

from __future__ import annotations

from collections.abc import Mapping

import triton_python_backend_utils as pb_utils

COUNTERS = ("_total", "_sum", "_count")


class Metrics:
    """labels: of every metric, so that several engines on one server stay apart."""

    def __init__(self, labels: Mapping[str, str]):
        self.labels = dict(labels)
        self.families: list = []  # a family must outlive its metrics
        self.metrics: dict = {}
        self.counted: dict[str, float] = {}
        try:
            self._create("loaded").set(1)
            self.enabled = True
        except pb_utils.TritonModelException:  # the server runs with --allow-metrics=false
            self.enabled = False

    def update(self, values: Mapping[str, float]) -> None:
        """values: what the engine counts and measures, by name; those that only grow end as COUNTERS says."""
        for name, value in values.items() if self.enabled else ():
            if name not in self.metrics:
                self._create(name)
            if name.endswith(COUNTERS):
                self.metrics[name].increment(value - self.counted.get(name, 0.0))
                self.counted[name] = value
            else:
                self.metrics[name].set(value)

    def _create(self, name: str):
        kind = pb_utils.MetricFamily.COUNTER if name.endswith(COUNTERS) else pb_utils.MetricFamily.GAUGE
        family = pb_utils.MetricFamily(name=f"slipway_{name}", description=f"Slipway: {name.replace('_', ' ')}", kind=kind)
        self.families.append(family)
        self.metrics[name] = family.Metric(labels=self.labels)
        return self.metrics[name]
