"""Reading on some threads, computing on others, results in order, a bounded number in flight.

The threads live as long as one stream, so a process may fork between calls. Each thread limits
torch to itself alone; the limit of the rest of the process is put back at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

from delfsearch.errors import PhotoError

Item = TypeVar("Item")
Context = TypeVar("Context")
Part = TypeVar("Part")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def run_in_order(
    items: Iterable[Item],
    *,
    read: Callable[[Item], tuple[Context, list[Part]]],
    compute: Callable[[Context, Part], Piece],
    finish: Callable[[Context, list[Piece]], Result],
    n_workers: int,
) -> Iterator[tuple[Item, Result | PhotoError]]:
    """Yield (item, finish(context, pieces)) for each item, in input order.

    read : runs on a reading thread, returns a context and the parts of the item, largest last.
    compute : runs on one of n_workers threads, once per part. finish : runs on the caller's thread.
    A PhotoError from any of them is the item's result; other exceptions stop the stream.
    """
    n_readers = 1 + n_workers // 4
    window = n_workers + n_readers + 1
    source = iter(items)
    computing = single_threaded_torch_pool(n_workers, "delfsearch-compute")
    reading = single_threaded_torch_pool(n_readers, "delfsearch-read")
    pending: deque[tuple[Item, Future[tuple[Context, list[Future[Piece]]]]]] = deque()

    def read_and_submit(item: Item) -> tuple[Context, list[Future[Piece]]]:
        context, parts = read(item)
        # The largest parts start first, so that they do not finish last on their own.
        futures = [computing.submit(compute, context, part) for part in reversed(parts)]
        return context, futures[::-1]

    try:
        while True:
            for item in islice(source, window - len(pending)):
                pending.append((item, reading.submit(read_and_submit, item)))
            if not pending:
                return
            item, future = pending.popleft()
            result: Result | PhotoError
            try:
                context, futures = future.result()
                result = finish(context, [piece.result() for piece in futures])
            except PhotoError as error:
                result = error
            yield item, result
    finally:
        reading.shutdown(wait=True, cancel_futures=True)
        computing.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread on the calling thread, and put its limit back."""
    before = torch.get_num_threads()  # also begins torch's use on this thread, see limit below
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded_torch_pool(n_workers: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose threads are all running, torch limited to one thread in each of them."""
    before = torch.get_num_threads()
    started = threading.Barrier(n_workers + 1)

    def limit() -> None:
        # A thread's first use of torch takes over the number that new threads begin with, and would
        # forget a limit set before it.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(n_workers, name, initializer=limit)
    for _ in range(n_workers):
        pool.submit(int)
    started.wait()
    # The call is per thread, except that it also sets what threads started later begin with.
    torch.set_num_threads(before)
    return pool
