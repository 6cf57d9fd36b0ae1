"""What a server is told once, at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeSettings:
    """Names, limits and who may ask. Times are in seconds.

    `temperature` is used where a request says none (0.6 is Kimi K2's own). `max_waiting` counts continuations that
    have no token yet; `receive_timeout` bounds the arrival of a request's headers, and of its body; `grace` is how
    long running requests may go on after SIGTERM. `api_key_env` names the environment variable that holds the key.
    `weights_folder` is where clients may put new weights for the model; None: none are taken.
    `tools` are names of built-in tools and command lines of MCP servers; `tool_timeout` bounds one call.
    """

    model_name: str = "openk2"
    chat: bool = True  # false for a base model, which has not been taught to answer
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    temperature: float = 0.6
    max_waiting: int = 256
    request_timeout: float = 600.0
    receive_timeout: float = 30.0
    max_body_bytes: int = 16 * 2**20
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    api_key_env: str = ""
    tools: tuple[str, ...] = ()
    tool_timeout: float = 30.0
    grace: float = 30.0
    weights_folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_waiting", "request_timeout", "receive_timeout", "max_body_bytes", "tool_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"serve: saw {name} {getattr(self, name)}, expected more than 0")
        for name in ("grace", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"serve: saw {name} {getattr(self, name)}, expected at least 0")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"serve: saw port {self.port}, expected 0 to 65535")

    @property
    def hosts(self) -> frozenset[str] | None:
        """The names a Host header may hold; None where any may.

        A page of another site can have its own name resolve to this computer (DNS rebinding): then the browser sends
        that name.
        """
        if self.host in LOOPBACK:
            return frozenset({*LOOPBACK, *map(str.lower, self.allow_hosts)})
        return frozenset(map(str.lower, self.allow_hosts)) or None
