from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callboard.brokers.rabbitmq.acks import Unacked


def unacked(*tags: int) -> Unacked:
    found = Unacked()
    for tag in tags:
        found.delivered(tag)
    return found


def done(tags: Unacked, *numbers: int) -> None:
    for number in numbers:
        tags.done(number)


def test_acks_without_a_gap_become_one() -> None:
    tags = unacked(1, 2, 3, 4)
    done(tags, 3, 1, 2)
    assert tags.acks() == [(3, True)]
    assert len(tags) == 1


def test_a_single_ack_names_a_single_message() -> None:
    tags = unacked(1, 2)
    done(tags, 1)
    assert tags.acks() == [(1, False)]


def test_an_ack_waits_a_round_for_those_before_it() -> None:
    tags = unacked(1, 2, 3)
    done(tags, 2, 3)
    assert tags.acks() == []
    assert tags.has_more
    done(tags, 1)
    assert tags.acks() == [(3, True)]
    assert not tags.has_more


def test_an_ack_waits_for_one_round_only() -> None:
    tags = unacked(1, 2, 3, 4)
    done(tags, 2)
    assert tags.acks() == []
    done(tags, 4)
    assert tags.acks() == [(2, False)]
    assert tags.acks() == [(4, False)]
    assert not tags.has_more


def test_in_the_last_round_every_ack_goes_out() -> None:
    tags = unacked(1, 2, 3, 4, 5)
    done(tags, 1, 2, 4, 5)
    assert tags.acks(last=True) == [(2, True), (4, False), (5, False)]
    assert len(tags) == 1


def test_what_is_not_unacked_is_never_acked() -> None:
    tags = unacked(1, 2)
    done(tags, 7, 1)
    assert tags.acks(last=True) == [(1, False)]
    done(tags, 1)
    assert tags.acks(last=True) == []


def test_what_is_given_back_cannot_be_acked_nor_given_back_again() -> None:
    tags = unacked(1, 2)
    assert tags.returned(1)
    assert not tags.returned(1)
    done(tags, 1, 2)
    assert tags.acks(last=True) == [(2, False)]


def test_what_is_about_to_be_acked_is_not_given_back() -> None:
    tags = unacked(1)
    done(tags, 1)
    assert not tags.returned(1)


@given(st.lists(st.tuples(st.sampled_from(["deliver", "done", "back", "send", "wait"]), st.integers(1, 12))))
def test_every_message_is_settled_once_and_none_before_it_is_done(steps: list[tuple[str, int]]) -> None:
    """Against a server that keeps book: an ack of many takes all unacked ones up to its tag."""
    tags, last = Unacked(), 0
    server: set[int] = set()
    done: set[int] = set()
    for step, number in [*steps, ("send", 1)]:
        if step == "deliver":
            last += 1
            server.add(last)
            tags.delivered(last)
        elif step == "done":
            tags.done(number)
            done.update({number} & server)
        elif step == "back":
            if tags.returned(number):
                assert number in server - done
                server.discard(number)
        else:
            for tag, multiple in tags.acks(last=step == "send"):
                acked = {one for one in server if one <= tag} if multiple else {tag}
                assert acked <= server & done
                server -= acked
    assert not server & done
    assert len(tags) == len(server)
