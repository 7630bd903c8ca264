"""The prefix cache: policies, retention, pins, events, capacity, layer groups."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

import pagedkv


def visit(cache, first, count, **options):
    """Opens a sequence for the tokens first, first + 1, ..., computes what is not cached, closes it; returns what was."""
    with cache.open(list(range(first, first + count)), **options) as sequence:
        cached, new = sequence.cached_tokens, count - sequence.num_tokens
        with cache.begin_step([(sequence, new)]) as step:
            rows = np.zeros((new, cache.num_kv_heads, cache.head_dim), np.float32)
            for layer in range(cache.num_layers):
                step.write(layer, rows, rows)
            step.commit()
    return cached


@pytest.fixture
def small(make_cache):
    """A cache of four pages of two tokens."""
    return lambda **options: make_cache(**{**dict(page_size=2, capacity_pages=4, num_layers=1), **options})


class Mru(pagedkv.EvictionPolicy):
    """Most recently used first."""

    def __init__(self):
        self.candidates, self.published, self.hits, self.num_pages = [], [], [], None

    def attach(self, num_pages):
        self.num_pages = num_pages

    def on_published(self, page, prefix_hash, index):
        self.published.append((page, prefix_hash, index))

    def on_hit(self, page):
        self.hits.append(page)

    def on_evictable(self, page):
        self.candidates.append(page)

    def on_withdrawn(self, page):
        self.candidates.remove(page)

    def choose(self):
        return self.candidates.pop()


def test_a_policy_in_python_chooses(small):
    policy = Mru()
    cache = small(eviction_policy=policy)
    visit(cache, 100, 4)
    visit(cache, 200, 4)
    assert policy.num_pages == 4 and len(policy.candidates) == 4
    assert [index for _, _, index in policy.published] == [0, 1, 0, 1]
    visit(cache, 300, 2)
    assert visit(cache, 100, 5) == 4  # the older prompt is all there
    assert len(policy.hits) == 2


@pytest.mark.parametrize("answer", [-1, 7, 2**40, None, "page", ValueError])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_policy_that_answers_nonsense_costs_the_order_and_no_page(small, answer):
    class Liar(Mru):
        def choose(self):
            if answer is ValueError:
                raise ValueError("no idea")
            return answer

    cache = small(eviction_policy=Liar())
    for prompt in range(6):
        visit(cache, 100 * prompt, 4)
    assert cache.stats()["evictions"] == 8 and cache.stats()["published_pages"] == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_no_policy_is_refused(small):
    class Refuses(Mru):
        def attach(self, num_pages):
            raise MemoryError

    with pytest.raises(pagedkv.InvalidArgument):
        small(eviction_policy=Refuses())
    with pytest.raises(TypeError, match="EvictionPolicy"):
        small(eviction_policy=object())
    with pytest.raises(ValueError, match="lru"):
        small(eviction_policy="random")


@pytest.mark.parametrize("name", ["lru", "arc", "s3fifo"])
def test_built_in_policies_serve(small, name):
    cache = small(eviction_policy=name)
    for prompt in range(6):
        visit(cache, 100 * prompt, 4)
    assert visit(cache, 500, 5) == 4


def test_threads_and_a_policy_in_python_do_not_wait_for_each_other_for_ever(make_cache, many_turns):
    cache = make_cache(page_size=2, capacity_pages=40, num_layers=1, eviction_policy=Mru())
    errors = []

    def serve(first):
        try:
            for prompt in range(20):
                visit(cache, first + 10 * prompt, 4)
                cache.stats()
        except pagedkv.OutOfPages:
            pass
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(10_000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and cache.stats()["used_pages"] == 0


class Littering(Mru):
    """Leaves cycles behind in its methods, and lets the collector find them there."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def choose(self):
        if self.make:
            cycle = [self.make.pop()]
            cycle.append(cycle)
            del cycle
            gc.collect()
        return super().choose()


