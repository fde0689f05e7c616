"""Counts for Prometheus, named as vLLM names them: dual_head_num_requests_running, and so on."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dual_head.serve.host import EngineHost

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ALPHAS = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


class _EngineCollector(Collector):
    """Reads the counts of whatever engine runs when Prometheus asks."""

    def __init__(self, host: EngineHost):
        self.host = host

    def collect(self) -> Iterator[Metric]:
        stats = self.host.stats()
        gauges = {
            "num_requests_running": ("Choices in rows of the batch.", stats.running),
            "num_requests_waiting": ("Choices that wait for a row.", stats.waiting),
            "kv_cache_usage_perc": ("Share of the pages in use, those kept for prefixes among them.", stats.kv_usage),
            "engine_ready": ("1 where requests are taken.", float(self.host.state == "ready")),
        }
        counters = {
            "prefix_cache_queries": ("Tokens of prompts since the engine started.", stats.prompt_tokens),
            "prefix_cache_hits": ("Of these, tokens that were read from pages.", stats.prefix_hit_tokens),
            "engine_restarts": ("Attempts to start an engine after its worker had died.", self.host.restarts),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"dual_head_{name}", words, value)
        for name, (words, value) in counters.items():
            yield CounterMetricFamily(f"dual_head_{name}", words, value)


class Metrics:
    """What the server counts of its requests, beside what the engine counts."""

    def __init__(self, host: EngineHost):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(host))

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"dual_head_{name}", words, labels, registry=self.registry)

        def seconds(name: str, words: str) -> Histogram:
            return Histogram(f"dual_head_{name}", words, buckets=SECONDS, registry=self.registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.request_success = counter("request_success", "Requests that ended, by the reason.", "finished_reason")
        self.request_refused = counter("request_refused", "Requests that were refused, by the status.", "status")
        self.time_to_first_token = seconds("time_to_first_token_seconds", "From the request to its first token.")
        self.inter_token_latency = seconds("inter_token_latency_seconds", "Between two tokens of a choice.")
        self.e2e_request_latency = seconds("e2e_request_latency_seconds", "From the request to its end.")
        self.log_lines_unwritten = counter("log_lines_unwritten", "Lines of the log that a full disk kept from it.")
        self.alpha = Histogram(
            "dual_head_alpha", "Strength of each guide.", ["guide"], buckets=ALPHAS, registry=self.registry
        )

    def text(self) -> bytes:
        """What /metrics answers, in Prometheus' text format."""
        return generate_latest(self.registry)
