"""The documentation: its links lead somewhere, its examples run, and its lists are complete."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from dramatiq import results
from prometheus_client import CollectorRegistry

from callboard import errors
from callboard.actor import ActorDecorator, SendOptions
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver
from callboard.dead_letter import DeadLetter
from callboard.envelope import Extras, Headers, Wire
from callboard.metrics import SCHEDULER_METRICS, SHARED_METRICS, WORKER_METRICS, Metrics
from callboard.retry import RetryPolicy
from callboard.store import open_store
from callboard.testing import Jobs, jobs_of
from middleware import stack

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
#: Pages whose Python is parsed and not run: what they import is the reader's own.
ONLY_PARSED = {"README.md", "docs/testing.md", "docs/quickstart.md"}

_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)(```+)(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its examples."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What can follow a `#`, as GitHub makes it of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = sum(
            anchor == other or re.fullmatch(rf"{re.escape(anchor)}-\d+", other) is not None for other in found
        )
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def examples(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The line on which each begins, and its text."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if match[3] == language:
            indent = len(match[1])
            code = "\n".join(line[indent:] for line in match[4].split("\n"))
            yield text.count("\n", 0, match.start()) + 2, code


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(target)
    assert not dead


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in _LINK.findall(index)}
    assert {page for page in DOCS.rglob("*.md") if page not in linked} <= {DOCS / "index.md"}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_examples_parse(page: Path) -> None:
    for line, code in examples(page, "python"):
        # As the body of an async function, for examples that await.
        ast.parse(f"async def example():\n{_indented(code)}", f"{named(page)}:{line}")


def _indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.split("\n")) + "    ...\n"


def test_python_examples_run(tmp_path: Path) -> None:
    """They declare actors and call nothing, or send to queues in memory."""
    script = tmp_path / "examples.py"
    parts = ["import sys\n"]
    for page in PAGES:
        if named(page) not in ONLY_PARSED:
            for number, (line, code) in enumerate(examples(page, "python")):
                where = f"{named(page)}:{line}"
                module = f"{page.stem.replace('-', '_')}_{number}"
                parts.append(f"print({where!r}, file=sys.stderr)\n")
                parts.append(f"exec(compile({code!r}, {where!r}, 'exec'), {{'__name__': {module!r}}})\n")
    script.write_text("".join(parts), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={
            **env,
            "PYTHONPATH": str(ROOT),
            "CALLBOARD_BROKER_URL": "stub:",
            "CALLBOARD_STORE_URL": "memory:",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- the quickstart ------------------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Broker:
    store = open_store("memory:")
    return Broker(StubDriver(), store=store, middleware=stack(store, metrics=Metrics(CollectorRegistry())))


@pytest.fixture
def jobs(broker: Broker) -> Iterator[Jobs]:
    with jobs_of(broker) as lent:
        yield lent


@pytest.fixture
def hello(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The quickstart's actors/hello.py, as it is printed there; but nobody waits for it."""
    wiring = ModuleType("broker")
    vars(wiring).update(broker=broker, actor=ActorDecorator(broker))
    monkeypatch.setitem(sys.modules, "broker", wiring)
    _, code = next(examples(DOCS / "quickstart.md", "python"))
    module: dict[str, Any] = {"__name__": "actors.hello"}
    exec(compile(code, "actors/hello.py", "exec"), module)
    module["time"] = SimpleNamespace(sleep=lambda seconds: None)
    return module["hello"]


def test_the_quickstarts_job_greets(hello: Any, jobs: Jobs) -> None:
    message = hello.send(name="Ada")
    assert message.queue_name == "hello.medium"
    assert jobs.drain().succeeded == 1


def test_the_quickstarts_job_dies_as_told_and_is_mended(
    hello: Any, jobs: Jobs, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = hello.send(name="Grace", language="de")
    jobs.drain(fail=False)
    record = jobs.record(message)
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    assert record.reason == "failed 3 times: KeyError: 'de'"
    assert [event.text for event in record.events] == [
        "attempt 1 failed: KeyError: 'de'",
        "attempt 2 failed: KeyError: 'de'",
        "failed 3 times: KeyError: 'de'",
    ]
    assert all(event.text in text for event in record.events)


# -- lists that must be complete -----------------------------------------------------------------------------


def listed(page: str) -> set[str]:
    """The first words in code of a page's tables and bullets."""
    return set(re.findall(r"`([^`\s(]+)", (DOCS / page).read_text(encoding="utf-8")))


def test_every_error_is_listed() -> None:
    own = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert own <= listed("reference/errors.md")


def test_every_metric_is_listed_and_no_other() -> None:
    metrics = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics(CollectorRegistry()).collect()
    }
    for name, (kind, *_) in {**WORKER_METRICS, **SCHEDULER_METRICS, **SHARED_METRICS}.items():
        metrics.add(f"{name}_total" if kind == "counter" else name)
    assert {name for name in listed("reference/metrics.md") if name.startswith("callboard_")} == metrics


def test_every_option_of_an_actor_is_listed(broker: Broker) -> None:
    words = listed("reference/actor-options.md")
    declared = set(inspect.signature(ActorDecorator.__call__).parameters) - {"self", "model", "options"}
    assert declared <= words
    assert broker.actor_options <= words
    assert set(SendOptions.__slots__) <= words
    assert set(RetryPolicy.__slots__) <= words


def test_every_field_of_a_message_is_listed() -> None:
    words = listed("reference/envelope.md") | set(
        re.findall(r'^ *"(\w+)":', (DOCS / "reference/envelope.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for struct in (Wire, Extras, Headers, DeadLetter):
        assert set(struct.__struct_fields__) <= words, struct


# -- the sentences of troubleshooting -----------------------------------------------------------------------


def _said() -> str:
    """All texts of the code, and of what Dramatiq says of results, in lower case."""
    texts: list[str] = []
    folders = [ROOT / name for name in ("callboard", "middleware", "services")]
    for folder in [*folders, Path(results.__file__).parent]:
        for file in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    pieces = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    texts.append("".join(map(str, pieces)))
    return "\n".join(texts).lower()


def test_each_sentence_of_troubleshooting_is_one_that_callboard_says() -> None:
    said = _said()
    text = (DOCS / "howto/troubleshooting.md").read_text(encoding="utf-8")
    unknown = []
    for bullet in re.findall(r"^- (\*\*.*?)\\\n", text, re.MULTILINE | re.DOTALL):
        for quoted in re.findall(r"\*\*(.+?)\*\*", bullet, re.DOTALL):
            for clause in re.split(r"…|[:;,] ", quoted):  # a sentence may be put together
                words = clause.strip(" \n`\"'.,;:()[]")
                if len(words) > 8 and words.lower() not in said:
                    unknown.append(words)
    assert not unknown
