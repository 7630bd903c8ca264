"""The shapes on which engines are compared, and the data that all of them get."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

GIB = 1 << 30
WORKING_SET_BYTES = GIB // 2  # of each engine: what its calls take turns over, so that caches hold none of it


@dataclasses.dataclass(frozen=True)
class Shape:
    """A batch of sequences of equal length: `context` tokens, of which the last `query_len` are new."""

    dtype: str
    batch: int
    context: int
    query_len: int = 1
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    f16_as_bf16: bool = False  # pagedkv's option; the others compute f16 as they do

    @property
    def decode(self) -> bool:
        return self.query_len == 1

    @property
    def kv_bytes(self) -> int:
        element = 4 if self.dtype == "f32" else 2
        return 2 * self.batch * self.kv_heads * self.context * self.head_dim * element

    @property
    def flops(self) -> float:
        """Of visible pairs of query and key: 2 for the score and 2 for the value, an element."""
        pairs = sum(self.context - self.query_len + 1 + row for row in range(self.query_len))
        return 4.0 * self.batch * self.q_heads * self.head_dim * pairs

    @property
    def copies(self) -> int:
        return -(-WORKING_SET_BYTES // self.kv_bytes)

    def __str__(self) -> str:
        queries = "decode" if self.decode else f"{self.query_len} queries"
        dtype = "f16 computed in bf16 (f16_as_bf16)" if self.f16_as_bf16 else self.dtype
        return (f"{queries}, {dtype}, {self.q_heads}/{self.kv_heads}x{self.head_dim}, batch {self.batch}, "
                f"context {self.context}")


# (query heads, kv heads, head dim, batch, context) of models' decode: MHA, MQA, and groups of 7, 3, 5, 8 and 3.
GROUPINGS = [(12, 12, 64, 16, 4096), (16, 1, 256, 16, 8192), (28, 4, 128, 8, 4096), (24, 8, 128, 8, 4096),
             (40, 8, 128, 8, 4096), (64, 8, 128, 8, 4096), (9, 3, 64, 16, 4096)]

SHAPES = [
    Shape("bf16", 8, 4096),
    Shape("bf16", 1, 4096),
    Shape("bf16", 32, 1024),
    Shape("bf16", 8, 16384),
    Shape("f16", 8, 4096),
    Shape("f32", 8, 4096),
    *(Shape(dtype, batch, context, 1, q_heads, kv_heads, head_dim)
      for q_heads, kv_heads, head_dim, batch, context in GROUPINGS for dtype in ("bf16", "f16", "f32")),
    Shape("bf16", 1, 256),
    Shape("bf16", 1, 4096, query_len=512),
    Shape("bf16", 1, 8192, query_len=512),
    Shape("bf16", 1, 4096, query_len=128),
    Shape("bf16", 1, 2048, query_len=2048),
    Shape("f16", 1, 2048, query_len=512),
    Shape("f16", 1, 2048, query_len=512, f16_as_bf16=True),
    Shape("f32", 1, 2048, query_len=512),
]


class Problem:
    """Random queries, keys and values of one shape, as f32 arrays whose values the format holds exactly.

    q [batch][query_len][q_heads][head_dim]; k, v [batch][kv_heads][context][head_dim].
    """

    def __init__(self, shape: Shape, rounded):
        random = np.random.default_rng(1)

        def draw(*extents: int) -> np.ndarray:
            return rounded(random.standard_normal(extents, dtype=np.float32), shape.dtype)

        self.shape = shape
        self.q = draw(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)
        self.k = draw(shape.batch, shape.kv_heads, shape.context, shape.head_dim)
        self.v = draw(shape.batch, shape.kv_heads, shape.context, shape.head_dim)

    def rows_to_check(self) -> list[tuple[int, int]]:
        """(sequence, query row): the first and the last sequence, in prefill eight rows of each."""
        last_b, last_row = self.shape.batch - 1, self.shape.query_len - 1
        return sorted({(b, last_row * i // 7) for b in (0, last_b) for i in range(8)})

    @functools.cached_property
    def expected(self) -> np.ndarray:
        """Attention of the rows to check in f64. Shape: [rows][q_heads][head_dim]."""
        return np.stack([self.attention(b, row) for b, row in self.rows_to_check()])

    def attention(self, b: int, row: int) -> np.ndarray:
        s = self.shape
        keys = s.context - s.query_len + row + 1
        group = s.q_heads // s.kv_heads
        q = self.q[b, row].astype(np.float64).reshape(s.kv_heads, group, s.head_dim)
        logits = q @ self.k[b, :, :keys].astype(np.float64).transpose(0, 2, 1) / np.sqrt(s.head_dim)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ self.v[b, :, :keys].astype(np.float64)).reshape(s.q_heads, s.head_dim)
