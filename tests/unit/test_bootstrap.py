from __future__ import annotations

import hashlib
import json
import platform
import sys
from typing import TYPE_CHECKING

import pytest

from deploy import bootstrap, lock

if TYPE_CHECKING:
    from pathlib import Path

PAGE = """
<a href="../../files/tool-1.0-py3-none-any.whl#sha256=00">tool-1.0-py3-none-any.whl</a><br/>
<a data-requires-python="&gt;=3.8" href="https://other.test/tool-1.1-py3-none-any.whl">old</a>
<a href="../../files/tool-1.0.tar.gz">tool-1.0.tar.gz</a>
"""


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for lock files and an environment of the test's own."""
    monkeypatch.setattr(bootstrap, "LOCKS", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    return tmp_path


def lock_of_tool(content: bytes) -> str:
    hashes = ["0" * 64, hashlib.sha256(content).hexdigest()]
    return "# a comment\ntool==1.0 \\\n" + " \\\n".join(f"    --hash=sha256:{each}" for each in hashes) + "\n"


def serve(monkeypatch: pytest.MonkeyPatch, pages: dict[str, bytes]) -> None:
    monkeypatch.setattr(bootstrap, "download", pages.__getitem__)
    monkeypatch.setattr(bootstrap, "index_url", lambda _: "https://index.test/simple/")


def test_a_wheel_is_fetched_from_the_index_when_its_hash_is_the_locked_one(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locks / "tool.txt").write_text(lock_of_tool(b"the wheel"))
    files = {
        "https://index.test/simple/tool/": PAGE.encode(),
        "https://index.test/files/tool-1.0-py3-none-any.whl": b"the wheel",
    }
    serve(monkeypatch, files)

    wheel = bootstrap.fetch("tool", lambda tag: tag.endswith("-any"))

    assert wheel.name == "tool-1.0-py3-none-any.whl"
    assert wheel.read_bytes() == b"the wheel"


def test_a_wheel_with_another_hash_is_refused_and_not_kept(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locks / "tool.txt").write_text(lock_of_tool(b"the wheel"))
    files = {
        "https://index.test/simple/tool/": PAGE.encode(),
        "https://index.test/files/tool-1.0-py3-none-any.whl": b"not the wheel",
    }
    serve(monkeypatch, files)

    with pytest.raises(bootstrap.SetUpFailed, match=r"tool-1\.0-py3-none-any\.whl is not the file"):
        bootstrap.fetch("tool", lambda _: True)
    assert not list(locks.glob("*.whl"))


def test_a_machine_that_no_wheel_is_made_for_is_told_so(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (locks / "tool.txt").write_text(lock_of_tool(b"the wheel"))
    serve(monkeypatch, {"https://index.test/simple/tool/": PAGE.encode()})

    with pytest.raises(bootstrap.SetUpFailed, match=r"has no tool 1\.0 for this kind of machine"):
        bootstrap.fetch("tool", lambda _: False)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "tag"),
    [
        ("linux", "x86_64", "glibc", "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"),
        (
            "linux",
            "aarch64",
            "glibc",
            "py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64",
        ),
        ("linux", "x86_64", "", "py3-none-musllinux_1_1_x86_64"),
        ("darwin", "arm64", "", "py3-none-macosx_11_0_arm64"),
    ],
)
def test_wheels_are_chosen_by_system_machine_and_libc(
    system: str, machine: str, libc: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))

    others = ["py3-none-win_amd64", "py3-none-manylinux_2_17_s390x.manylinux2014_s390x"]
    assert [each for each in [*others, tag] if bootstrap.runs_here(each)] == [tag]


def test_the_index_is_the_one_that_the_environment_names_before_pips_files(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://from-file.test/simple\ncert = /etc/company.pem\n")
    from_file = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(config)}
    from_environment = {**from_file, "PIP_INDEX_URL": "https://from-env.test/simple"}

    assert bootstrap.index_url(from_file) == "https://from-file.test/simple"
    assert bootstrap.index_url(from_environment) == "https://from-env.test/simple"


def test_uv_is_told_in_its_own_words_what_pip_was_told(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://from-file.test/simple\ncert = /etc/company.pem\n")
    told = bootstrap.uv_environment({"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(config)})

    assert told["UV_DEFAULT_INDEX"] == "https://from-file.test/simple"
    assert told["SSL_CERT_FILE"] == "/etc/company.pem"


def test_what_uv_was_told_itself_is_left_alone(tmp_path: Path) -> None:
    told = bootstrap.uv_environment(
        {
            "HOME": str(tmp_path),
            "UV_DEFAULT_INDEX": "https://uv.test/simple",
            "PIP_INDEX_URL": "https://pip.test/simple",
            "SSL_CERT_FILE": "/etc/uv.pem",
            "PIP_CERT": "/etc/pip.pem",
        }
    )

    assert told["UV_DEFAULT_INDEX"] == "https://uv.test/simple"
    assert told["SSL_CERT_FILE"] == "/etc/uv.pem"


def test_an_environment_is_made_again_when_it_is_unfinished_or_its_python_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "bin" / "python"
    for name, path in {
        "PYTHON": python,
        "STATE": tmp_path / "state",
        "UNFINISHED": tmp_path / "unfinished",
    }.items():
        monkeypatch.setattr(bootstrap, name, path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.delenv("PYTHON", raising=False)
    assert bootstrap.must_be_remade()

    (tmp_path / "lib" / "python3.11").mkdir(parents=True)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    bootstrap.remember("demo", "a fingerprint")
    assert not bootstrap.must_be_remade()
    assert bootstrap.is_set_up("demo", "a fingerprint")
    assert not bootstrap.is_set_up("demo", "another fingerprint")
    assert not bootstrap.is_set_up("test", "a fingerprint")

    (tmp_path / "unfinished").touch()
    assert bootstrap.must_be_remade()

    (tmp_path / "unfinished").unlink()
    (tmp_path / "state").write_text(json.dumps({"python": "/usr/bin/python-that-was"}))
    assert bootstrap.must_be_remade()


def test_of_an_installers_output_the_errors_are_shown_and_not_the_warnings() -> None:
    output = (
        "WARNING: Location 'file:///mirror/' is ignored\nCollecting tool\nERROR: No tool\nWARNING: more\n"
    )

    assert bootstrap.reason(output) == "ERROR: No tool"
    assert bootstrap.reason("one\ntwo\n") == "one\ntwo"


@pytest.mark.parametrize("name", lock.CONTENTS)
def test_lock_files_are_made_from_todays_pyproject(name: str) -> None:
    text = (bootstrap.LOCKS / f"{name}.txt").read_text()

    assert text.startswith(lock.header()), (
        "pyproject.toml asks for other packages than are locked: run make lock"
    )


@pytest.mark.parametrize("name", [*lock.CONTENTS, "uv", "pip"])
def test_lock_files_hold_versions_and_hashes_and_no_address(name: str) -> None:
    text = (bootstrap.LOCKS / f"{name}.txt").read_text()
    entries = text.replace("\\\n", "").splitlines()[1:]

    assert entries
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_all_lock_files_agree_on_versions_since_they_share_an_environment() -> None:
    def pins(name: str) -> set[str]:
        lines = (bootstrap.LOCKS / f"{name}.txt").read_text().splitlines()
        # Without the condition of where it is wanted, which may be wider where more asks for it.
        return {line.split()[0] for line in lines if "==" in line and not line.startswith("#")}

    everything = pins("all")
    for name in lock.CONTENTS:
        assert pins(name) <= everything
