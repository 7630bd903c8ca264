/* The C interface of pagedkv: what the C++ headers offer, for every language with a foreign function interface.
 *
 * Layer: capi.
 *
 * Every function that can fail returns a pagedkv_status; results come through pointers and are written on success only.
 * Nothing throws, aborts or prints. Objects are handles: numbers that name an object and its generation. A handle that
 * was closed, never given out, or names another kind of object is refused, never followed.
 *
 * A function pagedkv_x_y does what X::y of the C++ headers does: shapes, errors, cost and threads are written there.
 * Comments here say only what differs. Of those headers only the f64 oracle is missing, and a few getters: the
 * options of the simple caches, and AttentionPlan::kv_bytes of a view, which counts values that lie in keys once.
 *
 * Structs that may grow begin with `struct_size`, which the caller sets to sizeof; all other members may be 0, which
 * means the default. A library that is older than its caller refuses members that it does not know unless they are 0.
 *
 * Functions that the caller passes must not unwind (no exception, no longjmp).
 *
 * Threads: caches, pools and stores may be used by many threads at once. Sequences, steps, plans, dense and
 * interleaved caches belong to one thread at a time: a call while another thread is in one gets PAGEDKV_BUSY.
 */
#ifndef PAGEDKV_C_PAGEDKV_H
#define PAGEDKV_C_PAGEDKV_H

#include <stddef.h>
#include <stdint.h>

#include "pagedkv/export.h"

