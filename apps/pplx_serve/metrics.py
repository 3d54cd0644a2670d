"""The figures of a server in the text format of Prometheus."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pplx_serve.pool import Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_FILLS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "pplx_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.tokens = Counter("pplx_tokens", "Tokens of answered requests.", ["model"], registry=registry)
        self.truncated = Counter("pplx_truncated_inputs", "Inputs that were cut.", ["model"], registry=registry)
        self.seconds = Histogram(
            "pplx_request_seconds", "Time to a reply.", ["route"], registry=registry, buckets=_LATENCY_SECONDS
        )
        self.fill = Histogram(
            "pplx_batch_fill",
            "Share of the token budget that passes used.",
            ["model"],
            registry=registry,
            buckets=_FILLS,
        )
        self.queue = Gauge("pplx_queue_tokens", "Tokens that wait.", ["model"], registry=registry)
        self.resident = Gauge("pplx_model_resident_bytes", "Memory of a loaded model.", ["model"], registry=registry)

        # Looking a label up takes longer than counting.
        self._of_reply = cache(lambda route, status: (self.requests.labels(route, status), self.seconds.labels(route)))
        self._of_model = cache(lambda model: (self.tokens.labels(model), self.truncated.labels(model)))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a reply."""
        requests, latency = self._of_reply(route, status)
        requests.inc()
        latency.observe(seconds)

    def read(self, model: str, n_tokens: int, n_truncated: int) -> None:
        """Count the tokens of a request that was answered, and its inputs that were cut."""
        tokens, truncated = self._of_model(model)
        tokens.inc(n_tokens)
        truncated.inc(n_truncated)

    def text(self, pool: Pool) -> bytes:
        """Return all figures, including the state of the models now."""
        for name, slot in pool.slots.items():
            self.resident.labels(name).set(slot.n_bytes)
            self.queue.labels(name).set(slot.loaded.scheduler.load.queued_tokens if slot.loaded else 0)
        return generate_latest(self.registry)
