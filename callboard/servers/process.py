"""What all private servers share: ports, a folder, a child process and its end.

The life of one: the constructor finds the program, makes the folder and reserves the ports; `start`
returns when the server answers; `kill`, `stop` and `restart` do to it what the name says and keep data
and ports; `close`, or the end of a `with` block, ends it and removes the folder if it made it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from callboard.errors import CallboardError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

HOST = "127.0.0.1"
START_TIMEOUT = 120.0
STOP_TIMEOUT = 60.0
# Below the range from which kernels take the ports of outgoing connections. Inside it, a client that
# keeps dialling a server that is down can be given the very port it dials, and connect to itself.
PORTS = range(15_000, 30_000)


class ServerMissing(CallboardError):
    """A server's program isn't installed; the message says how to install it."""


class ServerFailed(CallboardError):
    """A server ended, or didn't answer in time; the message ends with what it printed last."""


class PrivateServer:
    """A server that this process starts, and that ends with it. Use it in a `with` block.

    Not for sharing between threads. Start it from the main thread: on Linux its death is tied to the
    thread that started it.

    Args:
        folder: where data and logs go; it outlives the server. None makes one that `close` removes.

    Raises:
        ServerMissing: when the program isn't installed.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    _runs_as: int | None = None  # the user and group that the server runs as; None is ours

    def __init__(self, folder: Path | None = None) -> None:
        self._owner = os.getpid()
        self._keeps_folder = folder is not None
        self._reserved: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"callboard-{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self._reserve_port()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """The address that clients connect to."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the server itself; it changes with every start."""
        if self._process is None:
            raise ServerFailed(f"{self.name} isn't running: call start() first")
        return self._process.pid

    @property
    def output(self) -> Path:
        """What the server printed, over all its starts."""
        return self.folder / "output.log"

    def start(self) -> Self:
        """Start it and return when it answers.

        Raises:
            ServerFailed: if it ends, or doesn't answer within two minutes.
        """
        if not self.running:
            self._prepare()
            self._process = self._spawn(self._command(), self._environment())
            self._wait_until_it_answers()
        return self

    def stop(self) -> None:
        """Ask it to end in good order, and wait. The data stays."""
        self._end(self._stop_signal)

    def kill(self) -> None:
        """kill -9, and wait until it is gone. The data stays as it was at that moment."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it in good order and start it on the same data and ports."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend it: connections stay open and nobody answers, as when a cable is cut."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it at once and let go of the ports, and of the folder if it is ours. Twice is fine."""
        if os.getpid() != self._owner:  # a fork inherits our atexit handlers, but not the server
            return
        self.kill()
        while self._reserved:
            self._reserved.pop().close()
        if not self._keeps_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        """Write what the server reads at its start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> Mapping[str, str]:
        return os.environ

    def _answers(self) -> bool:
        """Whether the server serves clients. May raise OSError while it doesn't."""
        raise NotImplementedError

    @classmethod
    def _program(cls, name: str, *folders: str) -> str:
        found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"]))
        if found is None:
            raise ServerMissing(
                f"{name} isn't installed; on Debian and Ubuntu: sudo apt-get install {cls.package}"
            )
        return found

    def _spawn(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal is for us, who then end it when its clients are done.
        with self.output.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - a command of our own making
                [*_dying_with_us(), *command],
                cwd=self.folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._runs_as,
                group=self._runs_as,
                extra_groups=None if self._runs_as is None else [],
            )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self._answers():
                    return
            if not self.running:
                raise ServerFailed(f"{self.name} ended while it started; it printed:\n{self._last_output()}")
            time.sleep(0.02)
        raise ServerFailed(
            f"{self.name} didn't answer within {START_TIMEOUT:.0f} s; it printed:\n{self._last_output()}"
        )

    def _last_output(self) -> str:
        lines = self.output.read_text(errors="replace").splitlines()
        return "\n".join(lines[-20:])

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _reserve_port(self) -> int:
        """A port that nobody else takes, also while the server is down.

        We stay bound to it, without listening: Linux lets a server that sets SO_REUSEADDR, as all of ours
        do, listen there all the same, and refuses it to those who look for a free one.
        """
        for port in random.SystemRandom().sample(PORTS, k=200):
            candidate = socket.socket()
            try:
                candidate.bind((HOST, port))
            except OSError:
                candidate.close()
                continue
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.append(candidate)
            return port
        raise ServerFailed(f"found no free port on {HOST} between {PORTS.start} and {PORTS.stop}")


def _dying_with_us() -> list[str]:
    """A prefix that has the kernel kill a command when the thread that started it ends, however it ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []
