"""AttentionPlan over pages that PyTorch owns, in every layout and both forms of page table."""

import numpy as np
import pytest
import torch

import pagedkv

SHAPE = dict(num_q_heads=6, num_kv_heads=3, head_dim=24, page_size=4, dtype="f32")
LENGTHS = [9, 1, 16]
NEW = [2, 1, 5]  # query rows of each
PAGES = [[7, 3, 9], [1], [0, 8, 2, 5]]


@pytest.fixture
def pages():
    """K and V as an engine keeps them: [pages, heads, tokens, dim]."""
    return torch.randn(10, 3, 4, 24), torch.randn(10, 3, 4, 24)


@pytest.fixture
def queries():
    return torch.randn(sum(NEW), 6, 24)


def csr():
    return dict(
        qo_indptr=np.cumsum([0] + NEW, dtype=np.int32), kv_indptr=np.cumsum([0] + [len(p) for p in PAGES], dtype=np.int32),
        kv_indices=sum(PAGES, []), kv_last_page_len=[1, 1, 4])


def padded():
    return dict(qo_indptr=np.cumsum([0] + NEW), block_table=torch.tensor([p + [-1] * (4 - len(p)) for p in PAGES]),
                seq_lens=torch.tensor(LENGTHS))


def expected(k, v, q):
    outputs, row = [], 0
    for ids, length, new in zip(PAGES, LENGTHS, NEW):
        keys, values = (x[ids].transpose(1, 2).reshape(-1, 3, 24)[:length].double() for x in (k, v))
        mask = torch.ones(new, length, dtype=torch.bool).tril(length - new)
        outputs.append(torch.nn.functional.scaled_dot_product_attention(
            q[row:row + new].double().transpose(0, 1)[None], keys.repeat_interleave(2, 1).transpose(0, 1)[None],
            values.repeat_interleave(2, 1).transpose(0, 1)[None], attn_mask=mask)[0].transpose(0, 1))
        row += new
    return torch.cat(outputs)


@pytest.mark.parametrize("tables", [csr, padded])
def test_both_page_tables_agree_with_pytorch(pages, queries, tables):
    plan = pagedkv.AttentionPlan(**SHAPE, **tables())
    out = plan.run(*pages, queries)
    assert (out.double() - expected(*pages, queries)).abs().max() < 1e-5
    assert plan.num_rows == 8 and plan.kv_bytes > 0 and plan.target in [t["name"] for t in pagedkv.targets()]


def test_foreign_layouts_are_read_in_place(pages, queries):
    k, v = pages
    plan = pagedkv.AttentionPlan(**SHAPE, **csr())
    plain = plan.run(k, v, queries)
    tokens_first = [x.transpose(1, 2).contiguous() for x in pages]
    together = torch.stack([k, v], dim=1)  # [pages, K and V, heads, tokens, dim]
    wide = torch.randn(10, 3, 4, 48)
    wide[..., :24] = k
    assert torch.equal(plan.run(*tokens_first, queries, layout="NHD"), plain)
    assert torch.equal(plan.run(together[:, 0], together[:, 1], queries), plain)
    assert torch.equal(plan.run(wide[..., :24], v, queries), plain)


def test_states_over_disjoint_keys_merge_to_the_whole(pages, queries):
    k, v = pages
    shape = dict(SHAPE, causal=False)
    ends = dict(qo_indptr=[0, 8])
    whole_lse, a_lse, b_lse = (torch.empty(8, 6) for _ in range(3))
    whole = pagedkv.AttentionPlan(**shape, **ends, block_table=torch.tensor([[7, 3, 9, 1]]),
                                  seq_lens=[16]).run(k, v, queries, lse=whole_lse)
    a = pagedkv.AttentionPlan(**shape, **ends, block_table=torch.tensor([[7, 3]]), seq_lens=[8]).run(k, v, queries, lse=a_lse)
    b = pagedkv.AttentionPlan(**shape, **ends, block_table=torch.tensor([[9, 1]]), seq_lens=[8]).run(k, v, queries, lse=b_lse)
    pagedkv.merge_states(a, a_lse, b, b_lse)
    assert (a - whole).abs().max() < 1e-5 and (a_lse - whole_lse).abs().max() < 1e-5


@pytest.mark.parametrize("change, error", [
    (dict(kv_indices=[0] * 7 + [-1]), pagedkv.InvalidArgument), (dict(kv_last_page_len=[5, 1, 4]), pagedkv.InvalidArgument),
    (dict(qo_indptr=[0, 2, 1, 8]), pagedkv.InvalidArgument), (dict(kv_indptr=[0, 3, 4]), pagedkv.InvalidArgument),
    (dict(kv_indices=[2**40] * 8), (TypeError, ValueError)), (dict(kv_indices=["a"] * 8), TypeError),
    (dict(num_kv_heads=4), pagedkv.InvalidArgument), (dict(sm_scale=float("inf")), pagedkv.InvalidArgument),
    (dict(target="abacus"), pagedkv.Error), (dict(sinks=torch.zeros(5)), ValueError),
])
def test_bad_batches_are_refused(change, error):
    with pytest.raises(error):
        pagedkv.AttentionPlan(**{**SHAPE, **csr(), **change})