@pytest.mark.parametrize("kind", ["sequence", "step", "cache"])
def test_what_dies_while_a_policy_chooses_is_destroyed_after_it(make_cache, kind):
    victims = []
    cache = make_cache(page_size=1, capacity_pages=16, num_layers=1, eviction_policy=Littering(victims))
    visit(cache, 100, 10)  # leaves pages to evict
    sequence = cache.open()
    if kind == "sequence":
        sequence.append(4)
        victims.append(sequence)
    elif kind == "step":
        victims.append(cache.begin_step([(sequence, 4)]))
    else:
        victims.append(make_cache(page_size=1, capacity_pages=4, num_layers=1))
    del sequence
    other = cache.open()
    other.append(8)
    assert not victims
    other.close()
    assert cache.stats()["used_pages"] == 0 and cache.stats()["open_sequences"] == 0


def test_a_step_that_is_the_last_to_know_its_cache_waits_for_no_interpreter_lock(make_cache):
    class Slow(Mru):
        entered = threading.Event()

        def on_evictable(self, page):
            self.entered.set()
            time.sleep(0.01)
            super().on_evictable(page)

    cache = make_cache(page_size=1, capacity_pages=64, num_layers=1, eviction_policy=Slow())
    sequence = cache.open(list(range(4)))
    step = cache.begin_step([(sequence, 4)])
    step.commit()
    del cache
    thread = threading.Thread(target=sequence.close)
    thread.start()
    Slow.entered.wait()
    del step
    thread.join()


def test_retention_outlives_and_pins_stay(small):
    cache = small()
    kept = [pagedkv.RetentionRange(0, None, priority=90)]
    visit(cache, 100, 4, retention=kept)
    for prompt in range(2, 8):
        visit(cache, 100 * prompt, 4)
    assert visit(cache, 100, 5) == 4
    cache = small()
    visit(cache, 100, 4)
    pin = cache.pin([100, 101, 102, 103])
    assert cache.stats()["pinned_pages"] == 2
    for prompt in range(2, 8):
        visit(cache, 100 * prompt, 4)
    assert visit(cache, 100, 5) == 4
    cache.unpin(pin)
    with pytest.raises(pagedkv.NotFound):
        cache.unpin(pin)
    with pytest.raises(pagedkv.NotFound):
        cache.pin([7, 8, 9])
    with pytest.raises(pagedkv.InvalidArgument):
        cache.open(retention=[pagedkv.RetentionRange(5, 2)])
    with pytest.raises(pagedkv.InvalidArgument):
        cache.open(retention=[pagedkv.RetentionRange(priority=101)])


def test_tenants_do_not_share(small):
    cache = small()
    visit(cache, 100, 4, cache_salt="a")
    assert visit(cache, 100, 5, cache_salt="b") == 0
    with pytest.raises(pagedkv.InvalidArgument):
        cache.open(cache_salt="x" * 5000)


@pytest.mark.parametrize("zeroes", [False, True])
def test_pages_may_be_zeroed_when_they_change_tenants(small, zeroes):
    cache = small(capacity_pages=1, zero_pages_between_tenants=zeroes)
    ones = np.ones((1, cache.num_kv_heads, cache.head_dim), np.float32)
    with cache.open(cache_salt="a") as first, cache.begin_step([(first, 1)]) as step:
        step.write(0, ones, ones)
        step.commit()
    page = torch.from_dlpack(cache.view_k(0))[0]  # [num_kv_heads, page_size, head_dim]
    assert page[:, 0].all()
    with cache.open(cache_salt="b") as second, cache.begin_step([(second, 1)]):
        assert bool(page.any()) != zeroes


def test_events_tell_what_can_be_found(small):
    cache = small(event_capacity=16)
    visit(cache, 100, 4)
    cache.clear_prefix_cache()
    first, second, cleared = cache.poll_events()
    assert (first.kind, first.tokens, first.sequence_number) == ("stored", [100, 101], 0)
    assert (second.tokens, second.parent_hash) == ([102, 103], first.hash)
    assert (cleared.kind, cleared.page, cleared.tokens) == ("cleared", -1, [])
    assert cache.poll_events() == [] and "stored" in repr(first)
    assert small().poll_events() == []


