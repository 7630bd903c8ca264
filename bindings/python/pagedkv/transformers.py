"""Attention and cache for Hugging Face transformers: Llama-style models generate through one shared pool of pages.

    pool = pagedkv.transformers.pool_for(model, capacity_tokens=100_000)
    model.set_attn_implementation("pagedkv")
    model.generate(**inputs, past_key_values=PagedCache(pool))        # a padded batch, as ever
    generate(model, pool, prompts, max_new_tokens=64)                  # ragged: requests join and leave at every step

Importing this module registers the attention implementation "pagedkv". It computes causal attention in pages of float32,
float16 or bfloat16 on the CPU. Not supported, and refused by name: sliding windows, logit soft caps, sinks, dropout,
gradients, beam search with a padded batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence as Seq
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache

from . import KvCache, OutOfPages, Sequence, Step

__all__ = ["PagedCache", "generate", "pool_for"]

_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def pool_for(model: Any, *, capacity_tokens: int, dtype: str | None = None, page_size: int = 16) -> KvCache:
    """A KvCache of the model's shape that holds `capacity_tokens` tokens, in the model's own type unless another is named."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return KvCache(
        num_layers=config.num_hidden_layers,
        num_q_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=dtype or _DTYPES[model.dtype],
        page_size=page_size,
        capacity_pages=-(-capacity_tokens // page_size),
    )


class PagedCache(Cache):
    """A transformers cache whose rows are sequences of one shared pool.

    Used by `model.generate` as `past_key_values`. Rows are opened by the first forward pass and closed with the cache (or
    `close()`). Padding tokens take no room in the pool. Each forward pass is one step: its pages are reserved at the first
    layer, all or none (OutOfPages is raised and the cache is as it was), and its tokens committed after the last.
    """

    def __init__(self, pool: KvCache):
        super().__init__(layers=[])
        self.pool = pool
        self.sequences: list[Sequence] = []
        self._padded_length = 0  # tokens of a row so far, padding included
        self._step: Step | None = None
        self._rows: torch.Tensor | None = None  # [batch * q_len] indices of the real tokens, or None if all are real
        self._packed: list[tuple[Sequence, int]] | None = None

    # What transformers asks of a cache.

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Passes the new rows on to `attention`, with the cache in their luggage; nothing is concatenated."""
        key_states._pagedkv = (self, layer_idx)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._padded_length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._padded_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._padded_length + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return bool(self.sequences)

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * self.pool.num_layers

    @property
    def max_batch_size(self) -> int:
        return len(self.sequences)

    def __len__(self) -> int:
        return self.pool.num_layers

    def reset(self) -> None:
        self.close()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise NotImplementedError("beam search needs forks: use pagedkv.Sequence.fork with steps of your own")

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("use pagedkv.Sequence.truncate on .sequences")

    def close(self) -> None:
        """Gives all pages back to the pool."""
        if self._step is not None:
            self._step.rollback()
            self._step = None
        for sequence in self.sequences:
            sequence.close()
        self.sequences = []
        self._padded_length = 0

    # The step of one forward pass.

    def pack(self, items: list[tuple[Sequence, int]]) -> None:
        """The next forward pass has one row, [1, sum of counts]: the new tokens of these sequences one after another."""
        self._packed = items

    def _begin(self, batch: int, q_len: int, mask: torch.Tensor | None) -> None:
        if self._packed is not None:
            self._rows = None
            self._step = self.pool.begin_step(self._packed)
            return
        if not self.sequences:
            self.sequences = [self.pool.open() for _ in range(batch)]
        if len(self.sequences) != batch:
            raise ValueError(f"the cache holds {len(self.sequences)} rows, the batch has {batch}")
        counts = [q_len] * batch
        self._rows = None
        if mask is not None:
            real = mask[:, -q_len:].to(torch.bool)
            if not bool(real.all()):
                counts = real.sum(dim=1).tolist()
                self._rows = real.flatten().nonzero().squeeze(1)
        items = [(sequence, count) for sequence, count in zip(self.sequences, counts) if count > 0]
        self._step = self.pool.begin_step(items)

    def _attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                mask: torch.Tensor | None) -> torch.Tensor:
        """query [batch, q_heads, q_len, dim] and so on; returns [batch, q_len, q_heads, v_dim]."""
        batch, heads, q_len, _ = query.shape
        if layer == 0:
            if self._step is not None:  # the last forward pass was interrupted
                self._step.rollback()
            self._begin(batch, q_len, mask)
        if self._step is None:
            raise RuntimeError("layers must run in order, beginning with layer 0")
        step = self._step
        step.write(layer, self._flat(key), self._flat(value))
        rows = step.attend(layer, self._flat(query))
        if layer + 1 == self.pool.num_layers:
            self._step = None
            step.commit()
            self._padded_length += q_len
        if self._rows is not None:
            padded = rows.new_zeros(batch * q_len, *rows.shape[1:])
            padded[self._rows] = rows
            rows = padded
        return rows.view(batch, q_len, heads, -1)

    def _flat(self, states: torch.Tensor) -> torch.Tensor:
        """[batch, heads, q_len, dim] as dense rows [tokens, heads, dim], without the padding."""
        rows = states.detach().transpose(1, 2).reshape(-1, states.shape[1], states.shape[3])
        return (rows if self._rows is None else rows[self._rows]).contiguous()


def attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
              **kwargs: Any) -> tuple[torch.Tensor, None]:
    """The attention implementation "pagedkv"; called by the model."""
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention implementation 'pagedkv' does not support {name}")
    if dropout != 0.0 or query.requires_grad:
        raise NotImplementedError("attention implementation 'pagedkv' is for inference: model.eval(), torch.no_grad()")
    if not hasattr(key, "_pagedkv"):
        raise ValueError("attention implementation 'pagedkv' needs past_key_values=pagedkv.transformers.PagedCache(pool)")
    cache, layer = key._pagedkv
    dim = query.shape[-1]
    if scaling is not None and abs(scaling * dim**0.5 - 1) > 1e-6:
        query = query * (scaling * dim**0.5)  # the pool multiplies by 1 / sqrt(dim)
    return cache._attend(layer, query, key, value, attention_mask), None


def _mask(batch_size: int, q_length: int, kv_length: int, *args: Any, attention_mask: torch.Tensor | None = None,
          **kwargs: Any) -> torch.Tensor | None:
    """The padding mask as it is, [batch, kv_length]: causality is the attention's own business."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask[:, -kv_length:]


