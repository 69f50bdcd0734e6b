import itertools
import threading

import pytest

from msde.data.prefetch import map_in_threads, run_ahead


def test_results_come_in_the_order_of_the_tasks():
    tasks = ((number, 10 * number) for number in itertools.count())
    results = map_in_threads(lambda a, b: a + b, tasks, workers=3)
    assert list(itertools.islice(results, 20)) == [11 * number for number in range(20)]
    results.close()


def test_a_thread_computes_up_to_depth_items_ahead():
    computed, enough = [], threading.Event()

    def items():
        for number in itertools.count():
            computed.append(number)
            if len(computed) == 4:  # one taken, two ready, one that waits for a place
                enough.set()
            yield number

    ahead = run_ahead(items(), depth=2)
    assert next(ahead) == 0
    assert enough.wait(10)
    assert next(ahead) == 1
    ahead.close()
    assert len(computed) <= 5


def test_errors_are_raised_in_their_place_and_the_thread_ends():
    before = threading.active_count()

    def items():
        yield 1
        raise ValueError("broken")

    ahead = run_ahead(items(), depth=4)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    assert threading.active_count() == before
