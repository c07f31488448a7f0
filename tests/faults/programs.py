"""What a program that is killed in a test of a driver has at hand: to put, to take, and to say where it is."""

from __future__ import annotations

#: Source that follows the making of a `driver`.
HANDS = """
import sys
from callboard.brokers.driver import IntakeOptions, Outgoing

def put(*numbers):
    driver.put([Outgoing("mail.high", b"%d" % n, f"job-{n}") for n in numbers], deadline=30)

def intake(name, budget=1000):
    return driver.open_intake(IntakeOptions(queues=["mail.high"], budget=budget, worker=name))

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
"""
