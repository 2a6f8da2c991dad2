"""Connections to all nodes of a Redis Cluster for asyncio; what `ClusterLinks` is for threads."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from redis.exceptions import ResponseError, TryAgainError

from datapatterns.cache_aside.cluster_links import (
    REDIRECTIONS_MAX,
    AnyLinks,
    ClusterLinks,
    Errand,
    by_address,
)
from datapatterns.cache_aside.link import Refused
from datapatterns.cache_aside.links_async import AsyncLinks
from datapatterns.cache_aside.lua_scripts import Command
from datapatterns.cache_aside.redis_sources_async import async_pool_at, async_pool_of
from datapatterns.cache_aside.slots import Address, joined, parts_of
from datapatterns.cache_aside.steps import CacheSilence


class AsyncClusterLinks:
    """Hands out what `AsyncLinks` does, for a cluster.

    Args:
        timeout_seconds: How long to wait for a connection or an answer.
        reports_to: The sync links to the same cluster, which know its nodes.
    """

    def __init__(self, *, timeout_seconds: float, reports_to: ClusterLinks) -> None:
        self._timeout_seconds = timeout_seconds
        self._cluster = reports_to
        self._nodes: dict[Address, AsyncLinks] = {}

    async def call(self, command: Command, *, identity: str) -> object:
        """Return the reply to one command, in one round trip to each node concerned.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        known = self._cluster.known
        if known is None:  # nobody has looked at the cluster, so nothing is known to be right
            raise CacheSilence("nothing is known of the cluster")
        parts = parts_of(command)
        errands = [Errand(part, known.owners[part.slot]) for part in parts]
        return joined(command, await self._replies(errands, identity))

    async def close(self) -> None:
        """Close the links that nobody uses."""
        for node in self._nodes.values():
            await node.close()

    async def _replies(self, errands: Sequence[Errand], identity: str) -> list[object]:
        replies: dict[int, object] = {}
        left = dict(enumerate(errands))
        for _ in range(REDIRECTIONS_MAX):
            for number, reply in (await self._told(left, identity)).items():
                if isinstance(reply, TryAgainError):
                    raise Refused(reply) from reply
                if isinstance(reply, ResponseError):
                    left[number] = self._cluster.redirected(left[number], reply)
                else:
                    replies[number] = reply
                    del left[number]
            if not left:
                return [replies[number] for number in range(len(errands))]
        raise CacheSilence("the nodes send from one to the other")

    async def _told(self, errands: Mapping[int, Errand], identity: str) -> dict[int, object]:
        """Return what is replied, after one round trip to all nodes at once."""
        grouped = by_address(errands)
        members = self._cluster.members
        found = await asyncio.gather(
            *(
                self._node(address).call_all(
                    [command for number in numbers for command in errands[number].commands],
                    identity=members.at(address, identity),
                )
                for address, numbers in grouped.items()
            )
        )
        replies: dict[int, object] = {}
        for numbers, several in zip(grouped.values(), found, strict=True):
            told = iter(several)
            for number in numbers:
                replies[number] = errands[number].reply_in(told)
        return replies

    def _node(self, address: Address) -> AsyncLinks:
        node = self._nodes.get(address)
        if node is None:
            pool = async_pool_at(
                address, self._cluster.seeds, timeout_seconds=self._timeout_seconds
            )
            node = self._nodes[address] = AsyncLinks(
                pool, reports_to=self._cluster.node(address), in_cluster=True
            )
        return node


AnyAsyncLinks: TypeAlias = AsyncLinks | AsyncClusterLinks


def async_links_to(url: str, *, timeout_seconds: float, reports_to: AnyLinks) -> AnyAsyncLinks:
    """Return links for asyncio to what ``url`` says.

    Args:
        url: Of a server, a cluster or sentinels.
        timeout_seconds: How long to wait for a connection or an answer.
        reports_to: The sync links to the same.
    """
    if isinstance(reports_to, ClusterLinks):
        return AsyncClusterLinks(timeout_seconds=timeout_seconds, reports_to=reports_to)
    pool = async_pool_of(url, timeout_seconds=timeout_seconds)
    return AsyncLinks(pool, reports_to=reports_to)
