"""Mails arrive once, complete and over TLS; what is wrong with one is found before it is sent."""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from callboard.errors import CallboardError, MissingExtra, Permanent, SettingsError
from services import mailer, storage
from services.mailer import (
    InvalidAddress,
    InvalidSubject,
    Mailer,
    MailNotConfigured,
    MailRejected,
    MailServer,
    MailTemporary,
    MailTooLarge,
    SmtpConnections,
    TemplateFailed,
    Templates,
    UnknownTemplate,
)
from services.storage import InvalidKey, LocalStorage, ObjectNotFound
from tests.unit.services.smtp_sink import Sink, smtp_sink

trustme = pytest.importorskip("trustme")
pytest.importorskip("jinja2")
pytest.importorskip("mjml")

Send = Callable[..., Mailer]


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    for name, files in {
        "plain": {"subject.txt": "Hello {{ name }}\n", "body.txt": "Dear {{ name }},\nyours.\n"},
        "html": {
            "subject.txt": "Hello",
            "body.html": "<h1>Dear {{ name }}</h1><p>See <a href='https://x.org/'>this</a></p>",
        },
        "mjml": {
            "subject.txt": "Hello",
            "body.mjml": "<mjml><mj-body><mj-section><mj-column><mj-text>Dear {{ name }}</mj-text>"
            "</mj-column></mj-section></mj-body></mjml>",
        },
        "bare": {"body.txt": "no subject"},
        "empty": {"subject.txt": "x"},
        "escape": {"subject.txt": "x", "body.txt": "{{ ''.__class__.__mro__ }}"},
        "broken": {"subject.txt": "x", "body.txt": "\n{% if %}"},
        "broken-mjml": {"subject.txt": "x", "body.mjml": "<mjml><mj-body>"},
        "wrong-type": {"subject.txt": "x", "body.txt": "{{ name + 1 }}"},
    }.items():
        (tmp_path / "templates" / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "templates" / name / file).write_text(text)
    return tmp_path / "templates"


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


@pytest.fixture
def make(templates: Path, files: LocalStorage) -> Iterator[Callable[..., Mailer]]:
    """Builds mailers to a sink, and closes their connections."""
    made: list[Mailer] = []

    def make_mailer(
        sink: Sink, *, url: str = "smtp://127.0.0.1:{port}?starttls=never", **options: object
    ) -> Mailer:
        idle = options.pop("idle", 30)
        connections = SmtpConnections(MailServer.parse(url.format(port=sink.port)), timeout=30, idle=idle)  # type: ignore[arg-type]
        values = {
            "sender": "Jobs <jobs@example.org>",
            "storage": files,
            "templates": Templates(templates),
            **options,
        }
        made.append(Mailer(connections=connections, **values))  # type: ignore[arg-type]
        return made[-1]

    yield make_mailer
    for one in made:
        one.close()


@pytest.fixture
def sink() -> Iterator[Sink]:
    with smtp_sink() as running:
        yield running


@pytest.fixture(scope="module")
def authority() -> object:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: object, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))  # type: ignore[attr-defined]
    return path


@pytest.fixture
def tls(authority: object) -> ssl.SSLContext:
    return server_tls(authority, "127.0.0.1")


def server_tls(authority: object, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)  # type: ignore[attr-defined]
    return context


def parts(mail: EmailMessage) -> dict[str, str]:
    return {
        part.get_content_type(): part.get_content()
        for part in mail.walk()
        if part.get_content_maintype() == "text"
    }


def test_a_mail_arrives_with_its_headers_and_text(sink: Sink, make: Send) -> None:
    report = make(sink).send(
        ["Ada <ada@example.org>", "bob@example.org"], "plain", {"name": "Ada"}, message_id="job-1"
    )

    (mail,) = sink.mails
    assert report.accepted == ("ada@example.org", "bob@example.org")
    assert report.refused == {}
    assert sink.envelopes[0].mail_from == "jobs@example.org"
    assert sink.envelopes[0].rcpt_tos == ["ada@example.org", "bob@example.org"]
    assert mail["From"] == "Jobs <jobs@example.org>"
    assert mail["To"] == "Ada <ada@example.org>, bob@example.org"
    assert mail["Subject"] == "Hello Ada"
    assert mail["Date"] and mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content().replace("\r\n", "\n") == "Dear Ada,\nyours.\n"


