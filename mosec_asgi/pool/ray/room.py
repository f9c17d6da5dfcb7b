"""What of a cluster a worker needs, and how many fit. Pure: numbers in, numbers and words out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What a node has of itself besides what can be asked for.
_OWN = ("node:", "memory", "object_store_memory", "accelerator_type:")


def asked(options: Mapping[str, Any]) -> dict[str, float]:
    """Return what an actor with these options asks for, by Ray's names of resources."""
    wanted = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), "memory": options.get("memory")}
    wanted |= dict(options.get("resources") or {})
    if label := options.get("accelerator_type"):
        wanted[f"accelerator_type:{label}"] = 0.001
    return {name: float(amount) for name, amount in wanted.items() if amount}


def fitting(
    nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], wanted: Mapping[str, float], own: int
) -> int:
    """Return how many workers of a stage fit into a cluster.

    Args:
        nodes: the resources of each node.
        free: what of all that nobody has taken.
        wanted: by each worker; of nothing, as many fit as there are now.
        own: workers of the stage that are there, and whose resources others cannot take.
    """
    if not wanted:
        return own
    # By nodes, as no worker is on two of them; and by what is free, as the stage is not alone.
    by_nodes = sum(_times(node, wanted) for node in nodes)
    return min(by_nodes, own + _times(free, wanted))


def emptiest(nodes: Mapping[str, Mapping[str, float]], taken: Mapping[str, int], wanted: Mapping[str, float]) -> str:
    """Return the node for the next worker of a stage that is to be on as many nodes as there are.

    Args:
        nodes: the resources of each, by its name.
        taken: by the same names, how many workers of the stage are there.
        wanted: by each worker.

    Returns:
        of the nodes that have what is wanted, the one with the fewest workers; empty where none has.
    """
    able = [name for name, node in nodes.items() if not wanted or _times(node, wanted)]
    return min(able, key=lambda name: (taken.get(name, 0), name), default="")


def _times(there: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    # Shares are written in decimals: three of 0.1 in 0.3.
    return min(int(there.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items())


def lacking(nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    """Say why a worker finds no place in a cluster, and what would help."""
    has = f"the cluster has {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    if not wanted:
        return f"it asks for nothing and has not begun all the same; {has}: `ray status` and Ray's logs may say why"
    needs = in_words(wanted)
    if not any(_times(node, wanted) for node in nodes):
        most = ", ".join(sorted({in_words(node) for node in nodes})) or "nothing"
        return (
            f"it asks for {needs}, and no node has that ({has}, of {most}); ask for less in ray_actor_options, or add "
            "a node"
        )
    if _times(free, wanted):
        return (
            f"it asks for {needs}, and so much is free ({in_words(free)}): Ray starts its process, or no single node "
            "has that left; `ray status` and Ray's logs may say which"
        )
    return (
        f"it asks for {needs}, and {has} of which so much is not free (free: {in_words(free)}); lower num, ask for "
        "less in ray_actor_options, or add a node"
    )


def in_words(resources: Mapping[str, float]) -> str:
    """Return resources as text, without those that every node has."""
    shown = {name: amount for name, amount in resources.items() if not name.startswith(_OWN) and amount}
    return " and ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items())) or "nothing"
