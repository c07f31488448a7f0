"""The temporary folder that a demo happens in, and the settings that point there.

It stays when the demo has ended, with what the jobs made, and with a command, `callboard`, that looks into
it from anywhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_SCRIPT = """\
#!/bin/sh
# The callboard command, on what this demo left behind.
{exports}
cd {checkout} && exec {python} -m callboard.cli "$@"
"""


class DemoFolder:
    """The folder of one demo.

    Attributes:
        root: Its place.
        storage: What jobs read and write.
        database: The SQLite database that exports read.
        mails: The mails that arrived, a file each.
        log: What the worker logged.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="callboard-demo-"))
        self.storage = self.root / "storage"
        self.database = self.root / "airports.db"
        self.mails = self.root / "mails"
        self.log = self.root / "worker.log"
        self.mails.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove it if the demo didn't come to its end; what there is of it is of no use then."""
        if kind is not None:
            shutil.rmtree(self.root, ignore_errors=True)

    def settings(self, *, mail_port: int, broker_url: str | None = None) -> dict[str, str]:
        """The settings that have everything happen here."""
        here = f"file:{self.root}/var"
        return {
            "CALLBOARD_BROKER_URL": broker_url or here,
            "CALLBOARD_STORE_URL": here,
            "CALLBOARD_ONE_HOST": "1",
            "CALLBOARD_STORAGE_URL": f"file:{self.storage}",
            "CALLBOARD_EXPORT_DATABASE_URL": f"sqlite:///{self.database}",
            "CALLBOARD_MAIL_URL": f"smtp://127.0.0.1:{mail_port}?starttls=never",
            "CALLBOARD_MAIL_FROM": "Callboard demo <demo@callboard.example>",
        }

    def write_command(self, settings: Mapping[str, str]) -> Path:
        """Write the command that runs `callboard` with these settings, and return its path."""
        path = self.root / "callboard"
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in settings.items())
        path.write_text(
            _SCRIPT.format(
                exports=exports, checkout=shlex.quote(str(Path.cwd())), python=shlex.quote(sys.executable)
            )
        )
        path.chmod(0o700)
        return path


def with_only(settings: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment that has these settings of Callboard and no others."""
    others = {name: value for name, value in environment.items() if not name.startswith("CALLBOARD_")}
    return {**others, **settings}
