"""The order of service among requesters: fair, aged, and as cheap for a hundred thousand prompts as for ten."""

from __future__ import annotations

import random
import time

import pytest

from edged.agent.fair_queue import AGEING_SECONDS, CREDIT, MAX_IDLE, REFRESH_SECONDS, FairQueue


def served(queue: FairQueue, count: int, now: float = 0.0) -> list[int]:
    """The next prompts in order; each ends at once with the cost that was expected."""
    order = []
    for _ in range(count):
        seq = queue.take_next(now)
        assert seq is not None
        queue.remove(seq, now)
        order.append(seq)
    return order


def test_one_requesters_prompts_are_served_by_priority_then_in_order() -> None:
    queue = FairQueue(lambda _: 3)
    for seq, priority in enumerate((5, 5, 0, 9, 0)):
        queue.add(seq, "a", priority, 10, 0.0)
    assert [2, 4, 0, 1, 3] == served(queue, 5)
    assert (0, 0) == (len(queue), queue.waiting)


def test_requesters_of_one_priority_take_turns() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(6):
        queue.add(seq, "flood", 5, 100, 0.0)
    for seq in range(10, 16):
        queue.add(seq, "other", 5, 100, 0.0)
    assert [0, 10, 1, 11] == served(queue, 4)


def test_a_flood_at_the_best_priority_ranks_behind_one_who_asks_now_and_then() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(100):
        queue.add(seq, "flood", 0, 200, 0.0)
    served(queue, 50)
    queue.add(1000, "rare", 5, 20, 1.0)
    assert 10 == queue.level(1000, 1.0)
    assert queue.level(60, 1.0) > 11
    assert [1000] == served(queue, 1, 1.0)
    assert [50] == served(queue, 1, 1.0)


def test_a_better_priority_counts_among_requesters_who_had_about_the_same() -> None:
    queue = FairQueue(lambda _: 3)
    queue.add(0, "a", 5, 20, 0.0)
    queue.add(1, "b", 3, 20, 0.0)
    assert [1, 0] == served(queue, 2)


def test_a_better_priority_costs_more() -> None:
    """Two requesters send the same; after some turns the one that always takes priority 0 waits for the other."""
    queue = FairQueue(lambda _: 3)
    order = []
    for turn in range(40):
        queue.add(2 * turn, "urgent", 0, 1000, 0.0)
        queue.add(2 * turn + 1, "usual", 5, 1000, 0.0)
    order = served(queue, 40)
    assert 0 == order[0]
    assert sum(seq % 2 for seq in order) > 30


def test_waiting_takes_the_penalty_away_but_gives_no_better_priority_than_asked() -> None:
    queue = FairQueue(lambda _: 3)
    queue.add(0, "heavy", 5, 100_000, 0.0)
    served(queue, 1)
    queue.add(1, "heavy", 5, 10, 0.0)
    queue.add(2, "light", 5, 10, 0.0)
    first = queue.level(1, 0.0)
    assert first > 11
    assert first - 1 == queue.level(1, AGEING_SECONDS)
    assert 10 == queue.level(1, 100 * AGEING_SECONDS)


def test_a_pause_gives_a_bounded_credit() -> None:
    queue = FairQueue(lambda _: 3)
    queue.add(0, "a", 5, 10 * CREDIT, 0.0)
    queue.add(1, "b", 5, 10 * CREDIT, 0.0)
    served(queue, 2)
    for seq, name in enumerate(("a", "b", "new"), 10):
        queue.add(seq, name, 5, CREDIT / 2, 0.0)
    assert [12] == served(queue, 1)
    queue.add(13, "new", 5, CREDIT, 0.0)
    assert [13] == served(queue, 1)  # what is left of the credit
    queue.add(14, "new", 5, CREDIT, 0.0)
    assert 14 not in served(queue, 2)


def test_each_requester_runs_its_share_at_most_and_a_place_goes_to_the_next() -> None:
    share = [2]
    queue = FairQueue(lambda _: share[0])
    for seq in range(4):
        queue.add(seq, "a", 0, 10, 0.0)
    queue.add(10, "b", 9, 10, 0.0)
    assert [0, 1, 10, None] == [queue.take_next(0.0) for _ in range(4)]
    queue.remove(1, 0.0)
    assert [2, None] == [queue.take_next(0.0) for _ in range(2)]
    share[0] = 3
    assert 3 == queue.take_next(REFRESH_SECONDS)


def test_a_certain_prompt_may_be_started_first() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(3):
        queue.add(seq, "a", 5, 10, 0.0)
    queue.start(2, 0.0)
    queue.start(2, 0.0)
    assert 2 == queue.waiting
    assert [0, 1, None] == [queue.take_next(0.0) for _ in range(3)]


def test_only_a_more_urgent_prompt_is_given_where_that_is_asked() -> None:
    queue = FairQueue(lambda _: 3)
    queue.add(0, "a", 5, 10, 0.0)
    assert [None, None] == [queue.take_next(0.0, below) for below in (9, 10)]
    queue.add(1, "b", 3, 10, 0.0)
    assert [1, None] == [queue.take_next(0.0, 10) for _ in range(2)]
    assert 0 == queue.take_next(0.0)


