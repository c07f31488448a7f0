"""The core settings: what every process of Callboard needs to know, read from `CALLBOARD_*` variables.

Services keep settings classes of their own beside them. Only `broker.py` and the command line read
settings; everything else receives values.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from callboard.errors import SettingsError


class CallboardSettings(BaseSettings):
    """The base of every settings class: one prefix, one way to fail."""

    model_config = SettingsConfigDict(
        env_prefix="CALLBOARD_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    @classmethod
    def load(cls, **values: object) -> Self:
        """Read the environment.

        Raises:
            SettingsError: naming each variable that is wrong, and why.
        """
        try:
            return cls(**values)  # type: ignore[arg-type]
        except ValidationError as error:
            raise SettingsError(_explain(cls, error)) from error


def _explain(cls: type[BaseSettings], error: ValidationError) -> str:
    prefix = cls.model_config.get("env_prefix", "")
    return "; ".join(
        f"{prefix}{'_'.join(str(part) for part in e['loc'])}".upper() + f": {e['msg']}"
        if e["loc"]
        else e["msg"]  # of several together, which it names
        for e in error.errors()
    )


class Settings(CallboardSettings):
    """Where messages wait, where records are kept, and the limits that hold for every job."""

    broker_url: str = Field(
        "file:var",
        description="Where messages wait: amqp://, amqps://, redis://, file:FOLDER (a relative one lies beside "
        "broker.py), or stub: (memory).",
    )
    store_url: str = Field(
        "file:var",
        description="Where records of jobs are kept: file:FOLDER (one SQLite file in it), redis://, rediss://, "
        "unix:///path/of/socket, or memory:.",
    )
    one_host: bool = Field(
        False,
        description="Whether all producers, workers and schedulers run on this host. Only then may a broker that other "
        "hosts can reach go with a store in a file.",
    )
    namespace: str = Field(
        "",
        pattern=r"^[a-zA-Z0-9_-]{0,40}$",
        description="A prefix for queues, exchanges and keys, for several apps on one server.",
    )
    send_deadline: float = Field(
        5.0, gt=0, description="Seconds within which a send is confirmed, or raises."
    )
    max_message_bytes: int = Field(
        262_144, ge=1024, description="The largest message that a send accepts, in bytes."
    )
    park_deadline: float = Field(
        3600.0,
        gt=0,
        description="Seconds that a job waits for a worker that knows its actor, before it is dead.",
    )
    signing_keys: SecretStr | None = Field(
        None,
        description="Keys that sign messages, newest first: 'id:secret,id:secret'. Unsigned ones are then quarantined.",
    )
    record_retention_days: float = Field(
        30.0, gt=0, description="Days that the store keeps the records of jobs that have ended."
    )
    record_retention_count: int = Field(
        1_000_000,
        ge=0,
        description="Of jobs that have ended, how many records the store keeps, the newest. Dead ones aren't counted.",
    )
    worker_http: str = Field(
        "",
        description="Where callboard worker serves /metrics, /healthz and /readyz: HOST:PORT, such as "
        "127.0.0.1:9191. Nowhere, if it is empty.",
    )
    scheduler_http: str = Field(
        "",
        description="Where callboard scheduler serves /metrics, /healthz and /readyz: HOST:PORT, such as "
        "127.0.0.1:9192. Nowhere, if it is empty.",
    )
    log_format: str = Field(
        "auto",
        pattern="^(auto|console|json)$",
        description="How logs look: console, json, or auto (json without a terminal).",
    )
    log_level: str = Field(
        "info",
        pattern="(?i)^(debug|info|warning|error|critical)$",
        description="The least level that is logged: debug, info, warning, error or critical.",
    )
    environment: str = Field(
        "development",
        pattern="^(development|production)$",
        description="development or production. In production what leaves the host has to be encrypted: "
        "amqps:// and rediss://.",
    )
    allow_plaintext: bool = Field(
        False,
        description="Whether production may use amqp:// and redis:// all the same, in a network that you trust.",
    )

    @model_validator(mode="after")
    def _encrypts_in_production(self) -> Self:
        if self.environment == "production" and not self.allow_plaintext:
            for name, url in (("BROKER_URL", self.broker_url), ("STORE_URL", self.store_url)):
                if host := _sent_in_clear(url):
                    scheme = url.partition(":")[0]
                    raise PydanticCustomError(
                        "plaintext",
                        "CALLBOARD_{name}: in production, {scheme}:// would send passwords and jobs in clear to "
                        "'{host}'; use {scheme}s://, or set CALLBOARD_ALLOW_PLAINTEXT=1 if you trust the network",
                        {"name": name, "scheme": scheme, "host": host},
                    )
        return self


_BETWEEN_URLS = re.compile(r"[;,]\s*(?=[a-z]+://)")
_BETWEEN_HOSTS = re.compile(r"[;,]")


def _sent_in_clear(urls: str) -> str:
    """The first host that is spoken to without TLS over a network; '' if there is none."""
    for url in _BETWEEN_URLS.split(urls.strip()):
        scheme, _, rest = url.partition("://")
        if scheme in ("amqp", "redis"):
            for one in _BETWEEN_HOSTS.split(re.split(r"[/?#]", rest)[0].rpartition("@")[2]):
                host = _host(one)
                if not _is_this_host(host):
                    return host
    return ""


def _host(text: str) -> str:
    try:
        return urlsplit(f"//{text.strip()}").hostname or "localhost"
    except ValueError:
        return text  # which the driver will refuse, in a sentence of its own


def _is_this_host(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
