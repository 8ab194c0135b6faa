"""What can be counted, for Prometheus. Names begin with ``audit_receiver_``; times are in seconds."""

import asyncio
import bisect
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)

_FRESH: Final = 1.0
"""Seconds."""

_SERVERS: Final = 64
"""Names of API servers with series of their own, the others share one. They come from certificates, so this is a bound
on what a CA can do to us.
"""


class Metrics:
    """All series of one receiver."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        labelled = self._labelled = list[Counter | Gauge]()

        def counter(name: str, text: str, *labels: str) -> Counter:
            labelled.append(made := Counter(f"audit_receiver_{name}", text, labels, registry=registry))
            return made

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            labelled.append(made := Gauge(f"audit_receiver_{name}", text, labels, registry=registry))
            return made

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"audit_receiver_{name}", text, buckets=buckets, registry=registry)

        self._servers: set[str] = set()
        self.posts = counter("posts", "POSTs by API server and answer.", "server", "code")
        self.refused = counter(
            "refused", "Connections, requests and bodies that were refused, on both ports, by reason.", "reason"
        )
        self.received = counter("received_events", "Events taken from API servers.", "server")
        self.received_bytes = counter("received_bytes", "Bytes of POSTs that were taken.", "server")
        self.duplicates = counter("duplicate_events", "Events that came again and were dropped.", "server")
        self.malformed = counter("malformed_items", "Items that are no events; see quarantine.", "server")
        self.decided = counter(
            "decided_events",
            "Events by what a policy made of them; level None is not delivered.",
            "policy",
            "rule",
            "level",
        )
        self.not_covered = counter(
            "not_covered_events", "Events that were recorded at a lower level than the policy asks for.", "policy"
        )
        self.redacted = counter("redacted_values", "Values that were redacted.")
        self.failed_closed = counter(
            "failed_closed_fields", "Fields replaced as a whole because they could not be redacted.", "field"
        )
        self.journaled = counter("journaled_events", "Events written for a sink.", "sink")
        self.dropped = counter(
            "dropped_events", "Events that a sink does not get because its part of the journal is full.", "sink"
        )
        self.delivered = counter("delivered_events", "Events that a sink has.", "sink")
        self.retried = counter("retried_events", "Events that had to be delivered again.", "sink")
        self.dead_lettered = counter("dead_lettered_events", "Events that a sink refused for good.", "sink")
        self.damaged = counter("damaged_events", "Events of the journal that could not be read.", "sink")
        self.errors = counter("sink_errors", "Failed deliveries by kind.", "sink", "kind")
        self.journal_bytes = gauge("journal_bytes", "Bytes that wait for a sink.", "sink")
        self.backlog = gauge("backlog_events", "Events that wait for a sink.", "sink")
        self.oldest = gauge("oldest_undelivered_seconds", "Age of the oldest event that waits for a sink.", "sink")
        self.ready = gauge("ready", "1 if events are taken.")
        self.post_seconds = histogram(
            "post_seconds",
            "From a POST's headers to its answer.",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0),
        )
        self._stage_seconds = counter(
            "stage_seconds",
            "Seconds on the clock, by stage of the pipeline: receive to journal of all POSTs, deliver of all sinks.",
            "stage",
        )
        self.latency = Latency()
        registry.register(self.latency)
        self._refresh: Callable[[], None] = lambda: None
        self._settle: Callable[[], None] = lambda: None
        self._text: bytes | None = None
        self._written = 0.0
        self._writing: asyncio.Task[bytes] | None = None

    def spent(self, stage: str, seconds: float) -> None:
        """So long a POST, or a batch, was at this stage."""
        self._stage_seconds.labels(stage).inc(seconds)

    def server(self, name: str) -> str:
        """The label for an API server."""
        if name in self._servers:
            return name
        if len(self._servers) < _SERVERS:
            self._servers.add(name)
            return name
        return "others"

    def before_reading(self, settle: Callable[[], None]) -> None:
        """``settle`` brings counters up to date that are counted elsewhere meanwhile."""
        self._settle = settle

    def on_scrape(self, refresh: Callable[[], None]) -> None:
        """``refresh`` sets the gauges before each scrape."""
        self._refresh = refresh

    def keep(self, policies: Collection[str], sinks: Collection[str]) -> None:
        """Drop the series of all others: policies and sinks come and go, and series would pile up."""
        self._settle()
        for each in self._labelled:
            for label, known in (("policy", policies), ("sink", sinks)):
                if label in each._labelnames:
                    at = each._labelnames.index(label)
                    for values in [values for values in list(each._metrics) if values[at] not in known]:
                        each.remove(*values)
        self.latency.keep(sinks)

    async def text(self) -> bytes:
        """In Prometheus' text format, at most `_FRESH` old: a thousand policies have tens of thousands of series, and
        anybody may ask. Whoever asks meanwhile gets the same.
        """
        if self._writing is None and (self._text is None or time.monotonic() - self._written >= _FRESH):
            self._writing = asyncio.create_task(self._write())
        if self._writing is not None:
            return await asyncio.shield(self._writing)
        return self._text or b""

    async def _write(self) -> bytes:
        try:
            self._settle()
            self._refresh()
            self._text = await asyncio.to_thread(generate_latest, self._registry)
            self._written = time.monotonic()
            return self._text
        finally:
            self._writing = None


class Latency(Collector):
    """From an event's stageTimestamp to the sink that has it. Of the library's own histogram every single observation
    costs as much as deciding an event; this one takes those of a batch together.
    """

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, sink: str, timestamps: Iterable[str], now: float) -> None:
        """Events of these stageTimestamps are delivered at ``now``, seconds since the epoch."""
        counts = self._counts.setdefault(sink, [0] * (len(LATENCY_BUCKETS) + 1))
        # Events of the same tenth of a second are taken as one.
        for moment, events in _tenths(timestamps):
            seconds = max(0.0, now - epoch(moment))
            counts[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += events
            self._sums[sink] = self._sums.get(sink, 0.0) + seconds * events

    def keep(self, sinks: Collection[str]) -> None:
        """Forget all others."""
        for sink in self._counts.keys() - set(sinks):
            del self._counts[sink]
            self._sums.pop(sink, None)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(
            "audit_receiver_delivery_latency_seconds",
            "From an event's stageTimestamp to the sink that has it.",
            labels=["sink"],
        )
        for sink, counts in list(self._counts.items()):
            total, buckets = 0, []
            for bound, count in zip((*map(str, LATENCY_BUCKETS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([sink], buckets, self._sums.get(sink, 0.0))
        yield family


def _tenths(timestamps: Iterable[str]) -> Iterable[tuple[str, int]]:
    found: dict[str, int] = {}
    for timestamp in timestamps:
        moment = timestamp[:21]
        found[moment] = found.get(moment, 0) + 1
    return found.items()


def epoch(timestamp: str) -> float:
    """Seconds since the epoch of a timestamp in UTC, of which the end may be missing; 0 for what is none."""
    try:
        return datetime.fromisoformat(timestamp.rstrip("Z")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