def test_the_message_id_is_made_from_the_job_id_so_a_repeat_has_the_same(sink: Sink, make: Send) -> None:
    one = make(sink)
    for _ in range(2):
        one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="0198c5d2-7f3a-7c11")
    report = one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="clean:2026-07-01T03:00:00")

    assert [mail["Message-ID"] for mail in sink.mails] == [
        "<0198c5d2-7f3a-7c11@example.org>",
        "<0198c5d2-7f3a-7c11@example.org>",
        "<clean=3A2026-07-01T03=3A00=3A00@example.org>",
    ]
    assert report.message_id == sink.mails[2]["Message-ID"]


@pytest.mark.parametrize("template", ["html", "mjml"])
def test_an_html_mail_has_a_text_part_that_is_derived_from_it(sink: Sink, make: Send, template: str) -> None:
    make(sink).send("ada@example.org", template, {"name": "Ada"}, message_id="1")

    (mail,) = sink.mails
    assert mail.get_content_type() == "multipart/alternative"
    found = parts(mail)
    assert "Dear Ada" in found["text/html"] and "<" in found["text/html"]
    assert found["text/plain"].strip().startswith("Dear Ada") and "<" not in found["text/plain"]


def test_letters_beyond_ascii_arrive_and_the_mail_is_seven_bit(sink: Sink, make: Send) -> None:
    make(sink).send(
        "J\u00f6rg <joerg@b\u00fccher.example>", "plain", {"name": "J\u00f6rg \u2713"}, message_id="1"
    )

    (mail,) = sink.mails
    assert mail["Subject"] == "Hello J\u00f6rg \u2713"
    assert "Dear J\u00f6rg \u2713" in mail.get_content()
    assert sink.envelopes[0].rcpt_tos == ["joerg@xn--bcher-kva.example"]
    assert isinstance(sink.envelopes[0].content, bytes) and sink.envelopes[0].content.isascii()


def test_what_stands_in_data_stays_as_it_is(sink: Sink, make: Send) -> None:
    evil = "{{7*7}} {% raw %} <script>alert(1)</script>"

    for template in ("plain", "html", "mjml"):
        make(sink).send("ada@example.org", template, {"name": evil}, message_id="1", subject=f"Re: {evil}")

    for mail in sink.mails:
        assert mail["Subject"] == f"Re: {evil}"
        found = parts(mail)
        assert evil in found["text/plain"]
        if html := found.get("text/html"):
            assert "{{7*7}} {% raw %}" in html
            assert "<script>" not in html and "&lt;script&gt;" in html


