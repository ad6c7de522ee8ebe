"""Cores: checked before use, and given back."""

import threading

import pytest

from treadle.cores import CAN_PIN, check_cores, pin, pinned, usable_cores
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
    check_cores("placement.simulate", usable_cores())
    with pytest.raises(PlacementError, match=r"placement.simulate: found core 9999; this process may use \d"):
        check_cores("placement.simulate", (9999,))
