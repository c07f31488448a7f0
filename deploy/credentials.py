"""Makes the passwords and keys of a deployment, and the files that hand them out.

    python3 -m deploy.credentials deploy/secrets

Nobody has to know a password: each is random, and what the servers are given is its hash. In the folder are then

    definitions.json  for RabbitMQ: rabbitmq/definitions.json with the hashes of its users' passwords
    users.acl         for Redis: redis/users.acl with the same
    worker.env        settings of workers and schedulers: the addresses with their passwords, and the signing key
    producer.env      settings of what only sends
    monitor.env       a user for RabbitMQ's management UI, who may look and change nothing

It needs Python's standard library alone. A folder that has credentials is left as it is: to make new ones, make
them in another folder, and exchange it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import secrets
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
VHOST = "callboard"
_FILES = ("definitions.json", "users.acl", "worker.env", "producer.env", "monitor.env")


@dataclass(frozen=True)
class Addresses:
    """Where workers reach the servers: URLs without user, password and path, perhaps with options behind a `?`."""

    broker: str = "amqp://rabbitmq:5672"
    store: str = "redis://redis:6379"

    def broker_url(self, user: str, password: str) -> str:
        return _complete(self.broker, user, password, VHOST)

    def store_url(self, user: str, password: str) -> str:
        return _complete(self.store, user, password, "0")


def _complete(address: str, user: str, password: str, path: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc}", path=f"/{path}").geturl()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m deploy.credentials", description="Make new credentials."
    )
    parser.add_argument("folder", type=Path, help="where they go; git and Docker ignore deploy/secrets")
    parser.add_argument("--broker", default=Addresses.broker, help="where RabbitMQ is (%(default)s)")
    parser.add_argument("--store", default=Addresses.store, help="where Redis is (%(default)s)")
    options = parser.parse_args(arguments)
    existing = [name for name in _FILES if (options.folder / name).exists()]
    if existing:
        print(
            f"{options.folder} has credentials already ({existing[0]}); name another folder.", file=sys.stderr
        )
        return 1
    make(options.folder, Addresses(options.broker, options.store))
    print(f"Credentials are in {options.folder}. Keep it out of git, images and backups that others read.")
    return 0


def make(folder: Path, addresses: Addresses) -> None:
    """Write the files of a deployment into a folder, which is made if it isn't there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    definitions = json.loads((HERE / "rabbitmq" / "definitions.json").read_text())
    # A user of the same name in Redis has the same password.
    passwords = {user["name"]: secrets.token_urlsafe(32) for user in definitions["users"]}
    for user in definitions["users"]:
        user["password_hash"] = rabbitmq_hash(passwords[user["name"]])
    # The servers run as users of their own and have to read these two; their passwords can't be guessed from hashes.
    _write(folder / "definitions.json", json.dumps(definitions, indent=2) + "\n", mode=0o644)
    _write(folder / "users.acl", redis_users(passwords), mode=0o644)

    signing_key = f"{datetime.now(UTC):%Y%m%d}:{secrets.token_urlsafe(32)}"
    for role in ("worker", "producer"):
        user = f"callboard-{role}"
        settings = {
            "CALLBOARD_BROKER_URL": addresses.broker_url(user, passwords[user]),
            "CALLBOARD_STORE_URL": addresses.store_url(user, passwords[user]),
            "CALLBOARD_SIGNING_KEYS": signing_key,
        }
        _write(folder / f"{role}.env", _lines(settings), mode=0o600)
    monitor = "callboard-monitor"
    login = {"RABBITMQ_USER": monitor, "RABBITMQ_PASSWORD": passwords[monitor]}
    _write(folder / "monitor.env", _lines(login), mode=0o600)


def rabbitmq_hash(password: str) -> str:
    """A password as RabbitMQ keeps it: four bytes of salt, and the SHA-256 of both, in Base64."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def redis_users(passwords: dict[str, str]) -> str:
    """redis/users.acl with the hashes of passwords; users without one may log in with none."""
    lines = []
    for line in (HERE / "redis" / "users.acl").read_text().splitlines():
        _, name, rights = line.split(" ", 2)
        login = ""
        if name in passwords:
            login = f"#{hashlib.sha256(passwords[name].encode()).hexdigest()} "
        elif name != "default":
            login = "nopass "
        lines.append(f"user {name} {login}{rights}")
    return "\n".join(lines) + "\n"


def _lines(settings: dict[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _write(path: Path, text: str, *, mode: int) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)
    path.chmod(mode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
