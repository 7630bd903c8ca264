"""A random Llama generates through the pool exactly the tokens of the eager implementation."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

import pagedkv
from pagedkv.transformers import PagedCache, generate, pool_for


@pytest.fixture
def model():
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    return transformers.LlamaForCausalLM(config).eval()


def prompts_of(*lengths):
    return [torch.randint(2, 97, (length,)).tolist() for length in lengths]


def eager(model, prompt, new_tokens):
    model.set_attn_implementation("eager")
    output = model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)
    return output[0, len(prompt):].tolist()


def test_one_prompt_generates_the_tokens_of_eager(model):
    (prompt,) = prompts_of(21)
    expected = eager(model, prompt, 40)
    pool = pool_for(model, capacity_tokens=256)
    model.set_attn_implementation("pagedkv")
    cache = PagedCache(pool)
    output = model.generate(torch.tensor([prompt]), past_key_values=cache, max_new_tokens=40, do_sample=False)
    assert output[0, 21:].tolist() == expected
    assert cache.sequences[0].num_tokens == 21 + 39
    cache.close()
    assert pool.stats()["used_pages"] == 0


def test_a_left_padded_batch_generates_the_tokens_of_eager_and_stores_no_padding(model):
    prompts = prompts_of(5, 17, 11)
    expected = [eager(model, prompt, 24) for prompt in prompts]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    pool = pool_for(model, capacity_tokens=512)
    model.set_attn_implementation("pagedkv")
    cache = PagedCache(pool)
    output = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=24, do_sample=False)
    assert output[:, width:].tolist() == expected
    assert [s.num_tokens for s in cache.sequences] == [len(p) + 23 for p in prompts]


def test_continuous_batching_generates_the_tokens_of_eager(model):
    prompts = prompts_of(3, 40, 9, 1, 25, 14, 33)
    expected = [eager(model, prompt, 20) for prompt in prompts]
    pool = pool_for(model, capacity_tokens=1024)
    model.set_attn_implementation("pagedkv")
    assert generate(model, pool, prompts, max_new_tokens=20, max_batched_tokens=16, max_seqs=4) == expected
    assert pool.stats()["used_pages"] == 0


def test_a_pool_too_small_for_all_preempts_and_still_gives_the_same_tokens(model):
    prompts = prompts_of(20, 20, 20, 20)
    expected = [eager(model, prompt, 30) for prompt in prompts]
    pool = pool_for(model, capacity_tokens=112)  # two sequences of 50 tokens, not four
    model.set_attn_implementation("pagedkv")
    assert generate(model, pool, prompts, max_new_tokens=30) == expected
    assert pool.stats()["failed_allocations"] > 0
    assert pool.stats()["open_sequences"] == 0


def test_a_prompt_that_can_never_fit_is_refused_and_gives_its_pages_back(model):
    pool = pool_for(model, capacity_tokens=32)
    model.set_attn_implementation("pagedkv")
    with pytest.raises(pagedkv.OutOfPages):
        generate(model, pool, prompts_of(40), max_new_tokens=1)
    assert pool.stats()["used_pages"] == 0


def test_two_caches_share_one_pool(model):
    first, second = prompts_of(13, 8)
    expected = [eager(model, first, 10), eager(model, second, 10)]
    pool = pool_for(model, capacity_tokens=256)
    model.set_attn_implementation("pagedkv")
    caches = [PagedCache(pool), PagedCache(pool)]
    outputs = [model.generate(torch.tensor([p]), past_key_values=c, max_new_tokens=10, do_sample=False)[0, len(p):].tolist()
               for p, c in zip((first, second), caches)]
    assert outputs == expected
    assert pool.stats()["open_sequences"] == 2


def test_without_its_cache_the_implementation_says_what_it_needs(model):
    model.set_attn_implementation("pagedkv")
    with pytest.raises(ValueError, match="PagedCache"), torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


def test_gradients_are_refused(model):
    model.set_attn_implementation("pagedkv")
    with pytest.raises(NotImplementedError, match="inference"):
        model(torch.tensor([[1, 2, 3]]), past_key_values=PagedCache(pool_for(model, capacity_tokens=64)))
