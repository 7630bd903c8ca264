"""Eviction policies of one's own."""

import abc


class EvictionPolicy(abc.ABC):
    """Chooses which unreferenced published page is taken next; goes to KvCache(eviction_policy=...).

    Methods are called under the pool's lock, from any thread: be quick, never call the cache. An exception goes to
    sys.unraisablehook, and the library goes on. A choice that is no candidate is replaced by one that is, which
    `on_withdrawn` tells.
    """

    def attach(self, num_pages: int) -> None:
        """Called once, before anything else. Ids are below `num_pages`."""

    def on_published(self, page: int, prefix_hash: int, index: int) -> None:
        """A page can be found from now on, `index` pages after the beginning of its prefix; it is referenced."""

    def on_hit(self, page: int) -> None:
        """A page was found by its tokens. It is referenced: no candidate."""

    @abc.abstractmethod
    def on_evictable(self, page: int) -> None:
        """A page became a candidate: nobody refers to it."""

    @abc.abstractmethod
    def on_withdrawn(self, page: int) -> None:
        """A candidate is none any more."""

    @abc.abstractmethod
    def choose(self) -> int:
        """One of the candidates (there is one), which is none from then on."""
