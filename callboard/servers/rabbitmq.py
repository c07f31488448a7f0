"""A private RabbitMQ node.

It has an epmd of its own (Erlang's name service, which otherwise is one daemon for the whole machine, and
stays behind), a cookie and a home of its own, and knows nothing of the machine's configuration.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from callboard.servers.process import HOST, PrivateServer, ServerFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

# Debian's commands in PATH insist on root and switch to the system's user; those in here don't.
SCRIPTS = "/usr/lib/rabbitmq/bin"
CTL_TIMEOUT = 60.0

# What a queue of the delay ladder was just passing on when the node was killed it passes on once more after this
# time. Three minutes, if it isn't set.
_ADVANCED = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 10000}]}].\n"


class PrivateRabbitmq(PrivateServer):
    """A RabbitMQ node from Debian's `rabbitmq-server`; it starts in about six seconds.

    Args:
        folder: where data and logs go; None makes one that `close` removes.
        plugins: names of plugins to enable, such as `rabbitmq_management`.
        settings: lines for `rabbitmq.conf` beyond our own, key to value.
        peer: a node that runs, whose cluster this one joins at its first start.
    """

    name = "rabbitmq"
    package = "rabbitmq-server"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        plugins: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        peer: PrivateRabbitmq | None = None,
    ) -> None:
        self._server = self._program("rabbitmq-server", SCRIPTS)
        self._rabbitmqctl = self._program("rabbitmqctl", SCRIPTS)
        self._epmd_program = self._program("epmd", *map(str, Path("/usr/lib/erlang").glob("erts-*/bin")))
        self._plugins = tuple(plugins)
        self._settings = dict(settings or {})
        self._epmd: subprocess.Popen[bytes] | None = None
        self._peer = peer
        super().__init__(folder)
        self.node = f"callboard-{self.port}@localhost"
        self.management_port = self._reserve_port()
        self._distribution_port = self._reserve_port()
        self._epmd_port: int = peer._epmd_port if peer is not None else self._reserve_port()

    @property
    def url(self) -> str:
        """The default vhost, as the user `guest`."""
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"

    @property
    def management_url(self) -> str:
        """The management API; it answers when `rabbitmq_management` is among the plugins."""
        return f"http://guest:guest@{HOST}:{self.management_port}"

    @property
    def log(self) -> Path:
        return self.folder / "rabbit.log"

    def add_vhost(self, name: str) -> str:
        """Create a vhost that `guest` may do anything in, and return its URL."""
        everything = ", ".join(['<<".*">>'] * 3)
        self.evaluate(
            f'rabbit_vhost:add(<<"{name}">>, <<"{self.name}">>), '
            "rabbit_auth_backend_internal:set_permissions("
            f'<<"guest">>, <<"{name}">>, {everything}, <<"{self.name}">>)'
        )
        return f"amqp://guest:guest@{HOST}:{self.port}/{name}"

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost and all that is in it, closing its connections."""
        self.evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"{self.name}">>)')

    def close_all_connections(self, reason: str = "closed for a test") -> None:
        """Close every client's connection from the server's side, as an operator can."""
        self.evaluate(
            f'[rabbit_networking:close_connection(Pid, "{reason}") || Pid <- rabbit_networking:connections()]'
        )

    def write_down_queues(self) -> None:
        """Have the node write down the queues that were declared just now.

        Hazard: a quorum queue that is declared less than a second before a `kill` of the node is dead
        afterwards and its confirmed messages are gone (3.10.8), since the node keeps the queue's name in a
        file that it writes with a delay. Call this between a declaration and a kill.
        """
        self.evaluate("catch dets:sync(ra_directory_reverse)")

    def set_memory_alarm(self, on: bool) -> None:
        """Block or unblock publishers as if memory had run out."""
        self._set_alarm("memory", on)

    def set_disk_alarm(self, on: bool) -> None:
        """Block or unblock publishers as if the disk were full."""
        self._set_alarm("disk", on)

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node and return what it printed; half a second a call.

        Raises:
            ServerFailed: if it exits with an error; the message holds what it printed.
        """
        return self._run([self._rabbitmqctl, "--quiet", "--node", self.node, *arguments])

    def evaluate(self, expression: str) -> str:
        """Evaluate an Erlang expression inside the node and return its value as text; milliseconds a call.

        Raises:
            ServerFailed: if the node is down or the expression raises.
        """
        if (erl_call := shutil.which("erl_call")) is None:
            return self.ctl("eval", f"{expression}.")
        # Through an error tuple, since erl_call itself exits with 0 when the expression raises.
        guarded = f"try {{ok, begin {expression} end}} catch Kind:Reason -> {{error, Kind, Reason}} end.\n"
        name = ["-sname", self.node, "-c", self._cookie]
        answer = self._run([erl_call, *name, "-timeout", str(int(CTL_TIMEOUT)), "-e"], stdin=guarded)
        if not answer.startswith("{ok, {ok,"):
            raise ServerFailed(f"{self.node} could not evaluate {expression}: {answer}")
        return answer.removeprefix("{ok, {ok,").removesuffix("}}").strip()

    def close(self) -> None:
        super().close()
        if self._epmd is not None and os.getpid() == self._owner:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    @property
    def _cookie(self) -> str:
        return (self.folder / ".erlang.cookie").read_text()

    def _set_alarm(self, resource: str, on: bool) -> None:
        alarm = f"{{resource_limit, {resource}, node()}}"
        self.evaluate(
            f"rabbit_alarm:set_alarm({{{alarm}, []}})" if on else f"rabbit_alarm:clear_alarm({alarm})"
        )

    def _run(self, command: list[str], *, stdin: str = "") -> str:
        done = subprocess.run(  # noqa: S603 - a command of our own making
            command,
            env=self._environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=CTL_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise ServerFailed(f"{Path(command[0]).name} on {self.node}: {done.stdout}{done.stderr}".strip())
        return done.stdout.strip()

    def _prepare(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self._peer._cookie if self._peer is not None else secrets.token_hex(16))
            cookie.chmod(0o400)  # Erlang refuses one that others may read
        settings = {
            "listeners.tcp.default": f"{HOST}:{self.port}",
            "log.file": str(self.log),
            "log.console": "false",
            # A full laptop should not block the tests by an alarm; tests raise alarms on purpose.
            "disk_free_limit.absolute": "10MB",
            **self._settings,
        }
        if self._peer is not None:
            settings |= {
                "cluster_formation.peer_discovery_backend": "classic_config",
                "cluster_formation.classic_config.nodes.1": self._peer.node,
                "cluster_formation.classic_config.nodes.2": self.node,
            }
        if "rabbitmq_management" in self._plugins:
            settings |= {"management.tcp.ip": HOST, "management.tcp.port": str(self.management_port)}
        lines = [f"{key} = {value}\n" for key, value in settings.items()]
        (self.folder / "rabbitmq.conf").write_text("".join(lines))
        if not (advanced := self.folder / "advanced.config").exists():
            advanced.write_text(_ADVANCED)
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        if self._peer is None and (self._epmd is None or self._epmd.poll() is not None):
            epmd = [self._epmd_program, "-port", str(self._epmd_port), "-address", HOST]
            self._epmd = self._spawn(epmd, self._environment())

    def _command(self) -> list[str]:
        return [self._server]

    def _environment(self) -> Mapping[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": folder,  # where the cookie is
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            # The start script then becomes the node, so that our child is the server itself; and -noinput
            # gives back what the variable takes away.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_CONFIG_FILES": f"{folder}/conf.d",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
        }

    def _answers(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame: connection.start


class RabbitmqCluster:
    """Three RabbitMQ nodes of one cluster; it starts in about half a minute. Use it in a `with` block.

    Attributes:
        nodes: the first is the one that clients try first.
    """

    def __init__(self, size: int = 3) -> None:
        first = PrivateRabbitmq()
        self.nodes = [first, *(PrivateRabbitmq(peer=first) for _ in range(size - 1))]

    @property
    def url(self) -> str:
        """All hosts, to be tried in turn."""
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/%2F"

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all nodes at once."""
        for node in reversed(self.nodes):  # the first has the name service of all
            node.close()
