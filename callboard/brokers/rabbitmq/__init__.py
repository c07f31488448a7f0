"""RabbitMQ: quorum queues, confirmed publishing, delays on a ladder of queues.

A process has two connections, for any number of queues: one that publishes, and one that claims (a walk over
dead letters brings a third while it lasts). Each belongs to a thread of its own.
"""

from callboard.brokers.rabbitmq.driver import RabbitmqDriver

__all__ = ["RabbitmqDriver"]
