"""Which kernels of a compiled step are launched as one.

torch's compiler joins kernels that are as far from the inputs, in operators of any sort, as each
other. Branches of the network that have unlike layers then hardly meet. Here kernels are put in an
order, in which all those that could run at a time are joined.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

LONG = 2048  # reductions of more numbers become a kernel of their own kind


def install() -> None:
    """Have torch's compiler use `groups`, for devices that it joins kernels for."""
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(
        lambda scheduler: groups(scheduler, _is_joined)
    )


def groups(scheduler: Any, is_joined: Callable[[Any], bool]) -> list[list[Any]]:
    """Return the nodes of torch's scheduler that can be joined, group after group.

    A group is taken when nothing else is left to run: the kernel with the longest chain of kernels
    behind it, and all others of its kind that wait. Those that little depends on wait for company.

    Args:
        is_joined: of a node, whether it may have a part in a group.
    """
    from torch._inductor import config

    order = [node for level in scheduler._topological_sort_nodes() for node in level]
    before = {node: scheduler._get_unmet_dep_nodes(node) for node in order}
    after = collections.defaultdict(list)
    for node, others in before.items():
        for other in others:
            after[other].append(node)
    joined = {node for node in _combinable(order) if is_joined(node)}
    chain: dict[Any, int] = {}  # the most kernels one after another from this one on
    for node in reversed(order):
        chain[node] = (node in joined) + max((chain[other] for other in after[node]), default=0)
    num_waited_for = {node: len(others) for node, others in before.items()}
    ready, found = [node for node in order if not before[node]], []
    while ready:
        taken = [node for node in ready if node not in joined]
        if not taken:
            ready.sort(key=chain.__getitem__, reverse=True)
            taken = [node for node in ready if _kind(node) == _kind(ready[0])]
            taken = taken[: config.combo_kernel_max_num_nodes]
            found.append(taken)
        ready = [node for node in ready if node not in set(taken)]
        for node in taken:
            for other in after[node]:
                num_waited_for[other] -= 1
                if not num_waited_for[other]:
                    ready.append(other)
    return found


def _is_joined(node: Any) -> bool:
    return node.get_device() is not None and node.get_device().type == "cuda"


def _combinable(nodes: list[Any]) -> list[Any]:
    """Return the nodes that the compiler can join with others."""
    from torch._inductor import scheduler

    # What reads a reduction that is finished in two steps stays behind it, as the compiler has it.
    reductions = getattr(scheduler, "FusedMixOrderReductions", ())
    kept = {
        name
        for node in nodes
        if isinstance(node, reductions)
        for name in node.get_buffer_names()
    }
    found = scheduler.ForeachKernelSchedulerNode.combinable_nodes(nodes)
    return [node for node in found if not node.used_buffer_names() & kept]


def _kind(node: Any) -> tuple[Any, ...]:
    """Return what two nodes that become one kernel have in common."""
    rows = node.group[-1][-1] if node.is_reduction() else 0
    return node.get_device(), node.is_reduction(), rows > LONG
