from __future__ import annotations

from qcompile.progress import listening, tell, track


def test_silent_without_a_listener() -> None:
    assert list(track(range(3), "step")) == [0, 1, 2]


def test_listener_hears_start_items_and_end() -> None:
    heard: list[tuple[str, int, int | None, str]] = []
    with listening(lambda *call: heard.append(call)):
        assert list(track("ab", "step", 2)) == ["a", "b"]
    assert heard == [("step", 0, 2, ""), ("step", 1, 2, ""), ("step", 2, 2, ""), ("step", 2, 2, "")]


def test_a_detail_is_passed_on() -> None:
    heard: list[tuple[str, int, int | None, str]] = []
    with listening(lambda *call: heard.append(call)):
        tell("step", 3, 10, "loss 0.1")
    tell("step", 4, 10, "nobody listens")
    assert heard == [("step", 3, 10, "loss 0.1")]


def test_an_unknown_total_is_known_at_the_end() -> None:
    heard: list[int | None] = []
    with listening(lambda _title, _done, total, _detail: heard.append(total)):
        list(track(iter("ab"), "step"))
    assert heard == [None, None, None, 2]


def test_outside_the_block_nobody_listens() -> None:
    heard: list[str] = []
    with listening(lambda title, _done, _total, _detail: heard.append(title)):
        pass
    list(track("ab", "step"))
    assert heard == []