/* Of functions that the library calls: part of their type in C++. */
#ifdef __cplusplus
#define PAGEDKV_NOEXCEPT noexcept
extern "C" {
#else
#define PAGEDKV_NOEXCEPT
#endif

/* Status ------------------------------------------------------------------------------------------------------------*/

/* Frozen values, those of pagedkv::Errc. */
typedef int32_t pagedkv_status;
enum {
  PAGEDKV_OK = 0,
  PAGEDKV_INVALID_ARGUMENT = 1, /* Refuse the request; retrying cannot help. */
  PAGEDKV_OUT_OF_PAGES = 2,     /* The pool is full. Normal under load: wait, preempt or evict, then retry. */
  PAGEDKV_OUT_OF_MEMORY = 3,    /* The host refused memory for bookkeeping. Shed load. */
  PAGEDKV_UNSUPPORTED = 4,      /* Not on this CPU, or not in this version. */
  PAGEDKV_CLOSED = 5,           /* The handle was closed or never given out. A bug in the caller. */
  PAGEDKV_BUSY = 6,             /* In a step in flight, or in a call of another thread. */
  PAGEDKV_OS_ERROR = 7,         /* The operating system refused a call. */
  PAGEDKV_CANCELLED = 8,
  PAGEDKV_NOT_FOUND = 9,
  PAGEDKV_CORRUPT = 10
};

/* "out_of_pages" and so on; "unknown" for a number that is no status. Static storage, never NULL. */
PAGEDKV_API const char* pagedkv_status_name(pagedkv_status status);
/* One sentence about the last call of this thread that failed. Static storage, never NULL. */
PAGEDKV_API const char* pagedkv_last_error(void);
/* "major.minor.patch" of the library. Static storage. */
PAGEDKV_API const char* pagedkv_version(void);

/* Handles and plain data --------------------------------------------------------------------------------------------*/

/* 0 is no object. */
typedef uint64_t pagedkv_cache;
typedef uint64_t pagedkv_sequence;
typedef uint64_t pagedkv_step;
typedef uint64_t pagedkv_pool;
typedef uint64_t pagedkv_store;
typedef uint64_t pagedkv_plan;
typedef uint64_t pagedkv_dense;

typedef uint32_t pagedkv_dtype;
enum { PAGEDKV_F32 = 0, PAGEDKV_F16 = 1, PAGEDKV_BF16 = 2 };

/* A dense row-major array, borrowed during the call. The function says its shape and checks the count. */
typedef struct {
  const void* data;
  size_t num_elements;
  pagedkv_dtype dtype;
} pagedkv_const_tensor;
typedef struct {
  void* data;
  size_t num_elements;
  pagedkv_dtype dtype;
} pagedkv_tensor;

/* Bytes, borrowed during the call; {NULL, 0} is empty. */
typedef struct {
  const char* data;
  size_t size;
} pagedkv_bytes;

/* The machine and the kernel targets --------------------------------------------------------------------------------*/

/* Sizes in bytes, 0 if unknown. */
typedef struct {
  size_t struct_size;
  const char* model; /* Static storage. */
  int32_t num_cpus;  /* CPUs that this process may run on. */
  int32_t num_numa_nodes;
  uint64_t l1d_bytes, l2_bytes, l3_bytes;
} pagedkv_cpu_info;

PAGEDKV_API pagedkv_status pagedkv_get_cpu_info(pagedkv_cpu_info* info);
PAGEDKV_API size_t pagedkv_num_targets(void);
/* Name and description (one line) of a compiled target, best first, and whether it runs here; static storage. NULL
 * out-pointers are skipped. */
PAGEDKV_API pagedkv_status pagedkv_target_at(size_t index, const char** name, const char** description,
                                             int32_t* available);
/* Index of a target by name, in any case. PAGEDKV_NOT_FOUND, or PAGEDKV_UNSUPPORTED if it cannot run here. */
PAGEDKV_API pagedkv_status pagedkv_find_target(pagedkv_bytes name, size_t* index);
/* What plans use when they name none: PAGEDKV_TARGET of the environment, else the best. */
PAGEDKV_API pagedkv_status pagedkv_active_target(const char** name);

/* The cache ---------------------------------------------------------------------------------------------------------*/

/* What all layers compute. All zero: causal, all keys, 1 / sqrt(head_dim). */
typedef struct {
  float sm_scale;
  float logits_soft_cap;
  uint32_t window;      /* Keys that a query sees, its own among them; 0 = all. */
  uint32_t sink_tokens; /* First tokens that every query sees beside its window. */
  int32_t non_causal;   /* Non-zero: a query sees keys after its own too. */
  const float* sinks;   /* [num_q_heads] or NULL; copied. For a cache also [num_layers][num_q_heads]. */
  size_t num_sinks;
  const float* alibi_slopes; /* [num_q_heads] or NULL; copied. */
  size_t num_alibi_slopes;
} pagedkv_attention_variant;

/* Bits of attention_flags, 0 being the default of each. Bits that the library does not know are refused. */
enum {
  /* f16 pages may be rounded to bf16 for the matrix units: AttentionVariant::f16_as_bf16 in attention.h. */
  PAGEDKV_F16_AS_BF16 = 1,
  /* Sequences with the same leading pages read them once: AttentionConfig::cascade in attention.h. */
  PAGEDKV_CASCADE = 2
};

/* Layers with a window of their own. */
typedef struct {
  const uint32_t* layers;
  size_t num_layers;
  uint32_t window; /* As above. */
  uint32_t sink_tokens;
} pagedkv_layer_group;

/* See prefix_cache.h. */
enum { PAGEDKV_LRU = 0, PAGEDKV_S3FIFO = 1, PAGEDKV_ARC = 2 };

/* An eviction policy of one's own: chooses which unreferenced published page is taken next. Copied; `user` goes with
 * each call. on_evictable, on_withdrawn and choose must be given, the others may be NULL.
 *
 * Calls come under the pool's lock, from any thread, one at a time: be quick, never call pagedkv. A choice that is no
 * candidate is replaced by one that is, which on_withdrawn tells. */
typedef struct {
  size_t struct_size;
  void* user;
  /* Called once, first: ids are below `num_pages`. Anything but PAGEDKV_OK refuses the cache. */
  pagedkv_status (*attach)(void* user, uint64_t num_pages) PAGEDKV_NOEXCEPT;
  /* A page can be found from now on; `hash` is of its tokens and all before, `index` its position in the prefix. */
  void (*on_published)(void* user, int32_t page, uint64_t hash, uint64_t index) PAGEDKV_NOEXCEPT;
  void (*on_hit)(void* user, int32_t page) PAGEDKV_NOEXCEPT;       /* Found by its tokens; it is referenced. */
  void (*on_evictable)(void* user, int32_t page) PAGEDKV_NOEXCEPT; /* Became a candidate: nobody refers to it. */
  void (*on_withdrawn)(void* user, int32_t page) PAGEDKV_NOEXCEPT; /* Is none any more. */
  int32_t (*choose)(void* user) PAGEDKV_NOEXCEPT;                  /* One of the candidates, then none any more. */
  /* Called once, when the cache is gone with all that kept it alive; not if pagedkv_cache_create failed. */
  void (*destroy)(void* user) PAGEDKV_NOEXCEPT;
} pagedkv_eviction_policy;

/* Hash of tokens [count] after a prefix with hash `seed`. It finds candidates only: tokens are always compared. */
typedef uint64_t (*pagedkv_hash_function)(const int32_t* tokens, size_t count, uint64_t seed) PAGEDKV_NOEXCEPT;
/* Milliseconds of a clock that never goes back. Called under the pool's lock, from any thread: be quick, and call no
 * function of this library. */
typedef uint64_t (*pagedkv_clock_function)(void) PAGEDKV_NOEXCEPT;

typedef struct {
  size_t struct_size;
  uint32_t num_layers, num_q_heads, num_kv_heads, head_dim;
  uint32_t v_head_dim; /* 0 = head_dim. */
  pagedkv_dtype dtype; /* Of the pages. */
  uint32_t page_size;  /* Tokens a page, 1..256; 0 = 16. */
  uint32_t layers_per_page;
  uint64_t capacity_bytes; /* One of the two. */
  uint64_t capacity_pages;
  uint64_t max_capacity_pages; /* What set_capacity may raise it to; 0 = the capacity. */
  uint64_t watermark_pages;
  int32_t no_huge_pages;
  int32_t no_prefix_cache;
  uint32_t eviction_policy;            /* PAGEDKV_LRU and so on. */
  uint32_t zero_pages_between_tenants; /* 1: a page that was another tenant's is zeroed before it is given out. */
  uint64_t event_capacity;             /* Events that wait for pagedkv_cache_poll_events, at most 2^24; 0 = none. */
  pagedkv_attention_variant attention;
  const pagedkv_layer_group* layer_groups;
  size_t num_layer_groups;
  pagedkv_bytes target;                  /* Kernel target by name; empty = the active one. */
  const pagedkv_eviction_policy* policy; /* In place of eviction_policy; copied. NULL = eviction_policy. */
  pagedkv_hash_function hash;            /* NULL = XXH3. */
  pagedkv_clock_function now_ms;         /* Of retention durations; NULL = the steady clock. */
  uint64_t attention_flags;              /* PAGEDKV_F16_AS_BF16 | PAGEDKV_CASCADE. */
} pagedkv_cache_options;

/* What a cache was made with, defaults filled in. Pointers are valid while the cache is open. */
typedef struct {
  size_t struct_size;
  uint32_t num_layers, num_q_heads, num_kv_heads, head_dim, v_head_dim;
  pagedkv_dtype dtype;
  uint32_t page_size;
  int32_t has_prefix_cache;
  uint64_t page_bytes, capacity_pages, max_capacity_pages, watermark_pages;
  pagedkv_attention_variant attention;
  pagedkv_bytes target; /* Kernel target by name: the one given, or that which was active. */
  uint64_t attention_flags;
} pagedkv_cache_info;

typedef struct {
  uint64_t begin_token, end_token; /* end is exclusive. */
  uint32_t priority;               /* 0..100, 35 is usual. */
  uint64_t duration_ms;            /* 0 = for ever. */
} pagedkv_retention;

typedef struct {
  size_t struct_size;
  pagedkv_bytes cache_salt; /* Namespace of a tenant. */
  pagedkv_bytes extra_key;  /* Whatever else changes K and V. */
  const pagedkv_retention* retention;
  size_t num_retention; /* 256 at most. */
} pagedkv_open_options;

typedef struct {
  pagedkv_sequence sequence;
  uint32_t num_new_tokens;
  const int32_t* tokens; /* [num_tokens] ids of the new tokens, or NULL. */
  size_t num_tokens;
} pagedkv_step_item;

/* Exact counts of one moment: used + evictable + free = capacity. */
typedef struct {
  size_t struct_size;
  uint64_t page_bytes, capacity_pages, used_pages, evictable_pages, free_pages, shared_pages;
  uint64_t committed_bytes, metadata_bytes, peak_used_pages, allocations, failed_allocations, evictions;
  int32_t huge_pages;
} pagedkv_pool_stats;

typedef struct {
  size_t struct_size;
  uint64_t page_bytes, capacity_pages, used_pages, evictable_pages, free_pages, shared_pages;
  uint64_t committed_bytes, metadata_bytes, peak_used_pages, allocations, failed_allocations, evictions;
  int32_t huge_pages;
  uint64_t open_sequences, steps_begun, steps_committed, steps_rolled_back, tokens_committed, copied_pages;
  uint64_t prefix_lookups, prefix_lookup_tokens, prefix_hit_tokens, published_pages, merged_pages, pinned_pages;
  uint64_t namespaces, lost_events, prefix_metadata_bytes;
  double bytes_per_token, padding_bytes_per_token;
} pagedkv_cache_stats;

/* One layer's pages as they lie; strides in bytes. */
typedef struct {
  const void* k;
  const void* v;
  int64_t k_page_stride, k_head_stride, k_token_stride;
  int64_t v_page_stride, v_head_stride, v_token_stride;
  int64_t num_pages;
} pagedkv_kv_view;

enum { PAGEDKV_EVENT_STORED = 0, PAGEDKV_EVENT_EVICTED = 1, PAGEDKV_EVENT_CLEARED = 2 };
typedef struct {
  uint32_t kind;
  int32_t page;
  uint64_t sequence_number, hash, parent_hash;
  const int32_t* tokens; /* [num_tokens] during the callback. */
  size_t num_tokens;
} pagedkv_event;
typedef void (*pagedkv_event_callback)(void* user, const pagedkv_event* event) PAGEDKV_NOEXCEPT;

PAGEDKV_API pagedkv_status pagedkv_cache_create(const pagedkv_cache_options* options, pagedkv_cache* cache);
/* Sequences and steps live on. */
PAGEDKV_API pagedkv_status pagedkv_cache_close(pagedkv_cache cache);
/* `options` may be NULL. tokens [num_tokens] may be NULL if num_tokens is 0. */
PAGEDKV_API pagedkv_status pagedkv_cache_open(pagedkv_cache cache, const int32_t* tokens, size_t num_tokens,
                                              const pagedkv_open_options* options, pagedkv_sequence* sequence);
/* Reserves every page of the step, or none and nothing changed. */
PAGEDKV_API pagedkv_status pagedkv_cache_begin_step(pagedkv_cache cache, const pagedkv_step_item* items,
                                                    size_t num_items, pagedkv_step* step);
PAGEDKV_API pagedkv_status pagedkv_cache_pages_available(pagedkv_cache cache, uint64_t* pages);
PAGEDKV_API pagedkv_status pagedkv_cache_pages_for_tokens(pagedkv_cache cache, uint64_t num_tokens,
                                                          uint64_t step_tokens, uint64_t* pages);
PAGEDKV_API pagedkv_status pagedkv_cache_pages_needed(pagedkv_cache cache, const pagedkv_step_item* items,
                                                      size_t num_items, uint64_t* pages);
PAGEDKV_API pagedkv_status pagedkv_cache_can_admit(pagedkv_cache cache, uint64_t prompt_tokens, uint64_t max_new_tokens,
                                                   uint64_t step_tokens, int32_t* fits);
PAGEDKV_API pagedkv_status pagedkv_cache_get_stats(pagedkv_cache cache, pagedkv_cache_stats* stats);
PAGEDKV_API pagedkv_status pagedkv_cache_get_info(pagedkv_cache cache, pagedkv_cache_info* info);
PAGEDKV_API pagedkv_status pagedkv_cache_page_bytes(pagedkv_cache cache, uint64_t* bytes);
PAGEDKV_API pagedkv_status pagedkv_cache_view(pagedkv_cache cache, uint32_t layer, pagedkv_kv_view* view);
PAGEDKV_API pagedkv_status pagedkv_cache_page_table_of(pagedkv_cache cache, uint32_t layer, size_t* group);
PAGEDKV_API pagedkv_status pagedkv_cache_trim(pagedkv_cache cache, uint64_t* given_bytes); /* NULL is skipped. */
PAGEDKV_API pagedkv_status pagedkv_cache_set_capacity(pagedkv_cache cache, uint64_t num_pages);
PAGEDKV_API pagedkv_status pagedkv_cache_pin(pagedkv_cache cache, const int32_t* tokens, size_t num_tokens,
                                             const pagedkv_open_options* options, uint64_t* pin);
PAGEDKV_API pagedkv_status pagedkv_cache_unpin(pagedkv_cache cache, uint64_t pin);
PAGEDKV_API pagedkv_status pagedkv_cache_clear_prefixes(pagedkv_cache cache);
/* The cache's own pool, as a handle to be closed like any other. */
PAGEDKV_API pagedkv_status pagedkv_cache_pool(pagedkv_cache cache, pagedkv_pool* pool);
/* The callback runs in this thread. `num_events` may be NULL. */
PAGEDKV_API pagedkv_status pagedkv_cache_poll_events(pagedkv_cache cache, pagedkv_event_callback callback, void* user,
                                                     uint64_t* num_events);

/* Sequences ---------------------------------------------------------------------------------------------------------*/

PAGEDKV_API pagedkv_status pagedkv_sequence_close(pagedkv_sequence sequence); /* PAGEDKV_BUSY in a step. */
PAGEDKV_API pagedkv_status pagedkv_sequence_append(pagedkv_sequence sequence, uint32_t num_tokens);
PAGEDKV_API pagedkv_status pagedkv_sequence_truncate(pagedkv_sequence sequence, uint64_t num_tokens);
PAGEDKV_API pagedkv_status pagedkv_sequence_slide(pagedkv_sequence sequence, uint64_t window, uint64_t sink_tokens,
                                                  size_t group, uint64_t* released_pages); /* NULL is skipped. */
PAGEDKV_API pagedkv_status pagedkv_sequence_fork(pagedkv_sequence sequence, pagedkv_sequence* branch);
PAGEDKV_API pagedkv_status pagedkv_sequence_num_tokens(pagedkv_sequence sequence, uint64_t* num_tokens);
PAGEDKV_API pagedkv_status pagedkv_sequence_cached_tokens(pagedkv_sequence sequence, uint64_t* num_tokens);
PAGEDKV_API pagedkv_status pagedkv_sequence_num_groups(pagedkv_sequence sequence, size_t* num_groups);
PAGEDKV_API pagedkv_status pagedkv_sequence_page_size(pagedkv_sequence sequence, uint32_t* page_size);
PAGEDKV_API pagedkv_status pagedkv_sequence_pages_needed(pagedkv_sequence sequence, uint32_t num_tokens,
                                                         uint64_t* pages);
/* Copies at most `capacity` page ids (-1 where a window released one) to `pages`, and tells how many there are: call
 * with capacity 0 to ask. */
PAGEDKV_API pagedkv_status pagedkv_sequence_pages(pagedkv_sequence sequence, size_t group, int32_t* pages,
                                                  size_t capacity, size_t* num_pages);
/* The same for the ids of the tokens, as far as they are known. */
PAGEDKV_API pagedkv_status pagedkv_sequence_tokens(pagedkv_sequence sequence, int32_t* tokens, size_t capacity,
                                                   size_t* num_tokens);

/* Steps -------------------------------------------------------------------------------------------------------------*/

/* k [rows][num_kv_heads][head_dim], v [rows][num_kv_heads][v_head_dim]; any dtype. */
PAGEDKV_API pagedkv_status pagedkv_step_write(pagedkv_step step, uint32_t layer, pagedkv_const_tensor k,
                                              pagedkv_const_tensor v);
/* q [rows][num_q_heads][head_dim], out [rows][num_q_heads][v_head_dim], lse [rows][num_q_heads] (natural logarithm) or
 * NULL with num_lse 0. */
PAGEDKV_API pagedkv_status pagedkv_step_attend(pagedkv_step step, uint32_t layer, pagedkv_const_tensor q,
                                               pagedkv_tensor out, float* lse, size_t num_lse);
PAGEDKV_API pagedkv_status pagedkv_step_commit(pagedkv_step step);
PAGEDKV_API pagedkv_status pagedkv_step_commit_partial(pagedkv_step step, const uint32_t* accepted, size_t num_items);
PAGEDKV_API pagedkv_status pagedkv_step_rollback(pagedkv_step step);
PAGEDKV_API pagedkv_status pagedkv_step_num_rows(pagedkv_step step, size_t* num_rows);
PAGEDKV_API pagedkv_status pagedkv_step_num_items(pagedkv_step step, size_t* num_items);
/* Frees the handle; rolls back if the step was not committed. What ends a step is a call on its sequences too. */
PAGEDKV_API pagedkv_status pagedkv_step_close(pagedkv_step step);

/* Pool and store: storage alone, for kernels of one's own -----------------------------------------------------------*/

typedef struct {
  size_t struct_size;
  uint64_t page_bytes, capacity_pages, max_capacity_pages, watermark_pages;
  int32_t no_huge_pages;
} pagedkv_pool_options;

PAGEDKV_API pagedkv_status pagedkv_pool_create(const pagedkv_pool_options* options, pagedkv_pool* pool);
PAGEDKV_API pagedkv_status pagedkv_pool_close(pagedkv_pool pool);
PAGEDKV_API pagedkv_status pagedkv_pool_allocate(pagedkv_pool pool, int32_t* pages,
                                                 size_t num_pages); /* All or none. */
/* Release what was allocated or retained here; the references of sequences are theirs to release. */
PAGEDKV_API pagedkv_status pagedkv_pool_retain(pagedkv_pool pool, const int32_t* pages, size_t num_pages);
PAGEDKV_API pagedkv_status pagedkv_pool_release(pagedkv_pool pool, const int32_t* pages, size_t num_pages);
PAGEDKV_API pagedkv_status pagedkv_pool_ref_count(pagedkv_pool pool, int32_t page, uint32_t* references);
/* Whether a page holds a published prefix that nobody refers to. */
PAGEDKV_API pagedkv_status pagedkv_pool_is_evictable(pagedkv_pool pool, int32_t page, int32_t* evictable);
PAGEDKV_API pagedkv_status pagedkv_pool_available(pagedkv_pool pool, uint64_t* pages);
PAGEDKV_API pagedkv_status pagedkv_pool_can_allocate(pagedkv_pool pool, uint64_t num_pages, int32_t* fits);
/* Memory of all pages: page p begins at base + p * page_bytes for ever. `max_pages`: ids are below it. NULL
 * out-pointers are skipped. */
PAGEDKV_API pagedkv_status pagedkv_pool_memory(pagedkv_pool pool, void** base, uint64_t* page_bytes,
                                               uint64_t* max_pages);
/* Memory of a page; it never moves. To be written by who holds a reference only: a page that was never handed out reads
 * as zeros, and to write it ends the process. PAGEDKV_INVALID_ARGUMENT for an id out of range. */
PAGEDKV_API pagedkv_status pagedkv_pool_page_data(pagedkv_pool pool, int32_t page, void** data);
PAGEDKV_API pagedkv_status pagedkv_pool_get_stats(pagedkv_pool pool, pagedkv_pool_stats* stats);
PAGEDKV_API pagedkv_status pagedkv_pool_trim(pagedkv_pool pool, uint64_t* given_bytes); /* NULL is skipped. */
PAGEDKV_API pagedkv_status pagedkv_pool_set_capacity(pagedkv_pool pool, uint64_t num_pages);

/* Layers that see the same keys and share a page table. */
typedef struct {
  uint32_t window;      /* As pagedkv_layer_group::window. */
  uint32_t sink_tokens; /* First tokens whose pages a window keeps. */
} pagedkv_store_group;

/* Sequences over a pool. `groups` [num_groups]; none = one group that sees all keys. */
PAGEDKV_API pagedkv_status pagedkv_store_create(pagedkv_pool pool, uint32_t page_size,
                                                const pagedkv_store_group* groups, size_t num_groups,
                                                pagedkv_store* store);
PAGEDKV_API pagedkv_status pagedkv_store_close(pagedkv_store store);
PAGEDKV_API pagedkv_status pagedkv_store_open(pagedkv_store store, pagedkv_sequence* sequence);
PAGEDKV_API pagedkv_status pagedkv_store_open_sequences(pagedkv_store store, uint64_t* num_sequences);

/* Plans: attention over anybody's pages -----------------------------------------------------------------------------*/

typedef struct {
  size_t struct_size;
  uint32_t num_q_heads, num_kv_heads, head_dim;
  uint32_t v_head_dim; /* 0 = head_dim. */
  uint32_t page_size;  /* 0 = 16. */
  pagedkv_dtype kv_dtype;
  pagedkv_attention_variant variant;
  pagedkv_bytes target;
  int32_t cascade;          /* Non-zero: as PAGEDKV_CASCADE. */
  uint64_t attention_flags; /* PAGEDKV_F16_AS_BF16 | PAGEDKV_CASCADE. */
} pagedkv_attention_config;

enum { PAGEDKV_MASK_NONE = 0, PAGEDKV_MASK_BOOL = 1, PAGEDKV_MASK_ADDITIVE = 2, PAGEDKV_MASK_BITS = 3 };

/* A ragged batch of B = num_qo_indptr - 1 sequences: see AttentionBatch in attention.h. CSR page tables if
 * `block_table` is NULL. Counts of 0 go with NULL. The mask is borrowed until the plan is closed, all else until it was
 * made. */
typedef struct {
  size_t struct_size;
  const int32_t* qo_indptr; /* [B + 1] */
  size_t num_qo_indptr;
  const int32_t* kv_indptr; /* [B + 1] */
  size_t num_kv_indptr;
  const int32_t* kv_indices; /* [kv_indptr[B]] */
  size_t num_kv_indices;
  const int32_t* kv_last_page_len; /* [B] */
  size_t num_kv_last_page_len;
  const int32_t* block_table; /* [B][block_table_stride] */
  size_t num_block_table;
  int64_t block_table_stride;
  const int32_t* seq_lens; /* [B] */
  size_t num_seq_lens;
  const int32_t* q_start; /* [B] or NULL */
  size_t num_q_start;
  uint32_t mask_kind;
  const void* mask;
  size_t mask_bytes;
  const int64_t* mask_offsets; /* [B] */
  size_t num_mask_offsets;
  const int64_t* mask_row_strides; /* [B] or NULL */
  size_t num_mask_row_strides;
  const int64_t* mask_head_strides; /* [B] or NULL */
  size_t num_mask_head_strides;
} pagedkv_attention_batch;

PAGEDKV_API pagedkv_status pagedkv_plan_workspace_bytes(const pagedkv_attention_config* config,
                                                        const pagedkv_attention_batch* batch, size_t* bytes);
/* `workspace` is 64-byte aligned and borrowed until the plan is closed; NULL with 0 bytes: the plan has its own. */
PAGEDKV_API pagedkv_status pagedkv_plan_create(const pagedkv_attention_config* config,
                                               const pagedkv_attention_batch* batch, void* workspace,
                                               size_t workspace_bytes, pagedkv_plan* plan);
/* Plans the next step of the same sequences: as many query rows each, longer keys. Refused, the plan is as it was. */
PAGEDKV_API pagedkv_status pagedkv_plan_extend(pagedkv_plan plan, const pagedkv_attention_batch* batch);
/* q [rows][num_q_heads][head_dim], out [rows][num_q_heads][v_head_dim], lse [rows][num_q_heads] (natural logarithm) or
 * NULL with num_lse 0. */
PAGEDKV_API pagedkv_status pagedkv_plan_run(pagedkv_plan plan, const pagedkv_kv_view* pages, pagedkv_const_tensor q,
                                            pagedkv_tensor out, float* lse, size_t num_lse);
/* The same with the learned sinks [num_q_heads] of this layer in place of pagedkv_attention_variant::sinks. */
PAGEDKV_API pagedkv_status pagedkv_plan_run_with_sinks(pagedkv_plan plan, const pagedkv_kv_view* pages,
                                                       pagedkv_const_tensor q, pagedkv_tensor out, float* lse,
                                                       size_t num_lse, const float* sinks, size_t num_sinks);
PAGEDKV_API pagedkv_status pagedkv_plan_num_rows(pagedkv_plan plan, size_t* num_rows);
PAGEDKV_API pagedkv_status pagedkv_plan_target(pagedkv_plan plan, const char** name);
PAGEDKV_API pagedkv_status pagedkv_plan_kv_bytes(pagedkv_plan plan, uint64_t* bytes);
PAGEDKV_API pagedkv_status pagedkv_plan_flops(pagedkv_plan plan, double* flops);
PAGEDKV_API pagedkv_status pagedkv_plan_close(pagedkv_plan plan);
/* Writes rows into slots (page * page_size + offset; negative ones are skipped). `pages->k` and `v` must be writable.
 */
PAGEDKV_API pagedkv_status pagedkv_write_kv(const pagedkv_attention_config* config, const pagedkv_kv_view* pages,
                                            const int64_t* slots, size_t num_slots, pagedkv_const_tensor k,
                                            pagedkv_const_tensor v);
/* Merges state b into a: out [rows][dim], lse [rows]. */
PAGEDKV_API pagedkv_status pagedkv_merge_states(float* out_a, float* lse_a, const float* out_b, const float* lse_b,
                                                size_t rows, size_t dim);

/* The dense cache: see dense_cache.h --------------------------------------------------------------------------------*/

typedef struct {
  size_t struct_size;
  uint32_t batch_size, num_layers, num_heads, head_dim;
  uint32_t max_seq_len; /* 0 = 2048. */
  pagedkv_dtype dtype;
  uint32_t page_size; /* 0 = 16. */
  int32_t new_tokens_see_later_ones;
  pagedkv_pool pool; /* 0 = its own. */
  pagedkv_bytes target;
} pagedkv_dense_options;

/* K and V of a layer in place. Row (b, h, t) of K begins at pages.k + page * k_page_stride + h * k_head_stride +
 * (t % page_size) * k_token_stride, where page = page_table[b * page_table_stride + t / page_size]. */
typedef struct {
  size_t struct_size;
  uint32_t batch_size, num_heads, head_dim, page_size;
  pagedkv_dtype dtype;
  uint64_t seq_len;
  pagedkv_kv_view pages;
  const int32_t* page_table;
  size_t page_table_stride;
} pagedkv_dense_kv;

PAGEDKV_API pagedkv_status pagedkv_dense_create(const pagedkv_dense_options* options, pagedkv_dense* dense);
PAGEDKV_API pagedkv_status pagedkv_dense_page_bytes(const pagedkv_dense_options* options, uint64_t* bytes);
PAGEDKV_API pagedkv_status pagedkv_dense_close(pagedkv_dense dense);
/* new_k, new_v [batch_size][num_heads][new_len][head_dim]. `kv` may be NULL. */
PAGEDKV_API pagedkv_status pagedkv_dense_update(pagedkv_dense dense, uint32_t layer, pagedkv_const_tensor new_k,
                                                pagedkv_const_tensor new_v, pagedkv_dense_kv* kv);
PAGEDKV_API pagedkv_status pagedkv_dense_get(pagedkv_dense dense, uint32_t layer, pagedkv_dense_kv* kv);
/* k, v [batch_size][num_heads][seq_len][head_dim]. */
PAGEDKV_API pagedkv_status pagedkv_dense_copy(pagedkv_dense dense, uint32_t layer, pagedkv_tensor k, pagedkv_tensor v);
PAGEDKV_API pagedkv_status pagedkv_dense_seq_length(pagedkv_dense dense, uint32_t layer, uint64_t* num_tokens);
PAGEDKV_API pagedkv_status pagedkv_dense_reset(pagedkv_dense dense);
/* q, k, v [batch_size][num_heads][new_len][head_dim]; out [batch_size][new_len][num_heads * head_dim]. */
PAGEDKV_API pagedkv_status pagedkv_dense_cached_attention(pagedkv_dense dense, uint32_t layer, pagedkv_const_tensor q,
                                                          pagedkv_const_tensor k, pagedkv_const_tensor v,
                                                          pagedkv_tensor out);
PAGEDKV_API pagedkv_status pagedkv_dense_get_stats(pagedkv_dense dense, pagedkv_pool_stats* stats);

/* The interleaved cache: see interleaved_cache.h --------------------------------------------------------------------*/

/* A handle in the shape of a pointer: it is looked up, never followed, so that a freed one is refused. */
typedef struct kvcache kvcache;

/* NULL when it cannot be had; pagedkv_last_error() says why. */
PAGEDKV_API kvcache* kvcache_create(int64_t cap, int64_t head_dim);
/* Appends token rows in order: k, v [rows][head_dim]. 0, or a pagedkv_status. */
PAGEDKV_API int32_t kvcache_append(kvcache* cache, const float* k, const float* v, int64_t rows);
/* Tokens held, or -1 for a handle that is none. */
PAGEDKV_API int64_t kvcache_len(const kvcache* cache);
/* Empties, frees nothing. */
PAGEDKV_API int32_t kvcache_reset(kvcache* cache);
/* out [head_dim]: attention of q [head_dim] over all tokens; zeros if there are none. */
PAGEDKV_API int32_t kvcache_attend(const kvcache* cache, const float* q, float* out);
/* Attention of the queries of the last `rows` tokens, each up to its own: q, out [rows][head_dim]. */
PAGEDKV_API int32_t kvcache_attend_last(const kvcache* cache, const float* q, int64_t rows, float* out);
/* The rows in place: [len][K, V][head_dim]. NULL for a handle that is none. */
PAGEDKV_API const float* kvcache_rows(const kvcache* cache);
/* NULL and freed handles are harmless. */
PAGEDKV_API void kvcache_free(kvcache* cache);

#ifdef __cplusplus
}
#endif

#endif /* PAGEDKV_C_PAGEDKV_H */
