"""How often a process that runs jobs looks for garbage in cycles.

Claimed messages live for a moment, and by Python's own measure some 700 new objects are reason enough to look
through them all: of a short job's time that took a tenth. Garbage without cycles goes at once as ever.
"""

from __future__ import annotations

import gc

#: New objects between two looks: some megabytes, if all of them are garbage.
_NEW_OBJECTS = 10_000


def look_for_garbage_less_often() -> None:
    """Leave out what is there already, which stays, and look at what is new only when it is much.

    An application that has switched the collector off, or has asked for fewer looks, keeps its will.
    """
    gc.freeze()
    new, *older = gc.get_threshold()
    if 0 < new < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *older)
