"""mosec's mixin for Plasma, the store of Arrow that is no more: the shared memory of this package replaces it."""

from __future__ import annotations

from mosec_asgi.worker import Worker


class PlasmaShmIPCMixin(Worker):
    """Takes mosec's name, so that a service that uses it can be run; it does nothing.

    Arrow has given Plasma up. Payloads of 64 KiB and more go through shared memory between all stages, with nothing to
    set up: see the setting `shared_memory`.
    """

    _advice = (
        "PlasmaShmIPCMixin does nothing here, as Arrow has given Plasma up: large payloads go through shared memory "
        "between all stages by themselves (the setting `shared_memory` says how much); remove the mixin, and the store "
        "that the program starts for it"
    )

    @classmethod
    def set_plasma_path(cls, path: str) -> None:
        """Do nothing.

        Args:
            path: where mosec would find the store.
        """
