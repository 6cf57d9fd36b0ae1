"""What prompts are put to: a model behind an OpenAI-compatible URL.

As text: `URL[,model=NAME][,key=VARIABLE][,name=TEXT]`, where the URL is the
base one (https://api.example.com/v1) and `key` names the environment variable
that holds the key. Invariants: a key is read from the environment when it is
used, and is part of no record; OPENAI_API_KEY goes to its own host unless it is
named for another. Left out: Anthropic's API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from openk2.config.overrides import nearest_name
from openk2.evaluate.testrun import fields

_OPTIONS = ("model", "key", "name")
_DEFAULT_KEY = "OPENAI_API_KEY"
_DEFAULT_KEY_HOST = "api.openai.com"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What the prompt or the run decides.
_RESERVED = ("messages", "stream", "model", "n", "seed", "tools", "tool_choice")


@dataclass(frozen=True, slots=True)
class Price:
    """Per million tokens, in any one currency."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Target:
    """`name` is what reports call it. `identity` says what answers where the URL does not, as with a checkpoint that
    is served on whichever port is free. `extra` is added to each request's body; a null there takes a field out."""

    url: str
    name: str
    model: str = ""  # "": the first that the server lists
    key_env: str = ""
    price: Price | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """From the text form. Without a name it is called by its model, or else by its host."""
        url, *options = (part.strip() for part in text.split(","))
        given: dict[str, str] = {}
        for option in options:
            key, _, value = option.partition("=")
            if key not in _OPTIONS or not value or key in given:
                expected = "each of model=NAME, key=VARIABLE and name=TEXT at most once"
                raise ValueError(f"target {url}: saw {option!r}, expected {expected}{nearest_name(key, _OPTIONS)}")
            given[key] = value
        base = _checked_url(url)
        name = given.get("name") or given.get("model", "").rsplit("/", 1)[-1] or urlsplit(base).netloc
        return cls(url=base, name=name, model=given.get("model", ""), key_env=given.get("key", ""))

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in _LOOPBACK

    def key(self, environment: Mapping[str, str]) -> str:
        """The key to send, "" for none. ValueError where one is named or needed and is not there."""
        parts = urlsplit(self.url)
        own = parts.scheme == "https" and parts.hostname == _DEFAULT_KEY_HOST and parts.port in (None, 443)
        name = self.key_env or (_DEFAULT_KEY if own else "")
        if not name:
            return ""
        key = environment.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            seen = "characters that no key has" if key else "no key"
            raise ValueError(f"target {self.name}: saw {seen} in the environment variable {name}, expected one; set it")
        return key

    def sends_key_in_clear(self) -> bool:
        return bool(self.key_env) and not self.is_loopback and urlsplit(self.url).scheme == "http"


def _checked_url(url: str) -> str:
    """The base URL without a slash at its end."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"target: saw {url!r} ({error}), expected a URL like https://api.example.com/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"target: saw {url!r}, expected a URL like https://api.example.com/v1, or a checkpoint folder")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"target {host}: saw a password, ? or # in the URL, expected none; give a key by key=VARIABLE")
    base = url.rstrip("/")
    if base.endswith("/completions"):
        raise ValueError(f"target: saw {url!r}, expected the base URL, which ends before /chat/completions")
    if not parts.path.strip("/"):
        raise ValueError(f"target: saw {url!r}, expected a base URL with its path; did you mean {base}/v1?")
    return base


def parse_price(text: str) -> tuple[str, Price]:
    """`NAME=IN,OUT`: the target's name and what a million tokens cost."""
    name, _, figures = text.rpartition("=")
    try:
        into, out = (float(part) for part in figures.split(","))
    except ValueError:
        into = out = -1.0
    if not name or not (0 <= into < float("inf") and 0 <= out < float("inf")):
        raise ValueError(f"--price: saw {text!r}, expected NAME=IN,OUT, what a million tokens cost, like k2=0.6,2.5")
    return name, Price(into, out)


def parse_extra(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME={...}`: the target's name and what is added to each request's body."""
    name, _, body = text.partition("=")
    where = f"--extra {name}"
    if not name or not body:
        raise ValueError(f'--extra: saw {text!r}, expected NAME=JSON, like k2={{"top_p": 0.9}}')
    extra = fields.read_json(body, where)
    for key in extra:
        if key in _RESERVED:
            raise ValueError(f"{where}: saw {key!r}, expected nothing that the prompt or another option sets; drop it")
    return name, extra


def with_options(
    targets: Sequence[Target], prices: Mapping[str, Price], extras: Mapping[str, Mapping[str, Any]]
) -> list[Target]:
    """The targets with what was given by their names. ValueError for a name that none has or two have."""
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"targets: saw the name {name!r} twice, expected names that differ; give one a name=")
    for option, given in (("--price", prices), ("--extra", extras)):
        for name in given:
            if name not in names:
                expected = f"one of {', '.join(names)}"
                raise ValueError(f"{option}: saw {name!r}, expected {expected}{nearest_name(name, names)}")
    return [
        replace(target, price=prices.get(target.name, target.price), extra=extras.get(target.name, target.extra))
        for target in targets
    ]
