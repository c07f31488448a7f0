"""The body and the headers of a message."""

from __future__ import annotations

import contextlib
import time
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from dramatiq import Message
from hypothesis import given
from hypothesis import strategies as st

from callboard import envelope
from callboard.envelope import AttemptError, Headers, Signer, UnknownExtras
from callboard.errors import SettingsError, Unreadable

_LIMIT = 1_000_000


def _message(**fields: Any) -> Message[Any]:
    given_fields: dict[str, Any] = {
        "queue_name": "email.high",
        "actor_name": "send-email",
        "args": (),
        "kwargs": {"to": "ada@example.org"},
        "options": {},
        "message_id": "job-1",
        "message_timestamp": 1,
    }
    return Message(**(given_fields | fields))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _json, max_size=5))
def test_a_message_comes_back_as_it_was_sent(kwargs: dict[str, Any]) -> None:
    message = _message(kwargs=kwargs)
    assert envelope.decode(envelope.encode(message), max_bytes=_LIMIT) == message


def test_whole_numbers_beyond_64_bits_are_kept() -> None:
    message = _message(kwargs={"n": 2**100})
    assert envelope.decode(envelope.encode(message), max_bytes=_LIMIT).kwargs == {"n": 2**100}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no message"),
        (b"\x80\x04\x95\x10", "no message"),
        (b"[]", "no message"),
        (b"null", "no message"),
        (b'{"queue_name": "q"}', "actor_name"),
        (b"[" * 100_000, "no message"),
        (b'{"kwargs":' + b'{"a":' * 50_000, "nested too deeply"),
        (envelope.encode(_message()).replace(b'"options":{}', b'"options":null'), "options"),
        (envelope.encode(_message()).replace(b'"args":[]', b'"args":{}'), "args"),
        (envelope.encode(_message()).replace(b'"job-1"', b'"job 1\\n"'), "no job id"),
        (envelope.encode(_message()).replace(b'"job-1"', b"17"), "message_id"),
        (envelope.encode(_message())[:-1] + b',"more":1}', "more"),
        (b'{"actor_name": "\xff\xfe"}', "no message"),
        (b'"' + b"x" * _LIMIT + b'"', "over the limit"),
    ],
)
def test_what_is_no_message_is_unreadable_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        envelope.decode(body, max_bytes=_LIMIT)


@given(st.binary(max_size=300))
def test_no_body_does_anything_but_be_read_or_be_unreadable(body: bytes) -> None:
    with contextlib.suppress(Unreadable):
        envelope.decode(body, max_bytes=_LIMIT)


@given(st.binary(max_size=100))
def test_no_headers_do_anything_but_be_read_or_be_unreadable(data: bytes) -> None:
    with contextlib.suppress(Unreadable):
        envelope.decode_headers(data)


def test_default_headers_take_no_bytes() -> None:
    assert envelope.encode_headers(Headers()) == b""
    assert envelope.decode_headers(b"") == Headers()


def test_headers_keep_the_last_five_errors_and_stay_under_8_kb() -> None:
    errors = [AttemptError(n, float(n), "E" * 9_000, "\x00" * 9_000, "w" * 300) for n in range(1, 9)]
    encoded = envelope.encode_headers(Headers(attempt=8, errors=errors, reason="é" * 9_000))
    assert len(encoded) <= envelope.MAX_HEADER_BYTES
    kept = envelope.decode_headers(encoded)
    assert kept.attempt == 8
    assert kept.errors[-1].attempt == 8
    assert len(kept.errors) <= envelope.MAX_ERRORS


def test_job_ids_are_version_7_uuids_and_sort_by_time() -> None:
    first = envelope.new_job_id()
    end = time.time_ns() // 1_000_000 + 2
    while time.time_ns() // 1_000_000 < end:
        pass
    second = envelope.new_job_id()
    assert first < second
    assert first[14] == "7"
    assert first[19] in "89ab"
    assert envelope.is_job_id(first)
    assert len({envelope.new_job_id() for _ in range(10_000)}) == 10_000


def test_many_job_ids_at_once_are_like_single_ones_and_in_sequence() -> None:
    ids = envelope.new_job_ids(1000)
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert {(UUID(text).version, UUID(text).variant) for text in ids} == {(7, RFC_4122)}
    assert {UUID(text).clock_seq_hi_variant >> 4 for text in ids} == {0x8, 0x9, 0xA, 0xB}
    assert envelope.new_job_ids(0) == []


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a\n", "é", "x" * 129])
def test_an_id_outside_its_alphabet_is_none(text: str) -> None:
    assert not envelope.is_job_id(text)


@pytest.mark.parametrize(
    "options",
    [
        {"on_success": 3},
        {"pipe_target": "x"},
        {"pipe_target": {"actor_name": "x"}},
        {"max_retries": "many"},
        {"eta": "soon"},
        {"group_completion_callbacks": [1]},
    ],
)
def test_an_option_of_a_wrong_type_is_unreadable(options: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="an option is wrong"):
        envelope.check_options(options, envelope.KNOWN_OPTIONS)


def test_an_unknown_option_is_for_a_newer_worker() -> None:
    with pytest.raises(UnknownExtras, match="brand_new"):
        envelope.check_options({"brand_new": 1}, envelope.KNOWN_OPTIONS)


@pytest.mark.parametrize("extras", [{"v": 2}, {"v": 1, "brand_new": True}])
def test_a_later_envelope_is_for_a_newer_worker(extras: dict[str, Any]) -> None:
    with pytest.raises(UnknownExtras):
        envelope.extras_of({"callboard": extras})


@pytest.mark.parametrize("extras", [7, {"v": "one"}, {"tags": "a"}, {"expires": "x"}])
def test_extras_of_a_wrong_type_are_unreadable(extras: Any) -> None:
    with pytest.raises(Unreadable) as caught:
        envelope.extras_of({"callboard": extras})
    assert not isinstance(caught.value, UnknownExtras)


def test_a_flipped_byte_another_queue_or_an_old_key_break_the_signature() -> None:
    signer = Signer.parse("new:0123456789abcdef,old:fedcba9876543210")
    body = b'{"a": 1}'
    signature = signer.sign("email.high", body)
    assert signature.startswith("new:")
    signer.verify("email.high", body, signature)
    Signer.parse("newer:0123456789ABCDEF,new:0123456789abcdef").verify("email.high", body, signature)
    for queue, changed, text in (
        ("email.high", b'{"a": 2}', signature),
        ("email.low", body, signature),
        ("email.high", body, ""),
        ("email.high", body, "new:é"),
        ("email.high", body, signature[:-1]),
    ):
        with pytest.raises(Unreadable):
            signer.verify(queue, changed, text)
    with pytest.raises(Unreadable, match="unknown key 'new'"):
        Signer.parse("newer:0123456789ABCDEF").verify("email.high", body, signature)


@pytest.mark.parametrize("text", ["", "abc", "id:short", ":0123456789abcdef"])
def test_signing_keys_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="CALLBOARD_SIGNING_KEYS"):
        Signer.parse(text)