def test_data_cant_make_mjml_include_a_file(sink: Sink, make: Send, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("<mj-text>secret</mj-text>")

    make(sink).send(
        "a@example.org", "mjml", {"name": f'<mj-include path="{tmp_path}/secret" />'}, message_id="1"
    )

    assert "mj-include" in parts(sink.mails[0])["text/plain"]


def test_attachments_come_from_storage(sink: Sink, make: Send, files: LocalStorage) -> None:
    files.put("reports/may.csv", b"a,b\r\n1,2\r\n")
    files.put("reports/r\u00e9sum\u00e9.csv.gz", b"\x1f\x8b\x00")

    make(sink).send(
        "ada@example.org",
        "html",
        {"name": "Ada"},
        message_id="1",
        attachments=["reports/may.csv", "reports/r\u00e9sum\u00e9.csv.gz"],
    )

    (mail,) = sink.mails
    attached = [
        (part.get_filename(), part.get_content_type(), part.get_payload(decode=True))
        for part in mail.iter_attachments()
    ]
    assert attached == [
        ("may.csv", "text/csv", b"a,b\r\n1,2\r\n"),
        ("r\u00e9sum\u00e9.csv.gz", "application/octet-stream", b"\x1f\x8b\x00"),
    ]
    assert "Dear Ada" in parts(mail)["text/html"]


@pytest.mark.parametrize(
    ("key", "error"), [("../../etc/passwd", InvalidKey), ("missing.pdf", ObjectNotFound)]
)
def test_an_attachment_that_cant_be_had_sends_nothing(
    sink: Sink, make: Send, key: str, error: type[CallboardError]
) -> None:
    with pytest.raises(error):
        make(sink).send("ada@example.org", "plain", {"name": "Ada"}, message_id="1", attachments=[key])

    assert not sink.connections


def test_a_mail_over_the_limit_is_refused_before_it_is_sent(
    sink: Sink, make: Send, files: LocalStorage
) -> None:
    files.put("one", b"x" * 900)

    with pytest.raises(MailTooLarge, match="over the limit of 1,000"):
        make(sink, max_bytes=1000).send(
            "a@example.org", "plain", {"name": "A"}, message_id="1", attachments=["one"]
        )
    with pytest.raises(Permanent, match="over the limit of 100"):
        make(sink, max_bytes=1000).send(
            "a@example.org", "plain", {"name": "A"}, message_id="1", attachments=["one"] * 2
        )

    assert not sink.connections


@pytest.mark.parametrize(
    "address",
    [
        "ada@example.org\r\nBcc: eve@example.org",
        "ada@example.org\n",
        "Ada\r\nBcc: eve@example.org <ada@example.org>",
        "ada@example.org, eve@example.org",
        "ada",
        "",
        "@example.org",
        "ada@",
        "ada@exa mple.org",
        "ada@example.org>\x00",
        "<ada@example.org> <eve@example.org>",
        "ad\u00e4@example.org",
        "ada\u2028@example.org",
        "ada@-.org",
    ],
)
def test_an_address_with_a_line_break_or_that_is_none_is_refused(
    sink: Sink, make: Send, address: str
) -> None:
    with pytest.raises(InvalidAddress) as raised:
        make(sink).send(["bob@example.org", address], "plain", {"name": "Ada"}, message_id="1")

    assert isinstance(raised.value, Permanent)
    assert not sink.connections


@pytest.mark.parametrize(
    "text", ["Hi\r\nBcc: eve@example.org", "Hi\nx", "Hi\r", "Hi\x00", "Hi\u2028x", "Hi\x0bx", " "]
)
def test_a_subject_with_a_line_break_is_refused(sink: Sink, make: Send, text: str) -> None:
    with pytest.raises(InvalidSubject):
        make(sink).send("ada@example.org", "plain", {"name": "Ada"}, message_id="1", subject=text)

    assert not sink.connections


def test_a_line_break_that_data_brings_into_a_templates_subject_is_refused(sink: Sink, make: Send) -> None:
    for name in ("Ada\r\nBcc: eve@example.org", "Ada\n"):
        with pytest.raises(InvalidSubject):
            make(sink).send("ada@example.org", "plain", {"name": name}, message_id="1")

    assert not sink.connections


@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        ("plian", UnknownTemplate, "did you mean 'plain'"),
        ("../templates/plain", UnknownTemplate, "no mail template"),
        ("", UnknownTemplate, "no mail template"),
        ("plain", TemplateFailed, "plain/subject.txt' lacks a value: 'name' is undefined"),
        ("escape", TemplateFailed, "escape/body.txt"),
        ("broken", TemplateFailed, "broken/body.txt', line 2, is wrong"),
        ("broken-mjml", TemplateFailed, "broken-mjml/body.mjml' is no valid MJML"),
        ("empty", TemplateFailed, "neither body.mjml, body.html nor body.txt"),
        ("bare", Permanent, "pass a subject"),
    ],
)
def test_a_template_that_is_unknown_or_wrong_is_refused_by_name(
    sink: Sink, make: Send, template: str, error: type[Permanent], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        make(sink).send("ada@example.org", template, {}, message_id="1")

    assert isinstance(raised.value, Permanent)
    assert not sink.connections


def test_a_value_of_the_wrong_kind_is_a_permanent_error(sink: Sink, make: Send) -> None:
    with pytest.raises(TemplateFailed, match="can't use the values"):
        make(sink).send("ada@example.org", "wrong-type", {"name": "x"}, message_id="1")


def test_a_mail_without_recipients_is_refused(sink: Sink, make: Send) -> None:
    with pytest.raises(InvalidAddress, match="at least one"):
        make(sink).send([], "plain", {"name": "Ada"}, message_id="1")


def test_a_recipient_who_is_named_twice_gets_one_mail(sink: Sink, make: Send) -> None:
    make(sink).send(["ada@example.org", "Ada <ada@example.org>"], "plain", {"name": "Ada"}, message_id="1")

    assert sink.envelopes[0].rcpt_tos == ["ada@example.org"]


def test_mails_in_a_row_share_one_connection(sink: Sink, make: Send) -> None:
    one = make(sink)
    for number in range(5):
        one.send("ada@example.org", "plain", {"name": "Ada"}, message_id=str(number))

    assert len(sink.mails) == 5
    assert len(sink.connections) == 1


def test_threads_never_share_a_connection_at_the_same_time(sink: Sink, make: Send) -> None:
    one = make(sink)
    errors: list[Exception] = []

    def send(number: int) -> None:
        try:
            for repeat in range(5):
                one.send("ada@example.org", "plain", {"name": "Ada"}, message_id=f"{number}-{repeat}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len({mail["Message-ID"] for mail in sink.mails}) == 20
    assert 1 <= len(sink.connections) <= 4


def test_a_connection_that_the_server_dropped_is_replaced(sink: Sink, make: Send) -> None:
    one = make(sink)
    one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")
    sink.drop_all()

    one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="2")

    assert len(sink.mails) == 2
    assert len(sink.connections) == 2


def test_an_idle_connection_is_closed_by_itself(sink: Sink, make: Send) -> None:
    make(sink, idle=0.05).send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")

    sink.wait_until(lambda: sink.connections[0].closed)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_connection_alone(sink: Sink, make: Send) -> None:
    one = make(sink)
    one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")

    child = os.fork()
    if child == 0:
        try:
            one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="2")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="3")

    assert [mail["Message-ID"][1] for mail in sink.mails] == ["1", "2", "3"]
    assert len(sink.connections) == 2, "the parent's first, the child's own, and no third"


