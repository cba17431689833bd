"""What one side of a connection answers to: methods, and who carries them out.

There are two ways to carry out a request. A :data:`Handler` runs in a task of its own and may wait. A :data:`Prompt` is
called by the reader itself, must not wait, and answers at once or hands the request to somebody who answers later; it
saves the task, which costs more than a small answer does. It may decline, and then the handler is started.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from shoalfs.transport.errors import ShoalError
from shoalfs.transport.frame import Payload
from shoalfs.transport.limits import LINKS_TOLD_MAX
from shoalfs.transport.links import LINKS, GetLinks, Links
from shoalfs.transport.method import A, AnyMethod, Method, Q
from shoalfs.transport.session import Hello

if TYPE_CHECKING:
    from shoalfs.transport.rpc import Connection


@dataclass(slots=True)
class Call:
    """What a handler knows about the request beside its message. ``deadline`` is on trio's clock; when it passes the
    handler is cancelled, since nobody waits for the answer. A notification has none (inf)."""

    peer: Hello
    deadline: float
    connection: "Connection"


Handler = Callable[[Call, Q, memoryview], Awaitable[A | tuple[A, Payload]]]

Done = Callable[[A | tuple[A, Payload] | ShoalError], None]
"""Answers the request that it was made for. To be called exactly once, from trio's thread; a connection that has ended
meanwhile, or a deadline that has passed, does no harm."""

Prompt = Callable[[Call, Q, memoryview, Done[A]], bool]
"""Carries out a request without waiting: True if ``done`` was called or will be. False: nothing was done, and the
method's handler is to do it. A ShoalError that it raises is the answer."""


class Service:
    """What this side answers to; LINKS always. ``counters`` are for operators: connections, requests, frames_bad and
    the like; ``accepted`` are the open connections that this service was dialled for."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.accepted: set[Connection] = set()
        self._handlers: dict[int, Handler[Any, Any]] = {}
        self._prompts: dict[int, Prompt[Any, Any]] = {}
        self._methods: dict[int, AnyMethod] = {}
        self.add(LINKS, self._links)

    @property
    def methods(self) -> Mapping[int, AnyMethod]:
        return self._methods

    @property
    def prompts(self) -> Mapping[int, Prompt[Any, Any]]:
        """By the method's number; not every method has one."""
        return self._prompts

    def add(self, method: Method[Q, A], handler: Handler[Q, A], prompt: Prompt[Q, A] | None = None) -> None:
        """Answer ``method`` with what ``await handler(call, request, payload)`` returns: the answer, or the answer
        and a payload, whose buffers must not change any more.

        A ShoalError that it raises is the answer, too. It is cancelled at the request's deadline and when the
        connection ends. Handlers of one connection run side by side, those of notifications one after the other;
        the latter must not wait for an answer over the same connection. ``prompt`` is tried first, on requests only.
        """
        assert method.number not in self._methods, method
        self._methods[method.number] = method
        self._handlers[method.number] = handler
        if prompt is not None:
            self._prompts[method.number] = prompt

    def handler(self, method: AnyMethod) -> Handler[Any, Any]:
        return self._handlers[method.number]

    async def _links(self, call: Call, request: GetLinks, payload: memoryview) -> Links:
        told = tuple(connection.status for connection in islice(self.accepted, LINKS_TOLD_MAX))
        return Links(told, len(self.accepted) - len(told))
