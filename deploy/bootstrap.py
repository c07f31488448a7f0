"""Sets up what a make target needs: a virtual environment in .venv, and for the tests Debian's servers.

It needs Python 3.11 or newer and nothing else, not even ensurepip, which Debian and Ubuntu leave out.
The life of a run: compare the target's lock file with what .venv says was installed, and leave at once if
they agree. Otherwise, under a lock, make the environment, fetch uv at the version and hash of
locks/uv.txt, and have it install the target's lock file and this checkout. Where uv can't do that, pip
does: it is slower and knows every way in which a machine may be told where its packages come from.
A run that is interrupted leaves a mark, and the next one begins again from an empty environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deploy" / "locks"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / "set-up.json"
UNFINISHED = VENV / "unfinished"
LOG = VENV / "set-up.log"

OLDEST, NEWEST = (3, 11), (3, 14)
TARGETS = {
    "demo": "the demo",
    "test": "the tests",
    "check": "the checks",
    "bench": "the benchmarks",
}
SERVERS = {
    "rabbitmq-server": ("/usr/lib/rabbitmq/bin", "rabbitmq-server"),
    "redis-server": ("", "redis-server"),
    "postgresql": ("/usr/lib/postgresql/*/bin", "postgres"),
    "prometheus": ("", "promtool"),  # it checks deploy/prometheus; it never runs
}
ADVICE = """Is this machine online? A mirror of the package index is named by PIP_INDEX_URL, a company's certificates
by SSL_CERT_FILE, a proxy by HTTPS_PROXY. Whatever the installers printed is in .venv/set-up.log."""


class SetUpFailed(Exception):
    """The set-up can't go on; the message says why and what to do."""


def main(arguments: list[str]) -> int:
    target, *options = arguments or ["help"]
    if target not in TARGETS:
        print(f"usage: python3 deploy/bootstrap.py {'|'.join(TARGETS)} [DEBIAN-PACKAGE ...]")
        return 2
    try:
        set_up_python(target)
        set_up_servers(options, optional=target != "demo" and not os.environ.get("CI"))
    except SetUpFailed as failure:
        print(f"\nThe set-up for {TARGETS[target]} failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the next run begins again.", file=sys.stderr)
        return 130
    return 0


# The Python environment


def set_up_python(target: str) -> None:
    wanted = fingerprint(target)
    if is_set_up(target, wanted):
        return
    with one_at_a_time():
        if is_set_up(target, wanted):  # by the run we waited for
            return
        started = time.monotonic()
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"Setting up {TARGETS[target]} in .venv, once, with Python {version}:", flush=True)
        make_environment()
        UNFINISHED.touch()
        install(target)
        remember(target, wanted)
        UNFINISHED.unlink()
        print(f"Ready after {time.monotonic() - started:.1f} s.\n", flush=True)


def fingerprint(target: str) -> str:
    """What the environment of a target is made from, as one hash: its lock file, and what this project is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packaging = [project["project"], project["build-system"], project["tool"]["hatch"]]
    lock = (LOCKS / f"{target}.txt").read_text()
    return hashlib.sha256(json.dumps([packaging, lock], sort_keys=True).encode()).hexdigest()


def is_set_up(target: str, wanted: str) -> bool:
    return not must_be_remade() and state()["targets"].get(target) == wanted


def must_be_remade() -> bool:
    """Whether there is no environment, half of one, or one of a Python that isn't the right one (any more)."""
    # Make passes on a PYTHON that it was given; otherwise any that we support will do.
    minors = [sys.version_info[1]] if os.environ.get("PYTHON") else range(OLDEST[1], NEWEST[1] + 1)
    return (
        not PYTHON.exists()
        or UNFINISHED.exists()
        or not any((VENV / "lib" / f"python3.{minor}").exists() for minor in minors)
        or state().get("python", str(PYTHON.resolve())) != str(PYTHON.resolve())
    )


def state() -> dict[str, Any]:
    """What was installed: `python`, the interpreter's real path, and `targets`, each with its fingerprint."""
    try:
        return {"targets": {}, **json.loads(STATE.read_text())}
    except (FileNotFoundError, ValueError):
        return {"targets": {}}


def remember(target: str, fingerprint: str) -> None:
    now = {"python": str(PYTHON.resolve()), "targets": {**state()["targets"], target: fingerprint}}
    half = STATE.with_suffix(".half")
    half.write_text(json.dumps(now, indent=1))
    half.replace(STATE)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the checkout, so that two set-ups at once come one after the other."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another set-up in this checkout ...", flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def make_environment() -> None:
    if not must_be_remade():
        return
    import venv  # here, like others below, since most runs don't need it and it takes a while

    with step("an empty environment"):
        if VENV.exists():
            old = VENV.with_suffix(".old")  # a rename can't be interrupted half-way, a removal can
            shutil.rmtree(old, ignore_errors=True)
            VENV.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        VENV.mkdir()
        UNFINISHED.touch()
        venv.EnvBuilder(symlinks=True, with_pip=False).create(VENV)