def test_a_4xx_answer_is_worth_another_attempt(sink: Sink, make: Send) -> None:
    sink.answer_data = "451 try again later"

    with pytest.raises(MailTemporary, match="451 to the mail: try again later") as raised:
        make(sink).send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")
    assert not isinstance(raised.value, Permanent)


def test_a_5xx_answer_is_permanent(sink: Sink, make: Send) -> None:
    sink.answer_data = "554 that is spam"

    with pytest.raises(MailRejected, match="554 to the mail: that is spam") as raised:
        make(sink).send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")
    assert isinstance(raised.value, Permanent)


def test_a_mail_that_the_server_finds_too_large_is_permanent(make: Send) -> None:
    with smtp_sink(size_limit=1000) as sink, pytest.raises(MailRejected, match="552"):
        make(sink).send("ada@example.org", "plain", {"name": "A" * 2000}, message_id="1", subject="x")


def test_recipients_who_are_refused_for_good_are_reported_and_the_others_get_the_mail(
    sink: Sink, make: Send
) -> None:
    sink.answer_rcpt = lambda address: "550 no such user" if address.startswith("bob") else "250 OK"

    report = make(sink).send(["ada@example.org", "bob@example.org"], "plain", {"name": "x"}, message_id="1")

    assert report.accepted == ("ada@example.org",)
    assert report.refused == {"bob@example.org": "550 no such user"}
    assert sink.envelopes[0].rcpt_tos == ["ada@example.org"]
    with pytest.raises(MailRejected, match=r"bob@example\.org: 550 no such user"):
        make(sink).send("bob@example.org", "plain", {"name": "x"}, message_id="2")


def test_one_recipient_who_is_put_off_puts_off_the_mail_before_anyone_has_it(sink: Sink, make: Send) -> None:
    sink.answer_rcpt = lambda address: "450 greylisted" if address.startswith("bob") else "250 OK"
    one = make(sink)

    with pytest.raises(MailTemporary, match=r"bob@example\.org: 450 greylisted; nothing was sent"):
        one.send(["ada@example.org", "bob@example.org"], "plain", {"name": "x"}, message_id="1")
    assert sink.mails == []

    sink.answer_rcpt = lambda address: "250 OK"
    one.send(["ada@example.org", "bob@example.org"], "plain", {"name": "x"}, message_id="1")
    assert len(sink.mails) == 1


