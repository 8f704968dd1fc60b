"""Leases that are renewed from a thread while something long is computed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable

from jaxnas.trial_json import TrialError
from jaxnas.trials import Claimed, Store


class Heart:
    """Beats for the claims in `held` every `seconds`, from `with` to its end.

    A compiled program holds no interpreter lock, so that a training does not keep the thread from
    running. A lease that is lost all the same costs a second training: finishing will tell, as it
    will of a disk.
    """

    def __init__(self, store: Store, seconds: float, *, held: Iterable[Claimed] = (),
                 on_beat: Callable[[], None] = lambda: None) -> None:
        """Prepare.

        Args:
          store: that the claims are of.
          seconds: between two beats, above 0; a tenth of a lease is usual.
          held: claims; `hold` and `drop` change them.
          on_beat: called in the thread after every beat.
        """
        self._store, self._seconds, self._on_beat = store, seconds, on_beat
        self._held = {claimed.token: claimed for claimed in held}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def hold(self, claimed: Claimed) -> None:
        """Beat for a claim, too."""
        with self._lock:
            self._held[claimed.token] = claimed

    def drop(self, claimed: Claimed) -> None:
        """Beat for a claim no more."""
        with self._lock:
            self._held.pop(claimed.token, None)

    @property
    def held(self) -> list[Claimed]:
        """The claims that it beats for."""
        with self._lock:
            return list(self._held.values())

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            for claimed in self.held:
                with contextlib.suppress(TrialError):
                    self._store.heartbeat(claimed)
            self._on_beat()

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