def test_the_prefix_cache_can_be_off(small):
    cache = small(prefix_cache=False)
    visit(cache, 100, 4)
    assert visit(cache, 100, 5) == 0
    with pytest.raises(pagedkv.Unsupported):
        cache.pin([100, 101])


def test_capacity_changes_while_it_serves(small):
    cache = small(max_capacity_pages=8)
    assert (cache.capacity_pages, cache.max_capacity_pages) == (4, 8)
    visit(cache, 100, 4)
    cache.set_capacity(8)
    assert cache.pages_available == 8
    cache.set_capacity(1)
    for pages in (0, 9, 2**63):
        with pytest.raises(pagedkv.InvalidArgument):
            cache.set_capacity(pages)
    assert cache.capacity_pages == 1


def test_layers_with_windows_have_page_tables_of_their_own(make_cache):
    cache = make_cache(num_layers=4, page_size=2, layer_groups=[([0, 2], -1, 0), ([1, 3], 3, 0)], capacity_pages=64)
    assert cache.page_table_of(0) != cache.page_table_of(1)
    with cache.open() as sequence:
        rows = np.zeros((1, 2, 16), np.float32)
        for _ in range(12):
            with cache.begin_step([(sequence, 1)]) as step:
                for layer in range(4):
                    step.write(layer, rows, rows)
                step.commit()
        full, windowed = (sequence.pages_of(cache.page_table_of(layer)) for layer in (0, 1))
        assert -1 not in full and windowed[0] == -1
        with pytest.raises(pagedkv.InvalidArgument):
            sequence.pages_of(99)
    with pytest.raises(TypeError, match="layer_groups"):
        make_cache(num_layers=1, layer_groups=[([0], -1)])
    assert cache.pages_for_tokens(100, 1) < cache.pages_for_tokens(100)
    for groups in ([([0], -1, 0)], [([0, 1, 2, 3, 9], -1, 0)], [([0, 1, 2, 3], -1, 0), ([0], 5, 0)]):
        with pytest.raises(pagedkv.InvalidArgument):
            make_cache(num_layers=4, layer_groups=groups)


def test_a_sequence_slides_on_demand(make_cache):
    cache = make_cache(page_size=2)
    sequence = cache.open()
    sequence.append(10)
    assert sequence.slide(4, sink_tokens=1) == 2
    assert sequence.pages[1:3] == [-1, -1] and sequence.pages[0] >= 0
    with pytest.raises(pagedkv.InvalidArgument):
        sequence.slide(4, group=1)


def test_unknown_missing_and_mistyped_arguments_are_named():
    shape = dict(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=8, capacity_pages=1)
    with pytest.raises(TypeError, match="capacity_page"):
        pagedkv.KvCache(**shape, capacity_page=4)
    with pytest.raises(TypeError, match="num_layers"):
        pagedkv.KvCache(num_q_heads=1, num_kv_heads=1, head_dim=8)
    with pytest.raises(TypeError, match="page_size"):
        pagedkv.KvCache(**shape, page_size="16")
    with pytest.raises(TypeError):
        pagedkv.KvCache(1, 1, 1, 8)


def test_a_cache_and_its_policy_go_together(small):
    policy = Mru()
    cache = small(eviction_policy=policy)
    visit(cache, 100, 4)
    sequence = cache.open([1, 2, 3])
    del cache
    gc.collect()
    sequence.append(1)  # keeps what it needs alive
    del sequence
    gc.collect()


def test_facts_of_the_machine():
    assert pagedkv.cpu_info()["num_cpus"] >= 1
    assert pagedkv.active_target() in [target["name"] for target in pagedkv.targets() if target["available"]]
