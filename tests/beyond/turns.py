"""Processes that take turns by a plan, request by request: what two of them do at once, as it can be done again."""

import threading
from collections.abc import Callable, Sequence


class Interruption:
    """Runs a story to its end before one of another's requests.

    Args:
        at: The number of requests that are made before it.
        story: The story.
    """

    def __init__(self, at: int, story: Callable[[], None]) -> None:
        self._left = at
        self._story = story

    def take(self, who: object) -> None:
        """Lets the story come first, when it is time."""
        self._left -= 1
        if self._left == -1:
            self._story()


class Turns:
    """Lets one of several threads run at a time.

    Args:
        plan: The places of the threads among those that are run, each with the number of requests that it makes before
            the next one's turn. When the plan is over they run to their ends, one after another, as it began.
    """

    def __init__(self, plan: Sequence[tuple[int, int]]) -> None:
        self._plan = list(plan)
        self._changed = threading.Condition()
        self._running: list[object] = []
        self._active: object = None  # it makes a request, or does what follows from its answer
        self._numbers: dict[object, int] = {}

    def take(self, who: object) -> None:
        """Waits until it is somebody's turn for a request."""
        with self._changed:
            self._leave(who)
            while self._active is not None or self._next() != self._numbers[who]:
                assert self._changed.wait(30), "nobody's turn"
            self._active = who
            if self._plan:
                self._plan[0] = (self._numbers[who], self._plan[0][1] - 1)

    def run(self, stories: Sequence[tuple[object, Callable[[], None]]]) -> None:
        """Runs stories to their ends, each in a thread, and raises the first error of one."""
        self._numbers = {who: number for number, (who, _) in enumerate(stories)}
        self._running = [who for who, _ in stories]
        errors: list[BaseException] = []

        def guarded(who: object, story: Callable[[], None]) -> None:
            try:
                story()
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asked for the stories
                errors.append(error)
            finally:
                with self._changed:
                    self._running.remove(who)
                    self._leave(who)

        threads = [threading.Thread(target=guarded, args=each, daemon=True) for each in stories]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _leave(self, who: object) -> None:
        if self._active is who:
            self._active = None
        self._changed.notify_all()

    def _next(self) -> int:
        while self._plan and (not self._plan[0][1] or not self._is_running(self._plan[0][0])):
            self._plan.pop(0)
        return self._plan[0][0] if self._plan else self._numbers[self._running[0]]

    def _is_running(self, number: int) -> bool:
        return any(self._numbers[who] == number for who in self._running)