def install(target: str) -> None:
    lock = LOCKS / f"{target}.txt"
    options = ["--require-hashes", "--no-deps", "-r", str(lock)]
    checkout = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    count = sum("==" in line for line in lock.read_text().splitlines())
    try:
        installer = [str(uv()), "pip", "install", "--python", str(PYTHON)]
        environment = uv_environment(os.environ)
        with step(f"up to {count} packages for {TARGETS[target]}"):
            run([*installer, *options], environment)
        with step("callboard itself, from this checkout"):
            run([*installer, *checkout], environment)
    except (OSError, SetUpFailed) as failure:
        print(f"\n  uv could not do it ({str(failure).splitlines()[0]}); trying pip, which takes longer")
        try:
            installer = [*pip(), "install", "--disable-pip-version-check", "--no-input", "--retries", "2"]
            with step(f"up to {count} packages for {TARGETS[target]}"):
                run([*installer, *options], os.environ)
            with step("callboard itself, from this checkout"):
                run([*installer, *checkout], os.environ)
        except SetUpFailed as last:
            raise SetUpFailed(f"{last}\n\nand uv before it: {failure}\n\n{ADVICE}") from failure


def uv() -> Path:
    """The uv of locks/uv.txt, fetched once."""
    version, _ = pinned("uv")
    program = VENV / "bin" / f"uv-{version}"
    if not program.exists():
        with step("uv, which installs the rest (about 18 MB)"):
            unpack_program(fetch("uv", runs_here), "uv", program)
        shortcut = VENV / "bin" / "uv"
        shortcut.unlink(missing_ok=True)
        shortcut.symlink_to(program.name)
    return program


def unpack_program(wheel: Path, name: str, to: Path) -> None:
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        member = next(item for item in archive.namelist() if item.endswith(f".data/scripts/{name}"))
        half = to.with_suffix(".half")
        half.write_bytes(archive.read(member))
    half.chmod(0o755)
    half.replace(to)
    wheel.unlink()


def pip() -> list[str]:
    """A command that runs pip: Python's own, or where Debian has removed that, one that is fetched."""
    with step("pip"):
        try:
            run([str(PYTHON), "-m", "ensurepip"], os.environ)
        except SetUpFailed:
            wheel = fetch("pip", lambda tag: tag.endswith("-any"))
            return [str(PYTHON), str(wheel / "pip")]
        return [str(PYTHON), "-m", "pip"]


# Fetching one pinned wheel from the package index


def pinned(project: str) -> tuple[str, set[str]]:
    """The version and the permitted SHA-256 hashes of locks/PROJECT.txt."""
    words = (LOCKS / f"{project}.txt").read_text().split()
    version = next(word.partition("==")[2] for word in words if word.startswith(f"{project}=="))
    return version, {word.rpartition(":")[2] for word in words if word.startswith("--hash=sha256:")}


def fetch(project: str, fits: Callable[[str], bool]) -> Path:
    """Download the pinned wheel whose tag fits, and return its path once its hash is proved."""
    import re
    from html import unescape
    from urllib.parse import unquote, urldefrag, urljoin

    version, hashes = pinned(project)
    page_url = f"{index_url(os.environ).rstrip('/')}/{project}/"
    page = download(page_url).decode()
    for link in re.findall(r'href\s*=\s*["\']([^"\']+)', page):
        url = urldefrag(urljoin(page_url, unescape(link))).url
        name = unquote(url.rpartition("/")[2])
        if (
            name.startswith(f"{project}-{version}-")
            and name.endswith(".whl")
            and fits(name.removesuffix(".whl"))
        ):
            content = download(url)
            if hashlib.sha256(content).hexdigest() not in hashes:
                raise SetUpFailed(f"{name} is not the file whose hash deploy/locks/{project}.txt holds")
            wheel = VENV / name
            wheel.write_bytes(content)
            return wheel
    raise SetUpFailed(f"the package index has no {project} {version} for this kind of machine")


def download(url: str) -> bytes:
    import ssl
    from urllib.request import Request, urlopen

    certificates = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), None)
    request = Request(url, headers={"Accept": "text/html", "User-Agent": "callboard-bootstrap"})  # noqa: S310
    tries = 3
    while True:
        try:
            context = ssl.create_default_context(cafile=certificates)
            with urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                content: bytes = answer.read()
                return content
        except OSError as error:
            tries -= 1
            if not tries:
                raise SetUpFailed(f"can't fetch {url.rpartition('@')[2]}: {error}") from error
            time.sleep(1)


def runs_here(tag: str) -> bool:
    """Whether a wheel's tag, such as `uv-1.0-py3-none-musllinux_1_1_x86_64`, is for this machine."""
    import platform

    if sys.platform == "darwin":
        system = "macosx"
    else:
        system = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return system in tag and tag.endswith(f"_{platform.machine()}")


CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")


def index_url(environment: Mapping[str, str]) -> str:
    """Where packages come from, as this machine's settings of uv or pip say."""
    configured = (environment[name] for name in INDEXES if environment.get(name))
    # Public Python packages live at PyPI, on its .org domain, unless the machine says otherwise.
    return (
        next(configured, None)
        or pip_setting("index-url", environment)
        or f"https://{'PyPI'.lower()}.org/simple"
    )


def pip_setting(name: str, environment: Mapping[str, str]) -> str | None:
    """A setting from pip's configuration files, of which a later one wins."""
    import configparser

    home = Path(environment.get("HOME", "/nonexistent"))
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", config / "pip" / "pip.conf"]
    if sys.platform == "darwin":
        files.append(home / "Library" / "Application Support" / "pip" / "pip.conf")
    if special := environment.get("PIP_CONFIG_FILE"):
        files = [*files, Path(special)] if special != os.devnull else []
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error):
        parser.read(files)
    for section in ("install", "global"):
        if value := parser.get(section, name, fallback=None):
            return value
    return None


def uv_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what pip is told about index and certificates said in uv's words."""
    ours = {"UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    if not any(environment.get(name) for name in INDEXES[:2]):
        index = environment.get("PIP_INDEX_URL") or pip_setting("index-url", environment)
        ours |= {"UV_DEFAULT_INDEX": index} if index else {}
    certificates = next((environment[name] for name in CERTIFICATES if environment.get(name)), None)
    certificates = certificates or pip_setting("cert", environment)
    ours |= {"SSL_CERT_FILE": certificates} if certificates else {"UV_SYSTEM_CERTS": "1"}
    return {**environment, **ours}


# Servers from Debian


def set_up_servers(packages: list[str], *, optional: bool) -> None:
    """Install servers where we may; otherwise say how, and fail unless they are optional."""
    missing = [package for package in packages if not is_installed(package)]
    if not missing:
        return
    command = f"apt-get install --no-install-recommends {' '.join(missing)}"
    problem = f"not installed: {', '.join(missing)}"
    become_root = how_to_become_root()
    if shutil.which("apt-get") is None:
        problem += "; install the same servers with this system's own tools"
    elif become_root is None:
        problem += f"; run: sudo {command}"
    else:
        try:
            with step(f"from Debian: {', '.join(missing)}"):
                run([*become_root, "sh", "-c", DEBIAN_INSTALL, "sh", *missing], os.environ)
        except SetUpFailed as failure:
            problem += f"; `{command}` failed: {failure}"
        else:
            return
    if not optional:
        raise SetUpFailed(problem)
    print(f"Note: {problem}\nWhat needs them is skipped.\n", file=sys.stderr)


# A policy-rc.d that answers 101 keeps packages from starting their services. Ours is removed again,
# and where systemd runs, the new services are kept from starting at the next boot.
DEBIAN_INSTALL = """
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
policy=/usr/sbin/policy-rc.d
if ! [ -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
fi
options='-q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0'
apt-get $options update
apt-get $options install --no-install-recommends "$@"
if [ -d /run/systemd/system ]; then systemctl disable "$@" || true; fi
"""


def is_installed(package: str) -> bool:
    folder, program = SERVERS[package]
    in_folder = folder and any(Path("/").glob(f"{folder[1:]}/{program}"))
    return bool(in_folder or shutil.which(program))


def how_to_become_root() -> list[str] | None:
    """A prefix that runs a command as root without asking for a password, or None."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return None


# Telling what goes on


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    print(f"  {what} ... ", end="", flush=True)
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:.1f} s", flush=True)


def run(command: list[str], environment: Mapping[str, str]) -> None:
    """Run a command with its output in the log, a dot every five seconds.

    Raises:
        SetUpFailed: with the lines of output that tell of the failure.
    """
    with LOG.open("a+") if VENV.exists() else temporary_log() as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        begin = log.tell()
        with subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process:
            while True:
                try:
                    process.wait(5)
                    break
                except subprocess.TimeoutExpired:
                    print(".", end="", flush=True)
        if process.returncode:
            log.seek(begin)
            raise SetUpFailed(reason(log.read()) or f"{command[0]} ended with {process.returncode}")


def temporary_log() -> IO[str]:
    import tempfile

    return tempfile.TemporaryFile("w+")


def reason(output: str) -> str:
    """The part of an installer's output that tells what went wrong: its errors, else its last lines."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(("WARNING", "W:"))]
    starts = ("error", "ERROR", "E:", "\N{MULTIPLICATION SIGN}")
    first = next(
        (number for number, line in enumerate(lines) if line.lstrip().startswith(starts)), len(lines) - 8
    )
    return "\n".join(lines[max(first, 0) :][:20])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
