"""Servers of one's own: a RabbitMQ, Redis or PostgreSQL that is private to the process that starts it.

The demo and the tests run against real servers without touching the machine's: each is an ordinary
child process from the installed package, with its data in a folder of its own, on the loopback and on
free ports. It dies with its owner, even when the owner is killed.
"""

from __future__ import annotations

from callboard.servers.postgresql import PrivatePostgresql
from callboard.servers.process import PrivateServer, ServerFailed, ServerMissing
from callboard.servers.rabbitmq import PrivateRabbitmq, RabbitmqCluster
from callboard.servers.redis import PrivateRedis

__all__ = [
    "PrivatePostgresql",
    "PrivateRabbitmq",
    "PrivateRedis",
    "PrivateServer",
    "RabbitmqCluster",
    "ServerFailed",
    "ServerMissing",
]
