"""Why a demo can't begin, or can't go on."""

from __future__ import annotations

from callboard.errors import CallboardError


class DemoNotPossible(CallboardError):
    """Something that the demo needs isn't here, or doesn't work; the message says what and what to do."""
