"""The engine's metrics as Triton's, on /metrics. For one thread only: see attendant.py."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


class Metrics:
    def __init__(self, labels: dict[str, str]):
        self.labels = labels
        self.gauges: dict[str, tuple] = {}

    def update(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name not in self.gauges:
                self.gauges[name] = self._create(name)
            self.gauges[name][1].set(value)

    def _create(self, name: str) -> tuple:
        family = pb_utils.MetricFamily(name=f"slipway_{name}", description=name, kind=pb_utils.MetricFamily.GAUGE)
        return family, family.Metric(labels=self.labels)
