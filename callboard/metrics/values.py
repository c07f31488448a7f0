"""The values of an application's own prometheus_client metrics, kept where the worker's supervisor sees them.

prometheus_client makes each number that it counts an object of a class of its choice; in its own way of
serving several processes that is one which keeps a file a process. This one keeps it in the process' block. What
an actor's module counts is thus on the worker's `/metrics` like Callboard's own numbers, to the last increment
before a kill.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
from prometheus_client import values

from callboard.loggers import get_logger
from callboard.metrics.blocks import Block

log = get_logger(__name__)


class Described(msgspec.Struct, frozen=True, array_like=True):
    """Which number a value is: the key of its entry, as JSON. Its floats are the value, and when it was set."""

    kind: str  # prometheus_client's name of it: counter, gauge, histogram, summary, ...
    family: str
    sample: str
    labels: tuple[tuple[str, str], ...]
    help: str
    mode: str  # how a gauge of several processes is made one

    @property
    def lasts(self) -> bool:
        """Whether it still counts when its process is dead."""
        return self.kind != "gauge" or self.mode in ("min", "max", "mostrecent")


class SharedValue:
    """A number of prometheus_client, in the place of its `values.MutexValue`."""

    _multiprocess = False
    _block: Block | None = None
    _early: list[SharedValue] = []
    _full = False

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: tuple[str, ...],
        labelvalues: tuple[str, ...],
        help_text: str,
        multiprocess_mode: str = "",
        **more: Any,
    ) -> None:
        labels = tuple(zip(labelnames, labelvalues, strict=True))
        self._key = msgspec.json.encode(
            Described(typ, metric_name, name, labels, help_text, multiprocess_mode)
        )
        self._lock = threading.Lock()
        self._value = 0.0
        self._exemplar: Any = None
        self._shown: list[float] | memoryview[float] = [0.0, 0.0]
        if SharedValue._block is None:
            SharedValue._early.append(self)
        else:
            self._show(SharedValue._block)

    def _show(self, block: Block) -> None:
        shown = block.add(self._key, 2)
        if shown is not None:
            shown[0], shown[1] = self._value, self._shown[1]
            self._shown = shown
        elif not SharedValue._full:
            SharedValue._full = True
            log.warning("no room for more of the application's own metrics, some aren't shown")

    def inc(self, amount: float) -> None:
        """Add to it."""
        with self._lock:
            self._shown[0] = self._value = self._value + amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set it; and when that was, where it matters."""
        with self._lock:
            self._shown[0] = self._value = float(value)
            self._shown[1] = timestamp or 0.0

    def get(self) -> float:
        """It."""
        with self._lock:
            return self._value

    def set_exemplar(self, exemplar: Any) -> None:
        """Keep an example of what was counted, in this process."""
        with self._lock:
            self._exemplar = exemplar

    def get_exemplar(self) -> Any:
        """The example."""
        with self._lock:
            return self._exemplar


def keep_shareable() -> None:
    """From now on, metrics that are made can be shared. For a worker, before it loads the application.

    Where PROMETHEUS_MULTIPROC_DIR is set, the application wants it otherwise.
    """
    if values.ValueClass is values.MutexValue:
        values.ValueClass = SharedValue


def share_values(block: Block) -> None:
    """Keep the values in a block that others can see, too. Once, in a process that has just been forked."""
    SharedValue._block = block
    for value in SharedValue._early:
        value._show(block)
    SharedValue._early.clear()