AttentionInterface.register("pagedkv", attention)
AttentionMaskInterface.register("pagedkv", _mask)


@dataclasses.dataclass
class _Request:
    """One prompt on its way; `pending` are the tokens that the model has not seen."""

    index: int
    prompt: list[int]
    output: list[int] = dataclasses.field(default_factory=list)
    pending: list[int] = dataclasses.field(default_factory=list)
    sequence: Sequence | None = None


def generate(model: Any, pool: KvCache, prompts: Iterable[Seq[int]], *, max_new_tokens: int,
             eos_token_id: int | None = None, max_batched_tokens: int = 2048, max_seqs: int = 64) -> list[list[int]]:
    """Greedy continuous batching: the new tokens of each prompt, in the order of the prompts.

    Requests are admitted in order while the pool can hold them; prompts are fed in chunks of what is left of
    `max_batched_tokens` beside the running sequences' tokens; when pages run out, the youngest sequence is closed and
    computed again later. A step is one forward pass over one packed row.
    """
    waiting = [_Request(i, list(p)) for i, p in enumerate(prompts)]
    results: list[list[int]] = [[] for _ in waiting]
    if any(not request.prompt for request in waiting):
        raise ValueError("a prompt is empty")
    if min(max_new_tokens, max_batched_tokens, max_seqs) < 1:
        raise ValueError("max_new_tokens, max_batched_tokens and max_seqs must be at least 1")
    for request in waiting:
        request.pending = list(request.prompt)
    running: list[_Request] = []
    cache = PagedCache(pool)
    crowded = False  # after a preemption nobody is admitted until somebody has finished
    while waiting or running:
        while waiting and len(running) < max_seqs and (
                not running or not crowded and pool.can_admit(len(waiting[0].pending), 1)):
            request = waiting.pop(0)
            request.sequence = pool.open()
            running.append(request)
        batch = _take(running, max_batched_tokens)
        try:
            logits = _forward(model, cache, batch)
        except OutOfPages:
            if len(running) == 1:
                _close(running)
                raise
            victim = running.pop()
            victim.sequence.close()
            victim.sequence = None
            victim.pending = victim.prompt + victim.output
            waiting.insert(0, victim)
            crowded = True
            continue
        for (request, count), row in zip(batch, logits):
            del request.pending[:count]
            if request.pending:
                continue  # a chunk of a prompt; its last token is still to come
            token = int(row.argmax())
            request.output.append(token)
            request.pending = [token]
            if token == eos_token_id or len(request.output) >= max_new_tokens:
                results[request.index] = request.output
                request.sequence.close()
                running.remove(request)
                crowded = False
    return results


def _take(running: list[_Request], budget: int) -> list[tuple[_Request, int]]:
    """What the next step computes: every decoding sequence, then prompts as far as the budget reaches."""
    batch = []
    for request in sorted(running, key=lambda r: len(r.pending) > 1):
        count = min(len(request.pending), budget)
        if count > 0:
            batch.append((request, count))
            budget -= count
    return batch


@torch.no_grad()
def _forward(model: Any, cache: PagedCache, batch: list[tuple[_Request, int]]) -> torch.Tensor:
    """One packed forward pass; returns the logits of the last token of each item, [items, vocabulary]."""
    ids, positions, last = [], [], []
    for request, count in batch:
        start = request.sequence.num_tokens
        ids += request.pending[:count]
        positions += range(start, start + count)
        last.append(len(ids) - 1)
    cache.pack([(request.sequence, count) for request, count in batch])
    output = model(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor(last),
    )
    return output.logits[0]


def _close(running: list[_Request]) -> None:
    for request in running:
        if request.sequence is not None:
            request.sequence.close()
