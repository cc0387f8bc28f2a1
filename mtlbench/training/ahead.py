"""Reading ahead: what comes next is fetched by other threads while the present is worked on.

Threads and no processes: what takes the time (reading, copying, filtering images) is done outside of Python's
lock, so nothing need be sent from process to process, and nothing outlives the run, however it is killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def ahead(fetch: Callable[[Item], Found], items: Iterable[Item], workers: int) -> Iterator[Found]:
    """Yield ``fetch(item)`` of every item, in order, ``workers`` of them fetched before they are asked for.

    Each of so many threads fetches one at a time; with 0 the caller's own does. What ``fetch`` raises is
    raised where its result is asked for. When the caller stops early, what is being fetched is finished, and
    nothing else is begun.
    """
    if not workers:
        yield from map(fetch, items)
        return
    waiting: deque[Future[Found]] = deque()
    pool = ThreadPoolExecutor(workers, "mtlbench-reader")
    try:
        for item in items:
            waiting.append(pool.submit(fetch, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
