"""What one user of the load test asks, and how its answers are judged; `load.py` runs locust with it.

Every request is greedy. Its answer must be the library's own for that prompt and those strengths, or a refusal with 429
and Retry-After. The counts go to the file that DUAL_HEAD_LOAD names, where the requests and answers are too.
"""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from load_answers import outcome_of
from locust import FastHttpUser, constant_throughput, events, task

FILE = Path(os.environ["DUAL_HEAD_LOAD"])
PLAN = json.loads(FILE.read_text())
COUNTS: Counter[str] = Counter()
EXAMPLES: list[str] = []  # of what went wrong


class User(FastHttpUser):
    """Asks one of the requests at random, whole or as a stream, so many times a second."""

    if PLAN["rate_of_user"]:
        wait_time = constant_throughput(PLAN["rate_of_user"])
    connection_timeout = network_timeout = PLAN["patience"]

    @task
    def ask(self) -> None:
        """Send one request and compare its answer."""
        case = random.choice(PLAN["cases"])
        stream = random.random() < 0.5
        body = {**case["body"], "stream": stream}
        with self.client.post(
            case["path"], json=body, name="stream" if stream else "whole", catch_response=True
        ) as answer:
            outcome = outcome_of(answer, stream, case["text"])
            COUNTS[outcome] += 1
            if outcome in ("answered", "refused"):
                answer.success()
            else:
                answer.failure(outcome)
                if len(EXAMPLES) < 20:
                    EXAMPLES.append(f"{outcome}: {body} gave {answer.status_code} {str(answer.text)[:500]}")


@events.quitting.add_listener
def _write(environment: Any, **more: Any) -> None:
    del more
    total = environment.stats.total
    FILE.with_suffix(".counts.json").write_text(
        json.dumps(
            {
                "outcomes": COUNTS,
                "examples": EXAMPLES,
                "seconds": total.last_request_timestamp - total.start_time,
                "milliseconds": {f"p{share:.0%}": total.get_response_time_percentile(share) for share in (0.5, 0.95)},
            }
        )
    )