def test_what_was_put_back_is_served_at_its_old_place_and_not_charged_twice() -> None:
    queue = FairQueue(lambda _: 3)
    queue.add(0, "a", 5, 5000, 0.0)
    queue.add(1, "a", 5, 10, 0.0)
    queue.add(2, "b", 5, 300, 0.0)
    queue.start(0, 0.0)
    queue.put_back(0, 0.0)
    assert (3, 13) == (queue.waiting, queue.level(0, 0.0))  # its two prompts are open, none was charged
    assert [2, 0, 1] == served(queue, 3)  # who has one open comes first


def test_what_a_prompt_took_in_fact_is_what_counts() -> None:
    queue = FairQueue(lambda _: 3)
    queue.add(0, "a", 5, 100_000, 0.0)
    assert 0 == queue.take_next(0.0)
    queue.remove(0, 0.0, cost=10)
    queue.add(1, "a", 5, 10, 0.0)
    queue.add(2, "b", 5, 10, 0.0)
    assert 10 == queue.level(1, 0.0)


def test_requesters_who_ask_alike_have_one_level() -> None:
    """The engine computes such ones in one batch; turns keep equal requesters within a quota."""
    queue = FairQueue(lambda _: 3)
    for seq in range(200):
        queue.add(seq, "abcdefgh"[seq % 8], 5, 100 + seq % 7 * 100, 0.0)
    running = []
    for _ in range(120):
        while len(running) < 16 and (seq := queue.take_next(0.0)) is not None:
            running.append(seq)
        assert {13} == {queue.level(seq, 0.0) for seq in running}
        queue.remove(running.pop(0), 0.0)


def test_who_has_one_prompt_open_comes_before_who_has_many() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(3):
        queue.add(seq, "many", 5, 10, 0.0)
    queue.add(3, "one", 5, 10, 0.0)
    assert (13, 10) == (queue.level(0, 0.0), queue.level(3, 0.0))
    assert 3 == queue.take_next(0.0)


def test_the_position_counts_turns() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(10):
        queue.add(seq, "flood", 5, 10, 0.0)
    queue.add(10, "other", 5, 10, 0.0)
    assert (10, 1) == (queue.ahead_of(9), queue.ahead_of(10))
    queue.add(11, "other", 0, 10, 0.0)
    assert 0 == queue.ahead_of(11)


def test_a_full_queue_makes_room_at_the_cost_of_who_has_most() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(5):
        queue.add(seq, "flood", 0, 10, 0.0)
    queue.add(5, "some", 5, 10, 0.0)
    assert 4 == queue.to_displace("new")
    assert queue.to_displace("flood") is None
    queue.remove(5, 0.0)
    for seq in (1, 2, 3, 4):
        queue.remove(seq, 0.0)
    assert queue.to_displace("new") is None  # one each is fair


def test_what_runs_is_never_displaced() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(3):
        queue.add(seq, "flood", 5, 10, 0.0)
        queue.take_next(0.0)
    assert queue.to_displace("new") is None


def test_names_that_never_come_back_are_forgotten() -> None:
    queue = FairQueue(lambda _: 3)
    for seq in range(3 * MAX_IDLE):
        queue.add(seq, f"r{seq}", 5, 10, 0.0)
        served(queue, 1)
    assert MAX_IDLE >= len(queue._requesters)


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_serve_each_prompt_once(seed: int) -> None:
    rng = random.Random(seed)
    queue, waiting, running, finished, now = FairQueue(lambda _: 3), set(), set(), set(), 0.0
    for seq in range(400):
        now += rng.random()
        queue.add(seq, rng.choice("abcdef"), rng.randrange(10), rng.randrange(1, 500), now)
        waiting.add(seq)
        for _ in range(rng.randrange(4)):
            what = rng.random()
            if what < 0.6:
                if (taken := queue.take_next(now)) is not None:
                    waiting.remove(taken)
                    running.add(taken)
            elif what < 0.7 and running:
                back = rng.choice(sorted(running))
                queue.put_back(back, now)
                running.remove(back)
                waiting.add(back)
            elif running | waiting:
                gone = rng.choice(sorted(running | waiting))
                queue.remove(gone, now, rng.choice((None, 5.0)))
                running.discard(gone)
                waiting.discard(gone)
                finished.add(gone)
        assert (len(waiting), len(waiting | running)) == (queue.waiting, len(queue))
        for one in list(waiting)[:5]:
            assert 0 <= queue.ahead_of(one) < len(waiting)
    for one in running:
        queue.remove(one, now)
    while (taken := queue.take_next(now)) is not None:
        waiting.remove(taken)
        queue.remove(taken, now)
    assert not waiting


def cost_of_one(count: int) -> float:
    queue = FairQueue(lambda _: 3)
    for seq in range(count):
        queue.add(seq, f"r{seq % 5000}", seq % 10, 10, 0.0)
        queue.ahead_of(seq)
    begun = time.perf_counter()
    for seq in range(count, count + 2000):
        queue.add(seq, f"r{seq % 5000}", seq % 10, 10, 0.5)
        queue.ahead_of(seq)
        queue.to_displace("x")
        queue.take_next(0.5)
    return (time.perf_counter() - begun) / 2000


def test_a_hundred_thousand_prompts_cost_the_same_each_as_ten() -> None:
    few, many = min(cost_of_one(10) for _ in range(3)), min(cost_of_one(100_000) for _ in range(2))
    assert many < 8 * few
