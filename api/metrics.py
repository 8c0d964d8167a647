"""What /metrics says: counts and times by route, method and status. No label ever holds text, an id or a name."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter that nobody asks for
        self._registry = CollectorRegistry()
        self._requests = Counter("clinrag_requests", "Requests", ["method", "route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "clinrag_request_seconds", "Time to answer", ["method", "route"], buckets=_SECONDS, registry=self._registry
        )
        self._notes = Counter("clinrag_notes", "Notes that came in", ["outcome"], registry=self._registry)
        self._answers = Counter("clinrag_answers", "Answers", ["status"], registry=self._registry)
        self._degraded = Counter("clinrag_degraded", "Searches without an arm", ["arm"], registry=self._registry)
        self._jobs = Gauge("clinrag_jobs_unfinished", "Indexing jobs that are not finished", registry=self._registry)
        self._encoder = Gauge("clinrag_encoder_waiting", "Calls that wait for an encoder", registry=self._registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; ``route`` is the template, such as ``/v1/collections/{name}``."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def indexed(self, stored: int, skipped: int, rejected: int) -> None:
        """Count notes by what became of them."""
        for outcome, count in (("stored", stored), ("skipped", skipped), ("rejected", rejected)):
            self._notes.labels(outcome).inc(count)

    def searched(self, degraded: tuple[str, ...]) -> None:
        """Count the arms that did not take part in a search."""
        for arm in degraded:
            self._degraded.labels(arm).inc()

    def answered(self, status: str) -> None:
        """Count an answer by its status."""
        self._answers.labels(status).inc()

    def watch(self, jobs: Callable[[], float], encoder: Callable[[], float]) -> None:
        """Read these two when somebody asks."""
        self._jobs.set_function(jobs)
        self._encoder.set_function(encoder)

    def text(self) -> bytes:
        """Return the exposition in Prometheus' text format."""
        return generate_latest(self._registry)
