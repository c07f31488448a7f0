"""When a failed job is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.errors import Permanent
from callboard.retry import RetryPolicy


@given(st.integers(1, 10_000))
def test_a_wait_lies_between_nothing_and_its_longest(attempt: int) -> None:
    policy = RetryPolicy(base=timedelta(seconds=1), cap=timedelta(minutes=5))
    longest = min(300.0, 2.0 ** min(attempt - 1, 60))
    assert 0 <= policy.wait(attempt).total_seconds() <= longest


def test_without_jitter_waits_double_up_to_the_cap() -> None:
    policy = RetryPolicy(base=timedelta(seconds=1), cap=timedelta(seconds=5), jitter=False)
    assert [policy.wait(n).total_seconds() for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]


def test_jitter_spreads_over_the_whole_range() -> None:
    waits = [RetryPolicy(base=timedelta(seconds=8)).wait(1).total_seconds() for _ in range(500)]
    assert min(waits) < 1
    assert max(waits) > 7


@pytest.mark.parametrize("asked", [7, 7.0, timedelta(seconds=7)])
def test_an_error_that_says_when_to_come_back_is_taken_at_its_word(asked: object) -> None:
    error = RuntimeError()
    error.retry_after = asked  # type: ignore[attr-defined]
    assert RetryPolicy().wait(1, error) == timedelta(seconds=7)


def test_a_retry_after_header_is_honoured_in_both_its_forms() -> None:
    error = RuntimeError()
    error.response = SimpleNamespace(headers={"Retry-After": "120"})  # type: ignore[attr-defined]
    assert RetryPolicy().wait(1, error) == timedelta(seconds=120)
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    error.response = SimpleNamespace(headers={"Retry-After": moment})  # type: ignore[attr-defined]
    assert 30 <= RetryPolicy().wait(1, error).total_seconds() <= 90


def test_a_moment_to_come_back_is_counted_from_the_brokers_time() -> None:
    error = RuntimeError()
    moment = format_datetime(datetime(2030, 1, 1, 12, 1, tzinfo=UTC), usegmt=True)
    error.response = SimpleNamespace(headers={"Retry-After": moment})  # type: ignore[attr-defined]
    now = datetime(2030, 1, 1, 12, 0, tzinfo=UTC).timestamp()
    assert RetryPolicy().wait(1, error, now=now) == timedelta(minutes=1)
    assert RetryPolicy().wait(1, error, now=now + 3_600) == timedelta(0)


@pytest.mark.parametrize("asked", ["soon", "", True, float("nan"), object()])
def test_a_retry_after_that_makes_no_sense_is_ignored(asked: object) -> None:
    error = RuntimeError()
    error.retry_after = asked  # type: ignore[attr-defined]
    assert RetryPolicy(jitter=False).wait(1, error) == timedelta(seconds=1)


def test_a_retry_after_of_years_is_cut_to_a_day() -> None:
    error = RuntimeError()
    error.retry_after = 10**9  # type: ignore[attr-defined]
    assert RetryPolicy().wait(1, error) == timedelta(days=1)


def test_some_errors_are_never_tried_again() -> None:
    policy = RetryPolicy(retry_on=(OSError,), never_retry=(FileNotFoundError,))
    assert policy.may_retry(ConnectionError())
    assert not policy.may_retry(FileNotFoundError())
    assert not policy.may_retry(ValueError())
    assert not RetryPolicy().may_retry(Permanent("no invoice 42"))


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one attempt"):
        RetryPolicy(attempts=0)
    with pytest.raises(ValueError, match="grow"):
        RetryPolicy(base=timedelta(hours=2))
