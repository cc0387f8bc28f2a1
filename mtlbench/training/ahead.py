"""Reading ahead: what comes next is fetched by a thread while the present is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def ahead(fetch: Callable[[Item], Found], items: Iterable[Item], count: int) -> Iterator[Found]:
    """Yield ``fetch(item)`` of every item, in order, ``count`` of them fetched before they are asked for.

    One thread fetches, so never two at a time; with 0 the caller's own does. What ``fetch`` raises is raised
    where its result is asked for. When the caller stops early, at most one more item is fetched.
    """
    if not count:
        yield from map(fetch, items)
        return
    waiting: deque[Future[Found]] = deque()
    pool = ThreadPoolExecutor(1, "mtlbench-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(fetch, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
