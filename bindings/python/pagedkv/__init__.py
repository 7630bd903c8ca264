"""pagedkv: a paged KV cache and paged attention for CPUs.

One pool of pages serves many sequences; a step over a batch of them is a transaction. Arrays come and go by DLPack or the
buffer protocol without copies: NumPy, PyTorch on the CPU, anything else that speaks them. The interpreter lock is released
while rows are written and attention runs.

    cache = pagedkv.KvCache(num_layers=2, num_q_heads=8, num_kv_heads=2, head_dim=64, capacity_pages=1024)
    chat = cache.open()
    with cache.begin_step([(chat, 5)]) as step:  # 5 new tokens; rolled back unless committed
        for layer in range(2):
            step.write(layer, k, v)              # [5, 2, 64]
            out = step.attend(layer, q)          # [5, 8, 64]
        step.commit()
"""

from ._core import (AttentionPlan, CacheEvent, KvCache, PagePool, RetentionRange, Sequence, SequenceStore, Step, __version__,
                    active_target, cpu_info, merge_states, targets, write_kv)
from .errors import (Busy, Cancelled, Closed, Corrupt, Errc, Error, InvalidArgument, NotFound, OsCallFailed, OutOfMemory,
                     OutOfPages, Unsupported)
from .policy import EvictionPolicy

__all__ = [
    "AttentionPlan", "Busy", "CacheEvent", "Cancelled", "Closed", "Corrupt", "Errc", "Error", "EvictionPolicy",
    "InvalidArgument", "KvCache", "NotFound", "OsCallFailed", "OutOfMemory", "OutOfPages", "PagePool", "RetentionRange",
    "Sequence", "SequenceStore", "Step", "Unsupported", "__version__", "active_target", "cpu_info", "merge_states",
    "targets", "write_kv"
]
