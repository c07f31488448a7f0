"""The file driver: messages wait in one SQLite file in a folder, and no server runs.

    folder/queue.db       the messages (`schema.py`, `messages.py`)
    folder/queue.lock     whoever writes holds it (`writer.py`)
    folder/workers/N.lock held by worker N while it lives, so that its claims end with it (`workers.py`)
    folder/workers/N.bell rung when there is something for worker N, who waits (`bells.py`)
    folder/workers/idle   who waits, and for which queues
    folder/walks/N.lock   held by the walk over queue N (`walk.py`)

A send is one transaction that is on the disk when it returns. A claim is a mark in the message's row; an
ack deletes the row. The kernel drops a worker's lock when the worker dies, however it dies; whoever
notices first marks its messages as redelivered and lets others have them.
"""

from callboard.brokers.file.driver import FileDriver

__all__ = ["FileDriver"]
