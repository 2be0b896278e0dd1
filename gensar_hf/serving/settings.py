"""Settings of the server, which need none of the packages of the extra [serve]."""

import math
from dataclasses import dataclass, field, fields

from gensar_hf.errors import InputError

_SHORTEST_SECRET = 16


@dataclass
class ServingSettings:
    """Settings of `gensar serve`.

    Raises:
        InputError: a number out of range, or a private server without a token.
    """

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0: all of the machine."})
    port: int = field(default=8000, metadata={"help": "port to listen at; 0: any free one."})
    token: str | None = field(
        default=None,
        metadata={"help": "secret that changes of the catalogue need; default: the variable GENSAR_TOKEN."},
    )
    private: bool = field(default=False, metadata={"help": "whether all requests need the token."})
    page: bool = field(default=True, metadata={"help": "whether / is a page to try the model on."})
    max_batch_size: int = field(default=32, metadata={"help": "requests that the model answers at once."})
    max_wait_ms: float = field(default=3.0, metadata={"help": "how long a request waits for others to join its batch."})
    max_queue: int = field(default=256, metadata={"help": "requests that may wait; further ones get status 429."})
    timeout_s: float = field(default=30.0, metadata={"help": "seconds after which a request gets status 504."})
    max_body_kb: int = field(default=1024, metadata={"help": "size of a request's body, in KiB."})
    max_requests: int = field(default=64, metadata={"help": "requests in one body."})
    max_history: int = field(default=1000, metadata={"help": "events of one history."})
    max_items: int = field(default=10_000, metadata={"help": "item ids in one list, such as candidates."})
    max_top_k: int = field(default=100, metadata={"help": "answers to one request."})

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.startswith("max_") or item.name == "timeout_s":
                lowest = 0 if item.name == "max_wait_ms" else 1
                if not (math.isfinite(value) and value >= lowest):
                    raise InputError(f"--{item.name} must be at least {lowest}; got {value}.")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port must be between 0 and 65535; got {self.port}.")
        if self.token is not None and (len(self.token) < _SHORTEST_SECRET or not self.token.isascii()):
            raise InputError(
                f"The token must have at least {_SHORTEST_SECRET} characters, all of them ASCII; `python -c 'import "
                "secrets; print(secrets.token_urlsafe())'` makes one."
            )
        if self.private and self.token is None:
            raise InputError("--private needs a token; set --token or the variable GENSAR_TOKEN.")
