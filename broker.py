"""Wiring, and nothing else: settings, driver, middleware. Connects to nothing.

Exports `broker`, which commands take by this module's name, and `actor`, which declares jobs.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dramatiq

from callboard import ActorDecorator
from callboard.brokers import open_driver
from callboard.brokers.base import Broker
from callboard.envelope import Signer
from callboard.settings import Settings
from callboard.store import open_store
from middleware import stack

HERE = Path(__file__).parent

settings = Settings.load()
store = open_store(settings.store_url, namespace=settings.namespace, folder=HERE)
broker = Broker(
    open_driver(settings.broker_url, namespace=settings.namespace, folder=HERE),
    store=store,
    middleware=stack(
        store,
        keep=timedelta(days=settings.record_retention_days),
        keep_most=settings.record_retention_count,
    ),
    send_deadline=settings.send_deadline,
    max_message_bytes=settings.max_message_bytes,
    park_deadline=settings.park_deadline,
    signer=Signer.parse(settings.signing_keys.get_secret_value()) if settings.signing_keys else None,
    one_host=settings.one_host,
)
dramatiq.set_broker(broker)  # where Dramatiq's pipelines and groups look for it
actor = ActorDecorator(broker)

__all__ = ["actor", "broker"]