def test_a_server_that_cant_be_reached_is_worth_another_attempt(sink: Sink, make: Send) -> None:
    sink.port = 1

    with pytest.raises(MailTemporary, match=r"no mail to 127\.0\.0\.1:1: .*refused"):
        make(sink).send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_server_that_never_answers_is_given_up_after_the_timeout(
    files: LocalStorage, templates: Path, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        one = Mailer(
            connections=SmtpConnections(MailServer.parse(url), timeout=0.1),
            sender="jobs@example.org",
            storage=files,
            templates=Templates(templates),
        )
        with pytest.raises(MailTemporary, match="timed out"):
            one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_a_log_in_goes_over_tls(make: Send, tls: ssl.SSLContext, ca_file: Path, scheme: str) -> None:
    at_once, later = (None, tls) if scheme == "smtp" else (tls, None)
    with smtp_sink(password=b"p@ss:word", tls=at_once, starttls=later) as sink:
        one = make(sink, url=f"{scheme}://ada:p%40ss%3Aword@127.0.0.1:{{port}}?ca={ca_file}")
        one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")
        one.close()

        assert sink.logins == [(b"ada", b"p@ss:word")]
        assert len(sink.mails) == 1


def test_a_wrong_password_is_permanent_and_names_the_setting(
    make: Send, tls: ssl.SSLContext, ca_file: Path
) -> None:
    with smtp_sink(password=b"right", starttls=tls) as sink:
        one = make(sink, url=f"smtp://ada:wrong-one@127.0.0.1:{{port}}?ca={ca_file}")
        with pytest.raises(MailRejected, match="refused the log-in of CALLBOARD_MAIL_URL: 535") as raised:
            one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")
    assert "wrong-one" not in str(raised.value)


def test_a_certificate_of_an_unknown_authority_or_another_host_is_refused(
    make: Send, authority: object, ca_file: Path, tls: ssl.SSLContext
) -> None:
    stranger = server_tls(trustme.CA(), "127.0.0.1")
    other_host = server_tls(authority, "mail.example.org")
    for context in (stranger, other_host):
        for scheme, at_once, later in (("smtp", None, context), ("smtps", context, None)):
            with smtp_sink(password=b"secret", tls=at_once, starttls=later) as sink:
                one = make(sink, url=f"{scheme}://ada:secret@127.0.0.1:{{port}}?ca={ca_file}")
                with pytest.raises(MailTemporary, match="certificate verify failed"):
                    one.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")
            assert sink.logins == [] and sink.mails == []


def test_a_server_without_starttls_gets_neither_password_nor_mail(make: Send) -> None:
    with smtp_sink(password=b"secret") as sink:
        for user in ("", "ada:secret@"):
            with pytest.raises(MailNotConfigured, match="STARTTLS"):
                make(sink, url=f"smtp://{user}127.0.0.1:{{port}}").send(
                    "ada@example.org", "plain", {"name": "Ada"}, message_id="1"
                )
        assert sink.logins == [] and sink.mails == []


def test_a_log_in_over_a_plain_connection_is_refused() -> None:
    with pytest.raises(MailNotConfigured, match="in the clear") as raised:
        MailServer.parse("smtp://ada:secret@127.0.0.1:25?starttls=never")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "smtp://a%40b:c%2Fd@mail.example.org",
            MailServer("mail.example.org", 587, "starttls", "a@b", "c/d"),
        ),
        ("smtps://u:p@mail.example.org", MailServer("mail.example.org", 465, "from the start", "u", "p")),
        ("smtp://localhost:1025?starttls=never", MailServer("localhost", 1025, "none")),
        ("smtp://[::1]:2525?starttls=required", MailServer("::1", 2525, "starttls")),
    ],
)
def test_a_mail_url_says_host_port_log_in_and_tls(url: str, expected: MailServer) -> None:
    assert MailServer.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "mail.example.org",
        "http://u:hunter2@x",
        "smtp://u:hunter2@",
        "smtp://u:hunter2@x:port",
        "smtp://u:hunter2@x?starttls=maybe",
        "smtp://u:hunter2@x?tls=1",
        "smtp://u:hunter2@x?ca",
    ],
)
def test_a_malformed_mail_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match="CALLBOARD_MAIL_URL") as raised:
        MailServer.parse(url)
    assert "hunter2" not in str(raised.value)


def test_the_password_is_not_in_a_servers_repr() -> None:
    assert "hunter2" not in repr(MailServer.parse("smtps://u:hunter2@x"))


