"""The demo: real jobs on a worker of its own, a kill -9 in their midst, and an account of every one.

It works from outside, as an operator does: it starts `callboard worker` as a command, sends jobs through
the application of the current folder, and reads what became of them from the store, from the broker, and
from what the jobs were to bring about. `folder.py` is where it all happens, `samples.py` the data,
`programme.py` the jobs and how each is proved, `acts.py` what goes wrong on purpose, `account.py` the end.
"""

from __future__ import annotations


def run_demo(*, broker: str = "file") -> int:
    """Run it, and return the exit code: 0 if every job that was sent is done.

    Args:
        broker: Where the jobs wait: 'file', the embedded queue, or 'amqp', a private RabbitMQ.

    Raises:
        DemoNotPossible: It can't begin here; the message says why.
        ServerMissing: RabbitMQ isn't installed.
        CallboardError: What the application raises while it is loaded or asked.
    """
    from callboard.demo.play import play

    return play(broker)


__all__ = ["run_demo"]
