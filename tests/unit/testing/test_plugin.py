"""The pytest plugin in an application of somebody's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]


APP_TEST = """
    import pytest
    from actors.billing import send_invoice, sent

    @pytest.mark.parametrize("n", range(4))
    def test_an_invoice_is_sent(jobs, n):
        sent.clear()
        send_invoice.send(n)
        assert [job.kwargs for job in jobs.waiting] == [{"invoice_id": n}]
        jobs.drain()
        assert sent == [n]

    def test_a_pipeline_runs(jobs):
        sent.clear()
        (send_invoice.message(1) | send_invoice.message(2)).run()
        jobs.drain()
        assert sent == [1, 2]

    async def _sends():
        await send_invoice.send_async(9)

    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_async(jobs):
        await _sends()
        assert jobs.drain().succeeded == 1
"""


@pytest.fixture
def app(pytester: pytest.Pytester) -> Iterator[pytest.Pytester]:
    """An application with the project's own broker.py, whose queue would be a file."""
    pytester.makepyfile(
        **{
            "broker": (ROOT / "broker.py").read_text(),
            "actors/__init__": "",
            "actors/billing": """
                from broker import actor

                sent = []

                @actor()
                def send_invoice(invoice_id: int) -> None:
                    if invoice_id < 0:
                        raise ValueError(f"no invoice {invoice_id}")
                    sent.append(invoice_id)
            """,
        }
    )
    yield pytester
    assert not (pytester.path / "var").exists()


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_an_application_needs_no_configuration(app: pytest.Pytester, options: list[str]) -> None:
    app.makepyfile(**{"tests/test_billing": APP_TEST})
    result = app.runpytest_subprocess("-W", "error", *options)
    result.assert_outcomes(passed=6)


def test_a_failure_shows_the_jobs_own_lines_and_none_of_the_machinery(app: pytest.Pytester) -> None:
    app.makepyfile(
        test_it="""
        from actors.billing import send_invoice

        def test_it(jobs):
            send_invoice.send(-1)
            jobs.drain(max_jobs=10)
        """
    )
    result = app.runpytest_subprocess("--show-capture=no")
    result.stdout.fnmatch_lines(
        [
            ">       jobs.drain(max_jobs=10)",
            "test_it.py:5: ",
            '>           raise ValueError(f"no invoice {invoice_id}")',
            "E           ValueError: no invoice -1",
            "E           raised by 'send-invoice', attempt 5 of job *: dead",
            "actors/billing.py:8: ValueError",
        ]
    )
    assert "callboard/" not in result.stdout.str()


def test_without_the_fixture_nothing_heavy_is_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert "callboard.testing" in sys.modules
            assert not {"dramatiq", "pydantic", "structlog", "msgspec", "callboard.brokers"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


def test_a_broker_may_live_in_another_module(pytester: pytest.Pytester) -> None:
    wiring = (ROOT / "broker.py").read_text()
    pytester.makeini("[pytest]\ncallboard_broker = shop.wiring")
    pytester.makepyfile(
        **{
            "shop/__init__": "",
            "shop/wiring": wiring,
            "tests/test_it": """
                from shop.wiring import actor, broker

                def test_it(jobs):
                    assert jobs.broker is broker
            """,
        }
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_module_without_a_broker_is_named(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncallboard_broker = wiring")
    pytester.makepyfile(wiring="broker = None", test_it="def test_it(jobs): ...")
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*the module 'wiring' has no `broker` of Callboard*"])
