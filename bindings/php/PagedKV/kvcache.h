// What KVCache.php calls of pagedkv/c/pagedkv.h, in the subset of C that PHP's FFI reads.
typedef struct kvcache kvcache;
kvcache* kvcache_create(int64_t cap, int64_t head_dim);
int32_t kvcache_append(kvcache* cache, const float* k, const float* v, int64_t rows);
int64_t kvcache_len(const kvcache* cache);
int32_t kvcache_reset(kvcache* cache);
int32_t kvcache_attend(const kvcache* cache, const float* q, float* out);
const float* kvcache_rows(const kvcache* cache);
void kvcache_free(kvcache* cache);
const char* pagedkv_status_name(int32_t status);
const char* pagedkv_last_error(void);
