"""KvCache, Sequence and Step against PyTorch, and everything that must be refused."""

import array
import contextlib
import gc
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
import torch

import pagedkv


def rows(cache, count, dtype=torch.float32):
    """K, V and Q of `count` new tokens."""
    kv = (count, cache.num_kv_heads, cache.head_dim)
    q = (count, cache.num_q_heads, cache.head_dim)
    return torch.randn(kv).to(dtype), torch.randn(kv).to(dtype), torch.randn(q).to(dtype)


def reference(q, k, v):
    """Causal attention of the last len(q) tokens over all of k and v, in f64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
    return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0].transpose(0, 1)


def advance(cache, sequence, k, v, q):
    with cache.begin_step([(sequence, len(k))]) as step:
        for layer in range(cache.num_layers):
            step.write(layer, k, v)
            out = step.attend(layer, q)
        step.commit()
    return out


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_prefill_and_decode_agree_with_pytorch(make_cache, dtype, bound):
    cache = make_cache(dtype={torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype])
    sequence = cache.open()
    k, v, q = rows(cache, 23, dtype)
    out = torch.cat([advance(cache, sequence, k[a:b], v[a:b], q[a:b]) for a, b in ((0, 17), (17, 22), (22, 23))])
    assert out.dtype == dtype
    assert (out.double() - reference(q, k, v)).abs().max() < bound
    assert sequence.num_tokens == len(sequence) == 23
    assert len(sequence.pages) == 6


def test_arrays_of_numpy_and_ml_dtypes_and_torch_give_the_same(make_cache):
    k, v, q = (x.to(torch.bfloat16).float() for x in rows(make_cache(), 9))
    kinds = {
        "torch": lambda x: x.to(torch.bfloat16),
        "numpy f32": lambda x: x.numpy(),
        "ml_dtypes bf16": lambda x: x.numpy().astype(ml_dtypes.bfloat16),
    }
    outputs = []
    for convert in kinds.values():
        cache = make_cache(dtype="bf16")
        out = torch.empty(9, 4, 16)
        with cache.begin_step([(sequence := cache.open(), 9)]) as step:
            step.write(0, convert(k), convert(v))
            assert step.attend(0, convert(q), out=out) is out
        outputs.append(out)
        assert sequence.num_tokens == 0
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_a_batch_mixes_prefill_and_decode(make_cache):
    cache = make_cache()
    first, second = cache.open(), cache.open()
    k1, v1, q1 = rows(cache, 12)
    advance(cache, first, k1[:11], v1[:11], q1[:11])
    k2, v2, q2 = rows(cache, 6)
    lse = np.empty((7, 4), np.float32)
    with cache.begin_step([(first, 1), (second, 6)]) as step:
        assert (step.num_rows, step.num_items) == (7, 2)
        step.write(0, torch.cat([k1[11:], k2]), torch.cat([v1[11:], v2]))
        out = step.attend(0, torch.cat([q1[11:], q2]), lse=lse)
    assert (out[:1].double() - reference(q1[11:], k1, v1)).abs().max() < 1e-5
    assert (out[1:].double() - reference(q2, k2, v2)).abs().max() < 1e-5
    assert np.isfinite(lse).all()


def test_views_show_the_rows_in_place(make_cache):
    cache = make_cache(num_layers=3)
    sequence = cache.open()
    k, v, q = rows(cache, 6)
    advance(cache, sequence, k, v, q)
    pages = torch.tensor(sequence.pages)
    for view, expected in ((cache.view_k(2), k), (cache.view_v(2), v)):
        held = torch.from_dlpack(view)[pages]  # [pages, heads, page_size, dim]
        assert torch.equal(held.transpose(1, 2).reshape(-1, 2, 16)[:6], expected)
    assert not torch.from_dlpack(cache.view_k(0))[-1].any(), "a page that nobody ever held"
    view = torch.from_dlpack(cache.view_k(0))
    first_page = view[sequence.pages[0], 0, 0].clone()
    del cache, sequence
    gc.collect()
    assert torch.equal(view[pages[0], 0, 0], first_page)  # the view keeps the memory alive


def test_a_step_without_commit_leaves_everything_as_it_was(make_cache):
    cache = make_cache()
    sequence = cache.open()
    k, v, q = rows(cache, 5)
    advance(cache, sequence, k, v, q)
    with pytest.raises(KeyError), cache.begin_step([(sequence, 30)]):
        raise KeyError("the model failed")
    assert sequence.num_tokens == 5
    assert cache.stats()["used_pages"] == 2
    assert cache.stats()["steps_rolled_back"] == 1


def test_speculation_commits_the_tokens_accepted(make_cache):
    cache = make_cache()
    sequence = cache.open()
    k, v, q = rows(cache, 9)
    with cache.begin_step([(sequence, 9)]) as step:
        step.write(0, k, v)
        step.write(1, k, v)
        step.commit([3])
    assert (sequence.num_tokens, len(sequence.pages)) == (3, 1)


def test_forks_share_pages_until_one_writes(make_cache):
    cache = make_cache()
    chat = cache.open()
    k, v, q = rows(cache, 7)
    advance(cache, chat, k[:6], v[:6], q[:6])
    branch = chat.fork()
    assert branch.pages == chat.pages
    assert cache.stats()["shared_pages"] == 2
    advance(cache, branch, k[6:], v[6:], q[6:])
    assert branch.pages[0] == chat.pages[0] and branch.pages[1] != chat.pages[1]
    chat.close()
    assert not chat.is_open
    branch.truncate(2)
    assert cache.stats()["used_pages"] == 1


def test_forks_that_read_shared_pages_once_give_the_same(make_cache):
    outputs = []
    for cascade in (False, True):
        torch.manual_seed(1)
        cache = make_cache(capacity_pages=1000, cascade=cascade)
        chat = cache.open()
        advance(cache, chat, *rows(cache, 1100))
        branches = [chat.fork() for _ in range(3)]
        k, v, q = rows(cache, 3)
        with cache.begin_step([(branch, 1) for branch in branches]) as step:
            step.write(0, k, v)
            outputs.append(step.attend(0, q).float())
    assert (outputs[0] - outputs[1]).abs().max() < 1e-2


def test_a_scheduler_can_ask_before_it_acts(make_cache):
    cache = make_cache(capacity_pages=8, watermark_pages=1)
    sequence = cache.open()
    assert cache.pages_available == 8
    assert cache.pages_for_tokens(9) == 3
    assert cache.pages_needed([(sequence, 9)]) == 3
    assert cache.can_admit(28) and not cache.can_admit(29)
    assert cache.page_bytes == 2 * 2 * 2 * 4 * 16 * 4


def test_running_out_of_pages_changes_nothing_and_says_so(make_cache):
    cache = make_cache(capacity_pages=4)
    sequence = cache.open()
    k, v, q = rows(cache, 8)
    advance(cache, sequence, k, v, q)
    with pytest.raises(pagedkv.OutOfPages) as caught:
        cache.begin_step([(sequence, 9)])
    assert caught.value.code is pagedkv.Errc.OUT_OF_PAGES
    assert (sequence.num_tokens, cache.stats()["used_pages"]) == (8, 2)


@pytest.mark.parametrize("options", [
    {"num_layers": 0}, {"num_kv_heads": 3}, {"head_dim": 0}, {"head_dim": 1025}, {"page_size": 0}, {"page_size": 257},
    {"capacity_pages": 0}, {"capacity_pages": 2**63}, {"sm_scale": float("nan")}, {"num_q_heads": 0},
])
def test_absurd_shapes_are_refused(make_cache, options):
    with pytest.raises(pagedkv.InvalidArgument):
        make_cache(**options)


@pytest.mark.parametrize("options", [{"num_layers": -1}, {"capacity_pages": 2**64}, {"dtype": None}, {"head_dim": 1.5}])
def test_values_that_are_no_sizes_are_type_errors(make_cache, options):
    with pytest.raises(TypeError):
        make_cache(**options)


def test_an_unknown_dtype_or_target_is_refused(make_cache):
    with pytest.raises(ValueError, match="bf16"):
        make_cache(dtype="f64")
    with pytest.raises(pagedkv.Error):
        make_cache(target="abacus")


@pytest.mark.parametrize("bad, error, words", [
    (lambda k: k[:, :, :8], ValueError, "expected shape"),
    (lambda k: k[:4], ValueError, "expected shape"),
    (lambda k: torch.cat([k, k], 2)[:, :, :16], ValueError, "contiguous"),
    (lambda k: k.double(), TypeError, "float32, float16 or bfloat16"),
    (lambda k: k.to(torch.int32), TypeError, "float32, float16 or bfloat16"),
    (lambda k: k.to("meta"), TypeError, "k:"),
    (lambda k: None, TypeError, "expected an array"),
    (lambda k: k.tolist(), TypeError, "expected an array"),
    (lambda k: "kv", TypeError, "k:"),
])
def test_arrays_of_another_shape_stride_type_or_device_are_refused(make_cache, bad, error, words):
    cache = make_cache()
    k, v, _ = rows(cache, 5)
    with cache.begin_step([(cache.open(), 5)]) as step:
        with pytest.raises(error, match=words):
            step.write(0, bad(k), v)
        step.write(0, k, v)


def test_read_only_outputs_are_refused(make_cache):
    cache = make_cache()
    k, v, q = (x.numpy() for x in rows(cache, 5))
    out = np.empty((5, 4, 16), np.float32)
    out.flags.writeable = False
    k.flags.writeable = False  # inputs may be read-only
    with cache.begin_step([(cache.open(), 5)]) as step:
        step.write(0, k, v)
        with pytest.raises(TypeError, match="read-only"):
            step.attend(0, q, out=out)


def test_items_that_make_no_sense_are_refused(make_cache):
    cache, other = make_cache(), make_cache()
    mine, foreign = cache.open(), other.open()
    for items, error in (
        ([], pagedkv.InvalidArgument), ([(mine, 0)], pagedkv.InvalidArgument), ([(mine, -1)], pagedkv.InvalidArgument),
        ([(mine, 2**40)], pagedkv.InvalidArgument), ([(foreign, 1)], pagedkv.InvalidArgument),
        ([(mine, 1), (mine, 1)], pagedkv.InvalidArgument), ([(mine, "1")], TypeError), ([mine], TypeError),
        ([(None, 1)], TypeError), (None, TypeError),
    ):
        with pytest.raises(error):
            cache.begin_step(items)
    assert cache.stats()["used_pages"] == 0


def test_what_is_over_or_busy_is_refused(make_cache):
    cache = make_cache()
    sequence = cache.open()
    k, v, q = rows(cache, 2)
    step = cache.begin_step([(sequence, 2)])
    with pytest.raises(pagedkv.Busy):
        cache.begin_step([(sequence, 1)])
    with pytest.raises(pagedkv.Busy):
        sequence.close()
    with pytest.raises(pagedkv.InvalidArgument):
        step.write(2, k, v)
    step.commit()
    with pytest.raises(pagedkv.Closed):
        step.commit()
    sequence.close()
    sequence.close()
    with pytest.raises(pagedkv.Closed):
        sequence.fork()
    with pytest.raises(pagedkv.Closed):
        cache.begin_step([(sequence, 1)])


def test_objects_may_be_dropped_in_any_order(make_cache):
    cache = make_cache()
    sequence = cache.open()
    step = cache.begin_step([(sequence, 5)])
    k, v, q = rows(cache, 5)
    del cache, sequence
    gc.collect()
    step.write(0, k, v)
    assert (step.attend(0, q).double() - reference(q, k, v)).abs().max() < 1e-5
    step.commit()
    del step
    gc.collect()


def test_threads_run_steps_over_disjoint_sequences_at_once(make_cache):
    cache = make_cache(capacity_pages=512)
    k, v, q = rows(cache, 40)
    expected = reference(q, k, v)
    errors = []

    def serve():
        for _ in range(20):
            with cache.open() as sequence:
                error = (advance(cache, sequence, k, v, q).double() - expected).abs().max()
                if error > 1e-5:
                    errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert cache.stats()["used_pages"] == 0


def test_a_step_used_by_two_threads_is_refused_or_right_never_broken(make_cache):
    cache = make_cache(capacity_pages=512)
    k, v, q = rows(cache, 512)
    outcomes = []
    with cache.begin_step([(cache.open(), 512)]) as step:
        step.write(0, k, v)
        expected = step.attend(0, q)

        def attend():
            for _ in range(20):
                try:
                    outcomes.append(torch.equal(step.attend(0, q), expected))
                except pagedkv.Busy:
                    outcomes.append(True)

        threads = [threading.Thread(target=attend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outcomes) == 80 and all(outcomes)


def test_the_interpreter_lock_is_released_while_attention_runs(make_cache):
    cache = make_cache(capacity_pages=512)
    k, v, q = rows(cache, 256)
    begun, seen, rounds = threading.Event(), [], []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # seconds: from now on a thread runs until it gives the lock away

    def attend():
        with cache.begin_step([(cache.open(), 256)]) as step:
            step.write(0, k, v)
            begun.set()
            for _ in range(20_000):
                step.attend(0, q)
                rounds.append(len(seen))
                if seen:
                    break

    thread = threading.Thread(target=attend)
    try:
        thread.start()
        begun.wait()
        seen.append(True)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert rounds[-1] == 1


def test_a_sequence_looked_at_while_its_step_ends_is_refused_or_right(make_cache, many_turns):
    cache = make_cache(capacity_pages=512)
    sequence, wrong, done = cache.open(), [], threading.Event()
    ids = list(range(5))

    def look_on():
        while not done.is_set():
            try:
                if sequence.tokens != ids[:len(sequence.tokens)] or len(sequence.pages) > 2:
                    wrong.append(sequence.tokens)
            except pagedkv.Busy:
                pass

    def until_free(call):
        while True:
            try:
                return call()
            except pagedkv.Busy:
                continue

    threads = [threading.Thread(target=look_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(60):
            until_free(lambda: sequence.truncate(0))
            step = until_free(lambda: cache.begin_step([(sequence, 5, ids)]))
            until_free(step.commit if i % 2 else step.rollback)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong and sequence.num_tokens == 5


def test_arrays_by_the_buffer_protocol_alone_are_taken(make_cache):
    cache = make_cache()
    k, v, q = (array.array("f", x.flatten().tolist()) for x in rows(cache, 3))
    out = np.empty((3, 4, 16), np.float32)
    with cache.begin_step([(cache.open(), 3)]) as step:
        step.write(0, memoryview(k), v)
        step.attend(0, q, out=out)
    assert np.isfinite(out).all()


def test_nan_rows_give_nan_to_their_own_sequence_alone(make_cache):
    cache = make_cache()
    k, v, q = rows(cache, 6)
    k[:3] = torch.nan
    with cache.begin_step([(cache.open(), 3), (cache.open(), 3)]) as step:
        step.write(0, k, v)
        out = step.attend(0, q)
    assert out[:3].isnan().all() and out[3:].isfinite().all()


def test_sinks_of_each_layer_and_sink_tokens_are_taken(make_cache):
    sinks = np.array([[0] * 4, [30] * 4], np.float32)  # the second layer's takes nearly all weight
    cache = make_cache(sinks=sinks, window_left=3, sink_tokens=1)
    k, v, q = rows(cache, 9)
    with cache.begin_step([(cache.open(), 9)]) as step:
        outputs = []
        for layer in range(2):
            step.write(layer, k, v)
            outputs.append(step.attend(layer, q))
    assert outputs[1].abs().max() < 1e-3 < outputs[0].abs().max()
    with pytest.raises(ValueError, match="sinks"):
        make_cache(sinks=np.zeros((3, 4), np.float32))


def test_f16_is_computed_in_bf16_only_where_that_is_asked_for(make_cache):
    outputs = []
    for asked in (False, True):
        cache = make_cache(dtype="f16", f16_as_bf16=asked)
        k, v, q = rows(cache, 20)
        with cache.begin_step([(cache.open(), 20)]) as step:
            step.write(0, torch.zeros_like(k), torch.full_like(v, 1 + 2**-9))  # rounds to 1
            outputs.append(step.attend(0, torch.ones_like(q)).float())
    assert (outputs[0] - (1 + 2**-9)).abs().max() < 1e-6
    assert (outputs[1] - (1 if pagedkv.active_target() in ("amx", "avx512_bf16") else 1 + 2**-9)).abs().max() < 2e-4


def test_a_step_that_the_collector_finds_while_its_sequence_raises_does_not_wait_for_it():
    cache = pagedkv.KvCache(num_layers=1, num_q_heads=1, num_kv_heads=1, head_dim=8, capacity_pages=4)
    sequence = cache.open()
    before = gc.get_threshold()
    gc.disable()
    try:
        cycle = [cache.begin_step([(sequence, 1)])]
        cycle.append(cycle)
        del cycle
        gc.enable()
        gc.set_threshold(1)
        with contextlib.suppress(pagedkv.Busy):  # unless the collector was there before
            sequence.close()
    finally:
        gc.enable()
        gc.set_threshold(*before)
    gc.collect()
    if sequence.is_open:
        sequence.close()
    stats = cache.stats()
    assert (stats["steps_rolled_back"], stats["open_sequences"], stats["used_pages"]) == (1, 0, 0)
