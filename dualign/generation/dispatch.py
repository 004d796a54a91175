"""Many requests to an endpoint at a time: tries, waits, budgets, and what failed why.

A thread runs the client's event loop; answers come out of it one by one, in the order in which they
arrive. A request is tried again if the server is busy (429), fails (5xx), is too slow, cuts the
connection or answers garbage. What a server asks to wait holds for all requests.
"""

import asyncio
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

from dualign.data.conversation import Mode
from dualign.errors import EvaluationError
from dualign.generation.answers import Generation
from dualign.generation.config import Endpoint
from dualign.generation.connection import Connection
from dualign.generation.wire import Pieces, UnusableReplyError, read_reply
from dualign.terminal import progress

_FIRST_WAIT = 0.5  # seconds; doubles with each try
_LONGEST_BACKOFF = 60.0
_AGAIN = frozenset({408, 409, 425, 429})
_NEVER = frozenset({401, 402, 403, 404, 405})
_BYTES_PER_TOKEN = 3  # a guess that is rather too many tokens, for what isn't counted yet


class Tally:
    """What was asked of an endpoint in a stage: tokens, cost, failures by reason."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.prompt_tokens = self.completion_tokens = self.answers = self.known = 0
        self.failed: Counter[str] = Counter()
        """requests without an answer, by the reason of their last try"""
        self.tries: Counter[str] = Counter()
        """tries that failed, by reason"""
        self.seconds = 0.0
        self._new_tokens = 0

    def count(self, usage: Mapping[str, int] | None, *, known: bool = False) -> None:
        """Count an answer; `known`: it was there before."""
        usage = usage or {}
        self.add(usage)
        self.known += known
        self.answers += not known
        self._new_tokens += 0 if known else usage.get("completion", 0)

    def add(self, usage: Mapping[str, int]) -> None:
        """Add the tokens of a reply, also of one that holds no answer: they are paid for."""
        self.prompt_tokens += usage.get("prompt", 0)
        self.completion_tokens += usage.get("completion", 0)

    def allows(self, prompt_tokens: int, answer_tokens: int) -> bool:
        """Return whether so many tokens more stay within the budgets."""
        prompts = self.prompt_tokens + prompt_tokens
        answers = self.completion_tokens + answer_tokens
        limit, cost = self._endpoint.max_total_tokens, self._endpoint.cost(prompts, answers)
        if limit is not None and prompts + answers > limit:
            return False
        most = self._endpoint.max_cost
        return most is None or cost is None or cost <= most

    def spent(self) -> str:
        """Return tokens and cost in words."""
        total = self.prompt_tokens + self.completion_tokens
        cost = self._endpoint.cost(self.prompt_tokens, self.completion_tokens)
        return f"{total:,} tokens" + ("" if cost is None else f", {cost:.4f} by its prices")

    def record(self) -> dict[str, Any]:
        """Return the counts for run.json."""
        cost = self._endpoint.cost(self.prompt_tokens, self.completion_tokens)
        speed = self._new_tokens / self.seconds if self.seconds else None
        return {
            "answers": self.answers,
            "answered_before": self.known,
            "failed": dict(self.failed),
            "failed_tries": dict(self.tries),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens_per_second": None if speed is None else round(speed, 1),
            **({} if cost is None else {"cost": round(cost, 6)}),
        }

    def postfix(self) -> str:
        """Return what the bar shows: tokens per second, and the share of tries that failed."""
        failed = self.tries.total()
        speed = f"{self._new_tokens / self.seconds:.0f} tokens/s" if self.seconds else ""
        if not failed:
            return speed
        share = 100 * failed / (failed + self.answers)
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.tries.most_common(3))
        return f"{speed}, {share:.0f} % of the tries failed ({reasons})"


def dispatch(
    connection: Connection,
    bodies: Sequence[Mapping[str, Any]],
    modes: Sequence[Mode],
    limits: Sequence[int],
    tally: Tally,
    *,
    label: str,
) -> Iterator[dict[int, Generation]]:
    """Yield answers by the index of their request, as they come.

    Args:
        limits: the most tokens of each answer.

    Raises:
        EvaluationError: the server can't be used, a budget is spent, or too much failed; what was
            answered until then has been yielded.
    """
    if not bodies:
        return
    work = _Work(connection, bodies, modes, limits, tally)
    thread = threading.Thread(target=work.run, daemon=True, name="dualign-endpoint")
    started, before = time.monotonic(), tally.seconds
    thread.start()
    try:
        with progress(len(bodies), label, unit="answer") as bar:
            while (batch := work.arrivals()) is not None:
                tally.seconds = before + time.monotonic() - started
                bar.set_postfix_str(tally.postfix(), refresh=False)
                bar.update(len(batch))
                yield batch
    finally:
        work.cancel()
        thread.join(timeout=10)
    if work.error is not None:
        raise work.error


class _Stop(Exception):
    """Nothing more is asked; the text says why."""


class _TryAgain(Exception):
    """A try that failed, for a reason, and perhaps with the seconds that the server asks to wait."""

    def __init__(self, reason: str, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.reason, self.wait = reason, wait


class _Refused(_TryAgain):
    """A request that would fail again, such as one that is longer than the model reads."""


class _Work:
    """The requests of one call, in a thread with an event loop."""

    def __init__(
        self,
        connection: Connection,
        bodies: Sequence[Mapping[str, Any]],
        modes: Sequence[Mode],
        limits: Sequence[int],
        tally: Tally,
    ) -> None:
        self._connection, self._endpoint = connection, connection.endpoint
        self._bodies, self._modes, self._limits, self._tally = bodies, modes, limits, tally
        self._waiting = deque(range(len(bodies)))
        self._arrived: queue.SimpleQueue[tuple[int, Generation] | None] = queue.SimpleQueue()
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._reserved = [0, 0]  # tokens of prompts and answers that are on their way
        self._not_before = self._next_start = 0.0  # by time.monotonic()
        # Of the stage until here: what was answered before counts as well.
        self._total = len(bodies) + tally.known + tally.answers + tally.failed.total()
        self._change, self._halt = asyncio.Condition(), asyncio.Event()
        self.error: EvaluationError | None = None

    def arrivals(self) -> dict[int, Generation] | None:
        """Wait for answers and return all that are there; None at the end."""
        if self._ended:
            return None
        batch, entry = {}, self._arrived.get()
        while entry is not None:
            batch[entry[0]] = entry[1]
            if self._arrived.empty():
                return batch
            entry = self._arrived.get()
        self._ended = True
        return batch or None

    def cancel(self) -> None:
        """Give up what is on its way."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def run(self) -> None:
        """Ask all requests; the thread's function."""
        try:
            self._task = self._loop.create_task(self._ask_all())
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
            for closing in (self._loop.shutdown_asyncgens(), _streams_closed()):
                self._loop.run_until_complete(closing)
        except Exception as error:
            self._stop(f"{type(error).__name__}: {self._connection.clean(str(error))}")
        finally:
            self._arrived.put(None)
            self._loop.close()

    async def _ask_all(self) -> None:
        async with self._connection.client() as client:
            count = min(self._endpoint.concurrency, len(self._waiting))
            await asyncio.gather(*(self._worker(client) for _ in range(count)))

    async def _worker(self, client: Any) -> None:
        while self._waiting and not self._halt.is_set():
            index = self._waiting.popleft()
            prompt_tokens = len(str(self._bodies[index]).encode()) // _BYTES_PER_TOKEN
            limit = self._limits[index]
            try:
                await self._reserve(prompt_tokens, limit)
                try:
                    generation = await self._answer(client, index)
                    completion = len(generation.text.encode()) // _BYTES_PER_TOKEN
                    usage = generation.usage or {"prompt": prompt_tokens, "completion": completion}
                    self._tally.count(usage)
                    self._arrived.put((index, replace(generation, usage=usage)))
                finally:
                    await self._release(prompt_tokens, limit)
            except _Stop as stop:
                self._stop(str(stop))
            except _TryAgain as failure:
                self._give_up(failure)

    async def _reserve(self, prompt_tokens: int, limit: int) -> None:
        """Wait until the request fits the budgets, whatever those that are on their way need."""
        async with self._change:
            while not self._tally.allows(
                self._reserved[0] + prompt_tokens, self._reserved[1] + limit
            ):
                if self._halt.is_set() or self._reserved == [0, 0]:
                    more = f"{prompt_tokens + limit:,} more"
                    raise _Stop(self._spent(f"the next request may need {more}"))
                await self._change.wait()
            if self._halt.is_set():
                raise _Stop("stopped")
            self._reserved[0] += prompt_tokens
            self._reserved[1] += limit

    def _spent(self, why: str) -> str:
        return f"the budget is spent ({self._tally.spent()}; {why}): raise max_total_tokens or max_cost"

    async def _release(self, prompt_tokens: int, limit: int) -> None:
        async with self._change:
            self._reserved[0] -= prompt_tokens
            self._reserved[1] -= limit
            self._change.notify_all()

    async def _answer(self, client: Any, index: int) -> Generation:
        """Try a request until it is answered.

        Raises:
            _TryAgain: the last try failed, too.
            _Stop: no request can be answered.
        """
        for number in range(1, self._endpoint.tries + 1):
            await self._turn()
            try:
                return await self._try(client, index)
            except _TryAgain as failure:
                self._tally.tries[failure.reason] += 1
                if number == self._endpoint.tries or isinstance(failure, _Refused):
                    raise
                await self._wait(number, failure)
                if self._halt.is_set():
                    raise
        raise AssertionError("the last try returns or raises")

    async def _turn(self) -> None:
        """Wait for what the server asked for, and for the next start by `requests_per_minute`."""
        per_minute = self._endpoint.requests_per_minute
        while (now := time.monotonic()) < max(self._not_before, self._next_start):
            await self._sleep(max(self._not_before, self._next_start) - now)
            if self._halt.is_set():
                raise _Stop("stopped")
        if per_minute is not None:
            self._next_start = now + 60 / per_minute

    async def _wait(self, number: int, failure: _TryAgain) -> None:
        longest = self._endpoint.max_wait_seconds
        if failure.wait is not None and failure.wait > longest:
            raise _Stop(
                f"the server asks to wait {failure.wait:g} s ({failure}), longer than max_wait_seconds "
                f"({longest:g}): run again later"
            )
        if failure.wait is not None:
            self._not_before = max(self._not_before, time.monotonic() + failure.wait)
        # Also then: a server that says 0, or a second each time, would spend all tries at once.
        wait = min(_FIRST_WAIT * 2 ** (number - 1), _LONGEST_BACKOFF, longest)
        await self._sleep(wait * random.uniform(0.5, 1))

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the work."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._halt.wait()

    async def _try(self, client: Any, index: int) -> Generation:
        import openai

        try:
            async with asyncio.timeout(self._endpoint.timeout_seconds):
                text = await self._post(client, dict(self._bodies[index]))
            return read_reply(text, self._modes[index])
        except UnusableReplyError as error:
            self._tally.add(error.usage or {})
            if not self._tally.allows(*self._reserved):
                raise _Stop(self._spent("another try may need more")) from None
            raise _TryAgain(str(error), self._connection.clean(text)) from None
        except (TimeoutError, openai.APITimeoutError):
            seconds = self._endpoint.timeout_seconds
            raise _TryAgain("timeout", f"no answer within {seconds:g} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIError as error:  # also in the middle of a stream
            raise _TryAgain("connection", self._connection.words(error)) from None
        except ValueError:  # a piece of a stream
            raise _TryAgain("garbage", "a piece that is no JSON") from None

    async def _post(self, client: Any, body: dict[str, Any]) -> str:
        """Return the JSON of a reply."""
        if not self._endpoint.stream:
            return str(await client.post("/chat/completions", cast_to=str, body=body))
        import openai
        from openai.types.chat import ChatCompletionChunk

        pieces = Pieces()
        chunks = await client.post(
            "/chat/completions",
            cast_to=ChatCompletionChunk,
            body=body,
            stream=True,
            stream_cls=openai.AsyncStream[ChatCompletionChunk],
        )
        async for chunk in chunks:
            pieces.put(chunk.to_dict())
        return pieces.reply()

    def _refusal(self, error: Any) -> Exception:
        """Return what to do about a status: stop, try again, or leave this request."""
        status, words = int(error.status_code), self._connection.words(error)
        if status in _NEVER or "insufficient_quota" in error.response.text:
            return _Stop(words)
        if status in _AGAIN or status >= 500:
            return _TryAgain(str(status), words, _retry_after(error.response.headers))
        return _Refused(str(status), words)

    def _give_up(self, failure: _TryAgain) -> None:
        """Count a request that stays without an answer; end the work if that are too many."""
        self._tally.failed[failure.reason] += 1
        failed = self._tally.failed.total()
        if failed > self._endpoint.max_failed * self._total:
            tries = ", ".join(f"{n} {reason}" for reason, n in self._tally.tries.most_common())
            self._stop(
                f"{failed} of {self._total} requests failed, more than max_failed "
                f"({self._endpoint.max_failed:g}); tries that failed: {tries}; the last: {failure}"
            )

    def _stop(self, text: str) -> None:
        """Start no request more; those that are on their way come in."""
        if self.error is None:
            self.error = EvaluationError(
                f"{self._endpoint.label} at {self._endpoint.url}: {text}. The answers until now are "
                "kept: run again to go on"
            )
            self._halt.set()


async def _streams_closed() -> None:
    """Wait for the tasks in which the loop closes generators that streams left behind."""
    await asyncio.sleep(0)  # what the garbage collector has handed over becomes tasks
    while closing := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(closing)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait: retry-after-ms, or Retry-After as a number or date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(ValueError):
            return max(0.0, float(headers.get(name) or "")) / unit
    with suppress(ValueError):
        date = parsedate_to_datetime(headers.get("retry-after") or "").timestamp()
        return max(0.0, date - time.time())
    return None
