"""PagePool and SequenceStore: storage for kernels of one's own."""

import gc

import numpy as np
import pytest

import pagedkv


@pytest.fixture
def pool():
    return pagedkv.PagePool(page_bytes=256, capacity_pages=8, max_capacity_pages=16)


def test_pages_are_counted_by_reference(pool):
    pages = pool.allocate(3)
    assert len(set(pages)) == 3 and pool.available_pages == 5
    pool.retain(pages[:1])
    assert pool.ref_count(pages[0]) == 2 and pool.stats()["shared_pages"] == 1
    pool.release(pages)
    pool.release(pages[:1])
    assert pool.available_pages == 8 and pool.stats()["used_pages"] == 0
    with pytest.raises(pagedkv.InvalidArgument):
        pool.release(pages[:1])
    with pytest.raises(pagedkv.InvalidArgument):
        pool.retain([-1])
    for count in (9, 2**40):
        with pytest.raises(pagedkv.OutOfPages):
            pool.allocate(count)
    assert pool.stats()["failed_allocations"] == 2
    assert not pool.can_allocate(9) and not pool.is_evictable(0)


def test_the_bytes_of_a_page_are_seen_in_place_and_keep_the_pool_alive(pool):
    (page,) = pool.allocate(1)
    data = pool.page_data(page)
    data[:] = 7
    assert data.nbytes == 256 and (pool.page_data(page) == 7).all()
    with pytest.raises(pagedkv.InvalidArgument):
        pool.page_data(99)
    del pool
    gc.collect()
    assert data[255] == 7


def test_the_bytes_of_a_page_that_nobody_holds_are_refused(pool):
    (page,) = pool.allocate(1)
    pool.release([page])
    with pytest.raises(pagedkv.InvalidArgument):
        pool.page_data(page)


def test_capacity_and_trim(pool):
    large = pagedkv.PagePool(page_bytes=1 << 16, capacity_pages=8)
    large.release(large.allocate(8))
    assert large.trim() == 8 << 16 and large.stats()["committed_bytes"] == 0
    pool.set_capacity(16)
    assert (pool.capacity_pages, pool.max_capacity_pages, pool.page_bytes) == (16, 16, 256)
    with pytest.raises(pagedkv.InvalidArgument):
        pool.set_capacity(17)
    with pytest.raises(pagedkv.InvalidArgument):
        pagedkv.PagePool(page_bytes=0, capacity_pages=8)


def test_a_store_opens_sequences_over_a_pool(pool):
    store = pagedkv.SequenceStore(pool, 4)
    sequence = store.open()
    sequence.append(6)
    assert store.open_sequences == 1 and len(sequence.pages) == 2 and sequence.page_size == 4
    windows = pagedkv.SequenceStore(pool, 4, groups=[(-1, 0), (3, 1)]).open()
    assert windows.num_groups == 2
    with pytest.raises(pagedkv.InvalidArgument):
        pagedkv.SequenceStore(pool, 0)
    del store, pool
    gc.collect()
    sequence.append(1)


def test_rows_written_into_pages_of_a_store_are_attended_in_place(pool):
    store = pagedkv.SequenceStore(pool, 4)
    sequence = store.open()
    sequence.append(6)
    k_pages, v_pages = (np.zeros((8, 1, 4, 2), np.float32) for _ in range(2))
    slots = [sequence.pages[t // 4] * 4 + t % 4 for t in range(6)]
    rows = np.arange(12, dtype=np.float32).reshape(6, 1, 2)
    pagedkv.write_kv(k_pages, v_pages, slots, np.zeros_like(rows), rows)
    assert (v_pages[sequence.pages[1], 0, 1] == rows[5, 0]).all()
    plan = pagedkv.AttentionPlan(num_q_heads=1, num_kv_heads=1, head_dim=2, page_size=4, dtype="f32", qo_indptr=[0, 1],
                                 kv_indptr=[0, 2], kv_indices=sequence.pages, kv_last_page_len=[2])
    out = plan.run(k_pages, v_pages, np.ones((1, 1, 2), np.float32))
    assert np.allclose(out, rows.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("change, error", [
    (dict(slots=[32]), pagedkv.InvalidArgument), (dict(slots=[2**62]), pagedkv.InvalidArgument), (dict(slots=["a"]), (TypeError, ValueError)),
    (dict(k=np.zeros((2, 1, 2), np.float32)), ValueError), (dict(k=np.zeros((1, 1, 2), np.int32)), TypeError),
    (dict(k_pages=np.zeros((8, 1, 4), np.float32)), ValueError), (dict(v_pages=np.zeros((8, 2, 4, 2), np.float32)), ValueError),
    (dict(layout="HDN"), ValueError),
])
def test_bad_writes_are_refused_and_write_nothing(change, error):
    arguments = dict(k_pages=np.zeros((8, 1, 4, 2), np.float32), v_pages=np.zeros((8, 1, 4, 2), np.float32), slots=[3],
                     k=np.ones((1, 1, 2), np.float32), v=np.ones((1, 1, 2), np.float32), layout="HND")
    with pytest.raises(error):
        pagedkv.write_kv(**{**arguments, **change})
    assert not arguments["k_pages"].any() and not arguments["v_pages"].any()
    read_only = np.zeros((8, 1, 4, 2), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        pagedkv.write_kv(**{**arguments, "k_pages": read_only})
