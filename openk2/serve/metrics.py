"""What a server counts, for Prometheus.

A registry of its own, so that several servers in one process do not mix. Left
out: labels that clients choose (every value of one would be kept for ever).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from openk2.engine.engine import Usage

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """The counts; methods may be called from any thread."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"openk2_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"openk2_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "Answered HTTP requests.", ("route", "status"))
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = counter("cached_tokens", "Prompt tokens that were found in the cache.")
        self.generated_tokens = counter("generated_tokens", "Sampled tokens.")
        self.first_token = Histogram(
            "openk2_time_to_first_token_seconds",
            "From the queue to the first token of a continuation.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.next_token = Histogram(
            "openk2_inter_token_seconds", "Between two tokens of a continuation.", buckets=_SECONDS, registry=registry
        )
        self._running = gauge("running", "Sequences that are being decoded.")
        self._waiting = gauge("waiting", "Sequences that wait for room in the cache or for the engine.")
        self._blocks = gauge(
            "cache_blocks",
            "Blocks of the latent cache; those kept by the prefix tree alone go when others need them.",
            ("state",),
        )

    def render(self, usage: Usage, queued: int) -> bytes:
        """All of them as text; `queued` sequences have not reached the engine yet."""
        self._running.set(usage.running)
        self._waiting.set(usage.waiting + queued)
        used = usage.blocks - usage.free - usage.kept
        for state, count in (("used", used), ("free", usage.free), ("kept", usage.kept)):
            self._blocks.labels(state).set(count)
        return generate_latest(self._registry)