def test_pages_out_of_range_or_of_another_shape_are_refused(pages, queries):
    k, v = pages
    plan = pagedkv.AttentionPlan(**SHAPE, **csr())
    for bad_k, bad_v, error in ((k[:9], v[:9], pagedkv.InvalidArgument), (k[:, :2], v, ValueError), (k[..., :12], v, ValueError),
                                (k.half(), v, ValueError), (k, v[:9], ValueError), (k.transpose(2, 3), v, ValueError)):
        with pytest.raises(error):
            plan.run(bad_k, bad_v, queries)
    with pytest.raises(ValueError):
        plan.run(k, v, queries[:7])
    with pytest.raises(ValueError, match="layout"):
        plan.run(k, v, queries, layout="DHN")


def masked(k, v, q, visible):
    """One sequence of 9 tokens and 2 query rows, with `visible` [heads or 1, rows, keys] on top of causality."""
    keys, values = (x[PAGES[0]].transpose(1, 2).reshape(-1, 3, 24)[:9].double() for x in (k, v))
    mask = torch.ones(2, 9, dtype=torch.bool).tril(7) & visible
    return torch.nn.functional.scaled_dot_product_attention(
        q.double().transpose(0, 1)[None], keys.repeat_interleave(2, 1).transpose(0, 1)[None],
        values.repeat_interleave(2, 1).transpose(0, 1)[None], attn_mask=mask[None])[0].transpose(0, 1)


ONE = dict(qo_indptr=[0, 2], block_table=torch.tensor([PAGES[0]]), seq_lens=[9])


def test_masks_of_every_kind_agree_with_pytorch(pages, queries):
    q = queries[:2]
    visible = torch.rand(1, 2, 9) < 0.6
    visible[..., 0] = True
    wanted = masked(*pages, q, visible)
    bits = np.packbits(visible.numpy().reshape(-1), bitorder="little")
    kinds = (dict(mask=visible), dict(mask=visible.numpy()), dict(mask=torch.where(visible, 0.0, -torch.inf)),
             dict(mask=visible[:, None]), dict(mask=visible.to(torch.uint8).flatten(), mask_offsets=[0]),
             dict(mask=bits, mask_bits=True, mask_offsets=[0]))
    for kind in kinds:
        out = pagedkv.AttentionPlan(**SHAPE, **ONE, **kind).run(*pages, q)
        assert (out.double() - wanted).abs().max() < 1e-5, kind
    per_head = torch.rand(1, 6, 2, 9) < 0.6
    per_head[..., 0] = True
    out = pagedkv.AttentionPlan(**SHAPE, **ONE, mask=per_head).run(*pages, q)
    assert (out.double() - masked(*pages, q, per_head[0])).abs().max() < 1e-5


@pytest.mark.parametrize("change", [
    dict(mask=torch.ones(1, 2, 3, dtype=torch.bool)), dict(mask=torch.ones(2, 9, dtype=torch.bool)),
    dict(mask=torch.ones(18, dtype=torch.bool)), dict(mask=torch.ones(18, dtype=torch.bool), mask_offsets=[7]),
    dict(mask_offsets=[0]), dict(mask=torch.ones(18, dtype=torch.bool), mask_offsets=[-1]),
    dict(mask=torch.ones(1, 2, 9, dtype=torch.bool), mask_offsets=[0]),
])
def test_bad_masks_are_refused(change):
    with pytest.raises(ValueError):
        pagedkv.AttentionPlan(**SHAPE, **ONE, **change)


@pytest.mark.parametrize("tables", [csr, padded])
@pytest.mark.parametrize("shape, match", [
    ((4, 5, 16), "sequences"), ((3, 4, 16), "rows"), ((3, 5, 15), "keys"), ((3, 2, 5, 16), "num_q_heads"),
    ((3, 6, 5, 15), "keys"),
])
def test_a_mask_that_one_sequence_would_leave_is_refused(pages, queries, tables, shape, match):
    mask = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=match):
        pagedkv.AttentionPlan(**SHAPE, **tables(), mask=mask)
    whole = torch.ones(3, 5, 16, dtype=torch.bool)
    plan = pagedkv.AttentionPlan(**SHAPE, **tables(), mask=whole)
    with pytest.raises(ValueError, match=match):
        plan.extend(**tables(), mask=mask)
    assert (plan.run(*pages, queries).double() - expected(*pages, queries)).abs().max() < 1e-5