def test_a_ca_file_that_isnt_there_is_named(sink: Sink, make: Send, tls: ssl.SSLContext) -> None:
    with smtp_sink(starttls=tls) as secure, pytest.raises(MailNotConfigured, match=r"ca=/no/such\.pem"):
        make(secure, url="smtp://127.0.0.1:{port}?ca=/no/such.pem").send(
            "a@example.org", "plain", {"name": "A"}, message_id="1"
        )


def test_without_settings_a_mail_says_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, files: LocalStorage
) -> None:
    monkeypatch.delenv("CALLBOARD_MAIL_URL", raising=False)
    monkeypatch.delenv("CALLBOARD_MAIL_FROM", raising=False)
    with storage.default.replaced_by(files):
        with pytest.raises(MailNotConfigured, match="set CALLBOARD_MAIL_URL") as raised:
            mailer.send("ada@example.org", "welcome", {}, message_id="1")
        assert isinstance(raised.value, Permanent)

        monkeypatch.setenv("CALLBOARD_MAIL_URL", "smtp://127.0.0.1:1?starttls=never")
        mailer.default.forget()
        with pytest.raises(MailNotConfigured, match="set CALLBOARD_MAIL_FROM"):
            mailer.send("ada@example.org", "welcome", {}, message_id="1")

        monkeypatch.setenv("CALLBOARD_MAIL_FROM", "nobody")
        mailer.default.forget()
        with pytest.raises(MailNotConfigured, match="CALLBOARD_MAIL_FROM: 'nobody' is no e-mail address"):
            mailer.send("ada@example.org", "welcome", {}, message_id="1")


def test_the_function_sends_with_the_settings_templates_and_storage(
    sink: Sink, files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_MAIL_URL", f"smtp://127.0.0.1:{sink.port}?starttls=never")
    monkeypatch.setenv("CALLBOARD_MAIL_FROM", "jobs@example.org")
    files.put("a.txt", b"1")
    with storage.default.replaced_by(files):
        report = mailer.send(
            "ada@example.org",
            "welcome",
            {"name": "Ada", "product": "Northwind", "url": "https://example.org/"},
            message_id="1",
            attachments=["a.txt"],
        )
        mailer.default().close()

    assert report.accepted == ("ada@example.org",)
    assert sink.mails[0]["Subject"] == "Welcome to Northwind, Ada"


def test_a_test_can_put_its_own_mailer_in_place(sink: Sink, make: Send) -> None:
    with mailer.default.replaced_by(make(sink)):
        mailer.send("ada@example.org", "plain", {"name": "Ada"}, message_id="1")

    assert len(sink.mails) == 1


@pytest.mark.parametrize(("module", "template"), [("jinja2", "plain"), ("mjml", "mjml")])
def test_a_missing_library_names_the_extra(
    sink: Sink, make: Send, monkeypatch: pytest.MonkeyPatch, module: str, template: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtra, match=r"callboard\[mail\]"):
        make(sink).send("ada@example.org", template, {"name": "Ada"}, message_id="1", subject="x")


CONTEXTS: dict[str, dict[str, object]] = {
    "welcome": {"name": "Ada", "product": "Northwind", "url": "https://example.org/a?b=1&c=2"},
    "report-ready": {"name": "Ada", "title": "Orders", "rows": 128400},
    "invoice": {
        "number": "2026-1",
        "seller": "Northwind",
        "customer": "Ada",
        "currency": "EUR",
        "due": "30 June",
        "total": 1234.5,
        "lines": [{"text": "Tea", "quantity": 2, "price": 617.25, "amount": 1234.5}],
    },
}


@pytest.mark.parametrize("name", sorted(CONTEXTS))
def test_every_template_that_ships_renders_and_misses_nothing_quietly(name: str) -> None:
    shipped = Templates(mailer.TEMPLATES)

    mail = shipped.render(name, CONTEXTS[name])

    assert mail.subject and mail.html and "{{" not in mail.html + mail.text + mail.subject
    for missing in CONTEXTS[name]:
        with pytest.raises(TemplateFailed, match=f"'{missing}' is undefined"):
            shipped.render(name, {key: value for key, value in CONTEXTS[name].items() if key != missing})


def test_the_list_of_shipped_templates_is_complete() -> None:
    assert {path.name for path in mailer.TEMPLATES.iterdir() if path.is_dir()} == set(CONTEXTS)


def test_smtplibs_errors_are_os_errors_as_the_translation_assumes() -> None:
    assert issubclass(smtplib.SMTPException, OSError)
