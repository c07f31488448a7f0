"""The values of an application's own prometheus_client metrics, kept where the worker's supervisor sees them.

prometheus_client makes each number that it counts an object of a class of its choice; in its own way of
serving several processes that is one which keeps a file a process. This one keeps it in the process' block. What
an actor's module counts is thus on the worker's `/metrics` like Callboard's own numbers, to the last increment
before a kill.
"""

from __future__ import annotations

import os
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


class _Place:
    """Where a value is: its floats, in the block or, without one, in this process."""

    __slots__ = ("floats", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.floats: list[float] | memoryview[float] = [0.0, 0.0]

    def move(self, floats: list[float] | memoryview[float]) -> None:
        with self.lock:
            floats[0], floats[1] = self.floats
            self.floats = floats


#: By key. As with prometheus_client's own files, a number that is removed and made again goes on where it was.
_places: dict[bytes, _Place] = {}
_making = threading.Lock()
_block: Block | None = None
_full = False


class SharedValue:
    """A number of prometheus_client, in the place of its `values.MutexValue`."""

    _multiprocess = False

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
        described = Described(typ, metric_name, name, labels, help_text, multiprocess_mode)
        self._place = _place_of(msgspec.json.encode(described))
        self._exemplar: Any = None

    def inc(self, amount: float) -> None:
        """Add to it."""
        place = self._place
        with place.lock:
            place.floats[0] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set it; and when that was, where it matters."""
        place = self._place
        with place.lock:
            place.floats[0], place.floats[1] = value, timestamp or 0.0

    def get(self) -> float:
        """It."""
        return self._place.floats[0]

    def set_exemplar(self, exemplar: Any) -> None:
        """Keep an example of what was counted, in this process."""
        self._exemplar = exemplar

    def get_exemplar(self) -> Any:
        """The example."""
        return self._exemplar


def keep_shareable() -> None:
    """From now on, metrics that are made can be shared. For a worker, before it loads the application.

    Where PROMETHEUS_MULTIPROC_DIR is set, the application wants it otherwise.
    """
    if values.ValueClass is values.MutexValue:
        values.ValueClass = SharedValue


def share_values(block: Block) -> None:
    """Keep the values in a block that others can see. Once, in a process that has just been forked."""
    global _block
    with _making:
        _block = block
        for key, place in _places.items():
            _share(key, place)


def _place_of(key: bytes) -> _Place:
    with _making:
        place = _places.get(key)
        if place is None:
            place = _places[key] = _Place()
            if _block is not None:
                _share(key, place)
        return place


def _share(key: bytes, place: _Place) -> None:
    global _full
    assert _block is not None
    floats = _block.add(key, 2)
    if floats is not None:
        place.move(floats)
    elif not _full:
        _full = True
        log.warning("no room for more of the application's own metrics, some aren't shown")


def _keep_apart() -> None:
    """In a process that was forked by a job: the block is its parent's."""
    global _block, _making
    _making = threading.Lock()
    if _block is not None:
        _block = None
        for place in _places.values():
            place.lock = threading.Lock()
            place.move([0.0, 0.0])


os.register_at_fork(after_in_child=_keep_apart)