@pytest.mark.parametrize("mask", [torch.ones(1, 2, 9, dtype=torch.int64), torch.ones(1, 9, 2, dtype=torch.bool).transpose(1, 2),
                                  [[True]], "mask"])
def test_masks_of_another_type_or_stride_are_type_errors(mask):
    with pytest.raises(TypeError, match="mask"):
        pagedkv.AttentionPlan(**SHAPE, **ONE, mask=mask)


def test_sinks_and_alibi_agree_with_pytorch(pages, queries):
    k, v, q = *pages, queries[:2]
    keys, values = (x[PAGES[0]].transpose(1, 2).reshape(-1, 3, 24)[:9].double().repeat_interleave(2, 1) for x in (k, v))
    slopes, sinks = torch.rand(6), torch.randn(6)
    logits = torch.einsum("qhd,khd->hqk", q.double(), keys) / 24**0.5
    position = torch.arange(9) - torch.tensor([[7], [8]])
    logits = logits + slopes[:, None, None] * position
    logits[:, torch.ones(2, 9, dtype=torch.bool).triu(8)] = -torch.inf
    weights = torch.cat([logits, sinks[:, None, None].double().expand(6, 2, 1)], 2).softmax(2)[..., :9]
    wanted = torch.einsum("hqk,khd->qhd", weights, values)
    out = pagedkv.AttentionPlan(**SHAPE, **ONE, sinks=sinks, alibi_slopes=slopes).run(k, v, q)
    assert (out.double() - wanted).abs().max() < 1e-5
    later = pagedkv.AttentionPlan(**SHAPE, **ONE, alibi_slopes=slopes)
    assert torch.equal(later.run(k, v, q, sinks=sinks), out)
    with pytest.raises(ValueError, match="sinks"):
        later.run(k, v, q, sinks=torch.zeros(5))


def test_an_extended_plan_is_a_new_one(pages, queries):
    plan = pagedkv.AttentionPlan(**SHAPE, qo_indptr=[0, 1], block_table=torch.tensor([[7, -1, -1]]), seq_lens=[4])
    for length in range(5, 13):
        table = dict(qo_indptr=[0, 1], block_table=torch.tensor([PAGES[0]]), seq_lens=[length])
        plan.extend(**table)
        assert torch.equal(plan.run(*pages, queries[:1]), pagedkv.AttentionPlan(**SHAPE, **table).run(*pages, queries[:1]))
    with pytest.raises(pagedkv.InvalidArgument):
        plan.extend(qo_indptr=[0, 2], block_table=torch.tensor([PAGES[0]]), seq_lens=[12])
    with pytest.raises(TypeError, match="num_q_heads"):
        plan.extend(num_q_heads=6, **table)
    assert torch.equal(plan.run(*pages, queries[:1]), pagedkv.AttentionPlan(**SHAPE, **table).run(*pages, queries[:1]))


def test_cascade_and_workspace(pages, queries):
    batch = dict(qo_indptr=[0, 1, 2], block_table=torch.tensor([[7, 3, 9], [7, 3, 1]]), seq_lens=[9, 12])
    plain = pagedkv.AttentionPlan(**SHAPE, **batch).run(*pages, queries[:2])
    shared = pagedkv.AttentionPlan(**SHAPE, **batch, cascade=True).run(*pages, queries[:2])
    assert (plain - shared).abs().max() < 1e-5
    assert pagedkv.AttentionPlan.workspace_bytes(**SHAPE, **batch) >= 0


def test_values_that_are_not_finite_stay_in_their_own_rows(pages, queries):
    k, v = (x.clone() for x in pages)
    k[1], v[1] = torch.nan, torch.nan  # the page of the second sequence
    q = queries.clone()
    out = pagedkv.AttentionPlan(**SHAPE, **csr()).run(k, v, q)
    assert out[2].isnan().all() and out[[0, 1, 3, 4, 5, 6, 7]].isfinite().all()


def test_f16_is_computed_in_bf16_only_where_that_is_asked_for():
    k = torch.zeros(1, 1, 32, 8, dtype=torch.float16)
    v = torch.full_like(k, 1 + 2**-9)  # rounds to 1
    batch = dict(qo_indptr=[0, 20], block_table=np.array([[0]], np.int32), seq_lens=[20])
    exact, rounded = (
        pagedkv.AttentionPlan(num_q_heads=1, num_kv_heads=1, head_dim=8, page_size=32, dtype="f16", f16_as_bf16=asked,
                              **batch).run(k, v, torch.ones(20, 1, 8)) for asked in (False, True))
    assert (exact - (1 + 2**-9)).abs().max() < 1e-6
    assert (rounded - (1 if pagedkv.active_target() in ("amx", "avx512_bf16") else 1 + 2**-9)).abs().max() < 2e-4
