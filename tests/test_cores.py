"""Cores: checked before use, and given back."""

import threading

import pytest

from treadle import cores
from treadle.cores import CAN_PIN, check_cores, filled_cores, pin, pinned, share_cores, usable_cores
from treadle.errors import PlacementError

linux = pytest.mark.skipif(not CAN_PIN, reason="pins threads")


@linux
def test_a_block_is_pinned_and_the_thread_is_free_again():
    before = usable_cores()
    with pinned(before[-1:]):
        assert usable_cores() == before[-1:]
    assert usable_cores() == before
    with pinned(()):
        assert usable_cores() == before


@linux
def test_a_pinned_thread_leaves_others_alone():
    before, seen = usable_cores(), []

    def work() -> None:
        pin(before[:1])
        seen.append(usable_cores())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before[:1]]
    assert usable_cores() == before


@linux
def test_cores_that_are_not_there():
    check_cores("collection.simulate_cores", usable_cores())
    with pytest.raises(PlacementError, match=r"collection.simulate_cores: found core 9999; this process may use \d"):
        check_cores("collection.simulate_cores", (9999,))


@pytest.mark.parametrize(
    ("workers", "threads", "found"), [(4, 1, (1, 2, 5, 6)), (2, 2, (1, 2, 5, 6)), (3, 1, ()), (4, 2, ()), (1, 1, ())]
)
def test_workers_stay_on_cores_that_they_fill(monkeypatch, workers, threads, found):
    monkeypatch.setattr(cores, "CAN_PIN", True)
    monkeypatch.setattr(cores, "usable_cores", lambda: (1, 2, 5, 6))
    assert filled_cores(workers, threads) == found
    monkeypatch.setattr(cores, "CAN_PIN", False)
    assert filled_cores(workers, threads) == ()


def test_cores_are_shared_in_turn():
    assert [share_cores((1, 2, 5, 6), worker, 2) for worker in range(2)] == [(1, 5), (2, 6)]
    assert [share_cores((1, 2), worker, 3) for worker in range(3)] == [(1,), (2,), (1,)]
    assert share_cores((), 0, 2) == ()
