"""What a server is told: where it listens, whom it lets in, how much it takes at once; and the sizes of its engine."""

import os
from dataclasses import dataclass
from ipaddress import ip_address

from dual_head.errors import DualHeadError
from dual_head.options import Options, option


@dataclass(kw_only=True)
class ServerSettings(Options):
    """Address, names, keys and limits. Errors: a port, a number of requests or seconds that cannot be."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 for every one of the machine", heading="server")
    port: int = option(8000, "port to listen at; 0 takes a free one", least=0, most=65535)
    served_model_name: str | None = option(None, "name of the model in requests [name of the folder]")
    presets: str | None = option(None, "YAML file of strengths by name, served as NAME:PRESET", metavar="FILE")
    api_key: str | None = option(None, "key that clients must send [DUAL_HEAD_API_KEY, or else none]", metavar="KEY")
    admin_key: str | None = option(
        None, "key that lets guides be attached and detached [DUAL_HEAD_ADMIN_KEY, or else nobody may]", metavar="KEY"
    )
    allow_origin: list[str] = option(
        [], "origin whose pages may ask from a browser, such as https://example.org; may be repeated", repeat=True
    )
    max_queue: int = option(64, "choices that may run and wait at a time; more are refused with 429", least=1)
    max_body_bytes: int = option(4_194_304, "size of the largest body", least=1)
    request_timeout: float = option(300.0, "seconds until a request is ended", above=0)
    drain: float = option(30.0, "seconds that requests have to end when the server stops", least=0)

    def __post_init__(self) -> None:
        self.api_key = self.api_key or os.environ.get("DUAL_HEAD_API_KEY") or None
        self.admin_key = self.admin_key or os.environ.get("DUAL_HEAD_ADMIN_KEY") or None
        super().__post_init__()
        if "" in (self.host, self.served_model_name):
            raise DualHeadError("--host and --served_model_name cannot be empty. Leave them out.")


@dataclass(kw_only=True)
class EngineSettings(Options):
    """Sizes of the running batch; what is None follows from the model, its context and the free memory."""

    context_length: int | None = option(
        None, "most tokens of a prompt and its reply [the backbone's context]", least=2, heading="engine"
    )
    page_size: int = option(32, "tokens of a page of the cache", least=4)
    num_blocks: int | None = option(None, "pages of the cache [what --memory_share holds]", least=1)
    max_batch_tokens: int | None = option(None, "tokens of one step [256 on a CPU, else 2048]", least=1)
    max_rows: int | None = option(None, "choices in one step [16 on a CPU, else 64]", least=1)
    memory_share: float | None = option(
        None, "share of the free memory for pages [0.1 on a CPU, else 0.8]", above=0, most=0.95
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached at an address or name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
