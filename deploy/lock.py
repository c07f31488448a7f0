"""Writes the lock files: for each make target what it installs, with versions and hashes pinned.

Run by `make lock`. Locked versions stay unless pyproject.toml rules them out; `make lock UPGRADE=1` takes
the newest. All targets share one environment, so one resolution, all.txt, gives them their versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib

from deploy.bootstrap import LOCKS, OLDEST, ROOT, VENV, uv_environment

EVERYTHING = LOCKS / "all.txt"
PROJECT = "pyproject.toml"
DEMO_EXTRAS = ["--extra=mail", "--extra=storage", "--extra=images"]
CONTENTS = {
    "all": [PROJECT, "--all-extras", "--group=check", "--group=bench"],
    "demo": [PROJECT, *DEMO_EXTRAS, "--group=demo"],
    "test": [PROJECT, "--all-extras", "--group=test"],
    "check": [PROJECT, "--all-extras", "--group=check"],
    "bench": [PROJECT, *DEMO_EXTRAS, "--group=bench"],
    # What deploy/Dockerfile installs into the image, and what it builds Callboard with.
    "image": [PROJECT, *DEMO_EXTRAS],
    "build": ["--group=build"],
}


def main() -> int:
    upgrade = ["--upgrade"] if os.environ.get("UPGRADE") else []
    for name, options in CONTENTS.items():
        versions = upgrade if name == "all" else [f"--constraints={EVERYTHING}"]
        print(f"deploy/locks/{name}.txt", flush=True)
        compile_lock(name, [*options, *versions], header())
    for installer in ("uv", "pip"):
        print(f"deploy/locks/{installer}.txt", flush=True)
        compile_lock(installer, ["-", *upgrade], "# Written by `make lock`.\n", stdin=installer)
    return 0


def compile_lock(name: str, arguments: list[str], header: str, *, stdin: str = "") -> None:
    """Resolve for every supported Python and platform at once, and name no index in the file."""
    path = LOCKS / f"{name}.txt"
    uv = [str(VENV / "bin" / "uv"), "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    form = ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"]
    python = f"--python-version={OLDEST[0]}.{OLDEST[1]}"
    environment = uv_environment(os.environ)
    command = [*uv, *form, python, f"--output-file={path}", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, input=stdin, text=True, check=True)
    path.write_text(f"{header}{path.read_text()}")


def header() -> str:
    """Says how a lock file came about, and from which dependencies: a test compares that with today's."""
    return f"# Written by `make lock` from the dependencies {dependencies()}; not to be edited by hand.\n"


def dependencies() -> str:
    """A hash of everything in pyproject.toml that a lock file depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    keys = ("requires-python", "dependencies", "optional-dependencies")
    sources = [{key: project["project"].get(key) for key in keys}, project["dependency-groups"]]
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
