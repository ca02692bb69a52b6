"""Numbers go to the metrics page together and not too often, and whatever happens there hurts nobody."""

from __future__ import annotations

import pytest

from fastserve.engine.stats import EngineStats
from fastserve.triton.metrics_report import BUSY_REPORT_S, REPORT_S, MetricsReport
from tests.doubles import FakeClock, RecordingMetrics


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def sink():
    return RecordingMetrics()


@pytest.fixture
def report(clock, sink):
    return MetricsReport(sink, clock)


def test_the_first_news_are_sent_at_once(report, sink):
    assert not report.has_news
    report.show(EngineStats(steps=1))
    report.count("stop")
    assert report.has_news
    report.send_when_due(busy=True, called_away=lambda: False)
    assert (sink.snapshots, sink.endings) == ([EngineStats(steps=1)], ["stop"])
    assert not report.has_news


@pytest.mark.parametrize(("busy", "seconds"), [(False, REPORT_S), (True, BUSY_REPORT_S)])
def test_news_wait_until_the_last_report_is_long_enough_ago(report, sink, clock, busy, seconds):
    report.count("stop")
    report.send_when_due(busy=busy, called_away=lambda: False)
    for steps in (2, 3):
        report.show(EngineStats(steps=steps))
        report.count("length")
        clock.advance(seconds / 4)
        report.send_when_due(busy=busy, called_away=lambda: False)
    assert (sink.snapshots, sink.endings) == ([], ["stop"]) and report.has_news
    clock.advance(seconds / 2)
    report.send_when_due(busy=busy, called_away=lambda: False)
    assert (sink.snapshots, sink.endings) == ([EngineStats(steps=3)], ["stop", "length", "length"])


def test_whoever_is_called_away_sends_one_number_at_a_time_and_the_newer_news_after_them(report, sink, clock):
    report.count("stop")
    report.count("length")
    report.show(EngineStats(steps=1))
    for sent in (1, 2):
        report.send_when_due(busy=True, called_away=lambda: True)
        assert (len(sink.endings), sink.snapshots) == (sent, [])
    report.count("stop")
    report.show(EngineStats(steps=2))
    report.send_when_due(busy=True, called_away=lambda: False)
    assert (len(sink.endings), sink.snapshots) == (2, [EngineStats(steps=1)]) and report.has_news
    clock.advance(BUSY_REPORT_S)
    report.send_when_due(busy=True, called_away=lambda: False)
    assert (len(sink.endings), sink.snapshots) == (3, [EngineStats(steps=1), EngineStats(steps=2)]) and not report.has_news


def test_what_is_left_of_a_report_is_sent_in_the_end(report, sink):
    report.count("stop")
    report.show(EngineStats(steps=1))
    report.send_when_due(busy=True, called_away=lambda: True)
    report.show(EngineStats(steps=2))
    report.send()
    assert (sink.endings, sink.snapshots) == (["stop"], [EngineStats(steps=1), EngineStats(steps=2)])


def test_equal_endings_are_one_message(report, sink):
    calls = []
    sink.count_endings = lambda *call: calls.append(call)
    for ending in ("success", "success", "invalid_arg", "success"):
        report.count(ending)
    report.send()
    report.send()
    assert calls == [("success", 3), ("invalid_arg", 1)]


def test_a_sink_that_refuses_is_logged_and_the_rest_is_sent(report, sink, caplog):
    def refuse(stats):
        raise RuntimeError("no metrics")

    sink.update = refuse
    report.show(EngineStats())
    report.count("stop")
    report.send()
    assert sink.endings == ["stop"] and "metrics could not be updated" in caplog.text
