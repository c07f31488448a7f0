"""What the tests of faults share: producers and a worker whose ledger is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import Ledger, Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Nothing runs yet. What is started ends with the test."""
    environment = os.environ | {
        "LEDGER_FOLDER": str(tmp_path),
        "CALLBOARD_STORE_URL": f"file:{tmp_path}",
        "CALLBOARD_ONE_HOST": "1",
        "CALLBOARD_SEND_DEADLINE": "20",
        "CALLBOARD_LOG_LEVEL": "warning",
    }
    processes = Processes(environment, Ledger(tmp_path))
    yield processes
    processes.stop()
