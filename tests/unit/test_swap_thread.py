"""The swap thread: each transfer is answered, in order, also one that fails."""

from __future__ import annotations

import threading

from fastserve.core.swapper import Tier, Transfer, TransferEnded
from fastserve.engine.swap_thread import SwapThread
from tests.doubles import FakeClock


class GatedTiers:
    """Copies when the gate is open."""

    def __init__(self, clock, *, failing=()):
        self.clock = clock
        self.failing = failing
        self.gate = threading.Event()
        self.copied = []
        self.closed = False

    def copy(self, transfer):
        assert self.gate.wait(30)
        self.clock.advance(0.5)
        if transfer.number in self.failing:
            raise OSError("the disk is full")
        self.copied.append(transfer.number)

    def close(self):
        self.closed = True


def transfer(number):
    return Transfer(number, Tier.HOST, True, (number,), (number,))


def make_thread(**options):
    clock = FakeClock()
    tiers = GatedTiers(clock, **options)
    return tiers, SwapThread(tiers, clock)


def collect(thread, count):
    found = []
    while len(found) < count:
        found += thread.ended(wait=True)
    return found


def test_transfers_run_in_order_and_are_answered_with_what_they_took():
    tiers, thread = make_thread()
    thread.start([transfer(1), transfer(2)])
    thread.start([transfer(3)])
    assert thread.ended(wait=False) == []
    tiers.gate.set()
    assert collect(thread, 3) == [TransferEnded(number, 0.5) for number in (1, 2, 3)]
    assert tiers.copied == [1, 2, 3]
    thread.stop()


def test_a_transfer_that_fails_is_answered_and_the_next_one_runs(caplog):
    tiers, thread = make_thread(failing=(1,))
    tiers.gate.set()
    thread.start([transfer(1), transfer(2)])
    assert collect(thread, 2) == [TransferEnded(1, 0.5, "OSError: the disk is full"), TransferEnded(2, 0.5)]
    assert "a transfer failed" in caplog.text
    thread.stop()


def test_it_stops_when_all_is_copied_and_closes_the_tiers():
    tiers, thread = make_thread()
    thread.start([transfer(1)])
    tiers.gate.set()
    thread.stop()
    assert (tiers.copied, tiers.closed) == ([1], True)


def test_no_thread_is_there_before_the_first_transfer():
    before = threading.active_count()
    tiers, thread = make_thread()
    assert threading.active_count() == before
    thread.stop()
    assert tiers.closed
