"""What a scheduler tells through its HTTP port: what became of ticks, and whether it gets on.

The scheduler works in a thread of its own and writes down how it gets on; the command's main thread, which otherwise
only waits to be told to stop, serves the port. So a scheduler that hangs is told of, and a client holds up no tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from callboard.loggers import get_logger
from callboard.metrics.catalogue import SCHEDULER_METRICS
from callboard.scheduler import Progress
from callboard.store.base import Fate
from callboard.worker.http_server import Address, Answer, HttpServer, verdict

log = get_logger(__name__)

#: A scheduler looks at its schedules, and meets the store, every 20 seconds at least: so long may it not.
_LATELY = 60.0
_FATES = [fate for fate in Fate if fate is not Fate.RUN_NOW]


class SchedulerPort(Collector):
    """The port.

    Args:
        address: Where to listen.
        progress: How the scheduler gets on.
        jobs: Knows the jobs that this process has sent.
        clock: That of the progress.

    Raises:
        SettingsError: If nothing can listen there.
    """

    def __init__(
        self,
        address: Address,
        progress: Progress,
        *,
        jobs: Collector | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._clock = clock
        self._began = clock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if jobs is not None:
            self._registry.register(jobs)
        pages = {"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz}
        self._server = HttpServer(address, pages, setting="CALLBOARD_SCHEDULER_HTTP")
        self.address = self._server.address
        log.info("the scheduler's port is open", address=str(self.address), pages=" ".join(pages))

    def wait(self, files: Sequence[int], seconds: float) -> list[int]:
        """Wait until one of these files can be read, and serve the port meanwhile; returns those that can."""
        return self._server.wait(files, seconds)

    def close(self) -> None:
        """Close it."""
        self._server.close()

    # -- the pages ---------------------------------------------------------------------------------------

    def _metrics(self) -> Answer:
        return Answer(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def _healthz(self) -> Answer:
        progress, now = self._progress, self._clock()
        problems = []
        if now - progress.looked > _LATELY:
            problems.append(f"it hasn't looked at its schedules for {now - progress.looked:.0f} s")
        since = self._began if progress.reached is None else progress.reached
        if now - since > _LATELY:
            problems.append(f"the store hasn't answered for {now - since:.0f} s: {progress.store_error}")
        return verdict(problems)

    def _readyz(self) -> Answer:
        progress = self._progress
        if progress.store_error:
            return verdict([f"the store doesn't answer: {progress.store_error}"])
        if not progress.rounds:
            return verdict(["it hasn't looked at its schedules yet"])
        return verdict([f"{actor} can't be served: {error}" for actor, error in progress.errors.items()])

    # -- the metrics -------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        progress = self._progress
        samples: dict[str, list[tuple[tuple[str, ...], float]]] = {
            "callboard_scheduler_ticks": [
                ((actor, fate.value.replace(" ", "_")), progress.ticks[actor, fate])
                for actor in progress.actors
                for fate in _FATES
            ],
            "callboard_scheduler_lateness_seconds": [((a,), s) for a, s in list(progress.lateness.items())],
            "callboard_scheduler_paused": [((actor,), actor in progress.paused) for actor in progress.actors],
            "callboard_scheduler_looked_seconds": [((), self._clock() - progress.looked)],
        }
        for name, (kind, labels, text) in SCHEDULER_METRICS.items():
            family = (GaugeMetricFamily if kind == "gauge" else CounterMetricFamily)(
                name, text, labels=labels
            )
            for values, value in samples[name]:
                family.add_metric(values, value)
            yield family
