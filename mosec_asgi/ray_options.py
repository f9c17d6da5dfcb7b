"""What a stage asks of Ray: the options of its actors, and where they are placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mosec_asgi.errors import DefinitionError

PLACEMENTS = ("SPREAD", "PACK")
# Options of an actor that are the server's: it starts another when one dies, and sends it what it has to do.
_OURS = {
    "max_restarts": "the server starts another when one dies",
    "max_task_retries": "max_attempts says how often a call is tried",
    "max_concurrency": "an actor runs one worker; set concurrency, or num",
    "concurrency_groups": "an actor runs one worker; set concurrency, or num",
    "lifetime": "the actors of a service end with it",
    "name": "the actors of a stage would all have it",
    "get_if_exists": "the actors of a service are its own",
    "max_pending_calls": "the server does not call an actor",
    "scheduling_strategy": "give it as placement",
    "placement_group": "give it as placement",
}


@dataclass(frozen=True, slots=True)
class RayOptions:
    """What a stage asks of Ray.

    Attributes:
        actor_options: of each of its actors, such as `num_gpus`.
        placement: "SPREAD", "PACK", a placement group of Ray, or None for Ray's own choice.
        follows: there are as many workers as fit into the cluster.
    """

    actor_options: Mapping[str, Any] = field(default_factory=dict)
    placement: Any = None
    follows: bool = False


def checked_ray_options(options: Any, placement: Any, worker: str, *, follows: bool = False) -> RayOptions:
    """Return what a stage asks of Ray.

    Args:
        options: as the user has given them.
        placement: likewise.
        worker: the name of its class.
        follows: its number of workers is "auto".

    Raises:
        DefinitionError: something does not fit; the text says what to change.
    """
    if options is None:
        options = {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise DefinitionError(
            f"ray_actor_options of {worker} must be a dictionary of options of an actor, such as {{'num_gpus': 1}}, "
            f"not {options!r}"
        )
    for name, why in _OURS.items():
        if name in options:
            raise DefinitionError(f"ray_actor_options of {worker} has {name!r}; leave it out: {why}")
    for name in ("num_cpus", "num_gpus", "memory"):
        amount = options.get(name)
        if amount is not None and (isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0):
            raise DefinitionError(f"ray_actor_options of {worker}: {name} must be a number, 0 or more, not {amount!r}")
    if not (placement is None or placement in PLACEMENTS or type(placement).__name__ == "PlacementGroup"):
        raise DefinitionError(
            f'placement of {worker} must be "SPREAD", "PACK" or a placement group of Ray, not {placement!r}'
        )
    if follows and not any(options.get(name) for name in ("num_cpus", "num_gpus", "memory", "resources")):
        raise DefinitionError(
            f'num="auto" of {worker} needs to know what a worker takes of a node; say so, as by '
            "ray_actor_options={'num_gpus': 1}"
        )
    return RayOptions(dict(options), placement, follows)
