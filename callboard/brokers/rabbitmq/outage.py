"""Why RabbitMQ can't be used, in one sentence that says what to do."""

from __future__ import annotations

import socket
import ssl

from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorPhaseErrorBase,
    AMQPConnectorStackTimeout,
)
from pika.exceptions import (
    AMQPHeartbeatTimeout,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from callboard.brokers.rabbitmq.address import Address

ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
_NOT_ALLOWED = 530


def explain(error: BaseException, address: Address) -> str:
    """A sentence with the host, the port and the vhost, and never the password."""
    error = root_of(error)
    if isinstance(error, ChannelClosedByBroker):
        if error.reply_code == ACCESS_REFUSED:
            return f"RabbitMQ at {address} doesn't permit this to '{address.user}': {error.reply_text}"
        return f"RabbitMQ at {address} refuses: {error.reply_text} ({error.reply_code})"
    if isinstance(error, ProbableAccessDeniedError) or _closed_with(error, _NOT_ALLOWED):
        return (
            f"RabbitMQ at {address} doesn't let '{address.user}' into the vhost '{address.vhost}': "
            "create the vhost, give the user its permissions, or name another in the URL"
        )
    if isinstance(error, AuthenticationError | ProbableAuthenticationError) or _closed_with(
        error, ACCESS_REFUSED
    ):
        return (
            f"RabbitMQ at {address} refuses the user '{address.user}': check the user and password in the URL"
        )
    if isinstance(error, IncompatibleProtocolError):
        advice = "check the port" + ("" if address.tls else ", and whether the URL should be amqps://")
        return f"what answers at {address} doesn't speak AMQP: {advice}"
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return f"what answers at {address} doesn't speak TLS: check the port, and whether the URL should be amqp://"
    return f"RabbitMQ at {address} is away: {_reason(error)}"


def is_refusal(error: BaseException) -> bool:
    """Whether trying again with the same URL can't help."""
    error = root_of(error)
    return isinstance(
        error, AuthenticationError | ProbableAuthenticationError | ProbableAccessDeniedError | ssl.SSLError
    )


def root_of(error: BaseException) -> BaseException:
    """What went wrong, out of pika's wrappings."""
    while True:
        if isinstance(error, AMQPConnectionWorkflowFailed):
            error = error.exceptions[-1]
        elif isinstance(error, AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif error.args and isinstance(error.args[0], AMQPConnectionWorkflowFailed):
            error = error.args[0]
        else:
            return error


def _closed_with(error: BaseException, code: int) -> bool:
    return isinstance(error, ConnectionClosedByBroker) and error.reply_code == code


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is it running?"
    if isinstance(error, socket.gaierror):
        return "the host's name can't be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {error.verify_message}"
    if isinstance(error, TimeoutError | AMQPConnectorStackTimeout):
        return "it doesn't answer"
    if isinstance(error, AMQPHeartbeatTimeout):
        return "it was silent for longer than the heartbeat"
    if isinstance(error, ConnectionClosedByBroker):
        return f"it closed the connection: {error.reply_text} ({error.reply_code})"
    return str(error) or type(error).__name__
