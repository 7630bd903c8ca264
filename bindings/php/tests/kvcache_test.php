<?php
// KVCache, behaviour by behaviour. Run with PAGEDKV_LIBRARY naming libpagedkv.so.

declare(strict_types=1);

use PagedKV\KVCache;
use PagedKV\Tensor;

require __DIR__ . '/../PagedKV/KVCache.php';

$failures = 0;

function check(bool $condition, string $what): void
{
    global $failures;
    if (!$condition) {
        ++$failures;
        fwrite(STDERR, "failed: $what\n");
    }
}

function throws(string $class, callable $call, string $what): void
{
    try {
        $call();
    } catch (Throwable $error) {
        check($error instanceof $class, "$what: got " . get_class($error) . ": {$error->getMessage()}");
        check($error->getMessage() !== '', "$what: says why");
        return;
    }
    check(false, "$what: nothing was thrown");
}

function near(array $got, array $want, string $what): void
{
    check(count($got) === count($want), "$what: count");
    foreach ($want as $i => $value) {
        check(abs($got[$i] - $value) < 1e-5, "$what: element $i is {$got[$i]}, not $value");
    }
}

// It begins empty, holds what was appended, and keeps the order.
$cache = new KVCache(5, 2);
check($cache->len() === 0, 'begins empty');
$cache->append(Tensor::from([1, 2]), Tensor::from([3, 4]));
check($cache->len() === 1, 'one token');
$cache->append(Tensor::from([[5, 6], [7, 8]]), Tensor::from([[9, 10], [11, 12]]));
check($cache->len() === 3, 'two more');
check($cache->row(0) === [[1.0, 2.0], [3.0, 4.0]], 'K and V of the first token');
check($cache->row(2) === [[7.0, 8.0], [11.0, 12.0]], 'K and V of the last token');

// Attention over all tokens.
near($cache->attend(Tensor::from([0, 0]))->toArray(), [(3 + 9 + 11) / 3, (4 + 10 + 12) / 3], 'mean of V');
$scores = array_map(fn (array $k) => exp(($k[0] - $k[1] * 0.5) / sqrt(2)), [[1, 2], [5, 6], [7, 8]]);
$sum = array_sum($scores);
near($cache->attend(Tensor::from([1, -0.5]))->toArray(), [
    (3 * $scores[0] + 9 * $scores[1] + 11 * $scores[2]) / $sum,
    (4 * $scores[0] + 10 * $scores[1] + 12 * $scores[2]) / $sum,
], 'softmax');

// Refused calls change nothing.
throws(OutOfBoundsException::class, fn () => $cache->append(Tensor::zeros([3, 2]), Tensor::zeros([3, 2])), 'full');
throws(InvalidArgumentException::class, fn () => $cache->append(Tensor::zeros([3]), Tensor::zeros([3])), 'other width');
throws(InvalidArgumentException::class, fn () => $cache->append(Tensor::zeros([2]), Tensor::zeros([2, 2])), 'rows differ');
throws(InvalidArgumentException::class, fn () => $cache->attend(Tensor::zeros([2, 2])), 'two queries');
throws(OutOfBoundsException::class, fn () => $cache->row(3), 'no such token');
throws(OutOfBoundsException::class, fn () => $cache->row(-1), 'no such token');
throws(TypeError::class, fn () => $cache->append([1, 2], [3, 4]), 'arrays are no tensors');
throws(InvalidArgumentException::class, fn () => Tensor::from(['a', 'b']), 'strings are no numbers');
throws(InvalidArgumentException::class, fn () => Tensor::from([[1, 2], [3]]), 'ragged rows');
throws(InvalidArgumentException::class, fn () => Tensor::zeros([0]), 'no elements');
throws(InvalidArgumentException::class, fn () => Tensor::zeros([1 << 30, 1 << 30]), 'absurd tensor');
throws(InvalidArgumentException::class, fn () => Tensor::zeros([1 << 31]), 'more elements than FFI counts');
throws(InvalidArgumentException::class, fn () => Tensor::zeros([(1 << 22) + 1, 1024]), 'more elements than FFI counts, in rows');
check($cache->len() === 3, 'nothing changed');

// A clone of a tensor is another tensor.
$tensor = Tensor::from([1, 2]);
$copy = clone $tensor;
$copy->data()[0] = 9;
check($tensor->toArray() === [1.0, 2.0] && $copy->toArray() === [9.0, 2.0], 'a clone has elements of its own');

// Reset empties and keeps the memory.
$cache->reset();
check($cache->len() === 0, 'reset');
near($cache->attend(Tensor::from([1, 1]))->toArray(), [0, 0], 'zeros without tokens');
$cache->append(Tensor::from([1, 1]), Tensor::from([2, 2]));
check($cache->len() === 1, 'usable after reset');

// Use after release and before construction.
$cache->release();
$cache->release();
foreach ([
    'len' => fn () => $cache->len(),
    'reset' => fn () => $cache->reset(),
    'append' => fn () => $cache->append(Tensor::zeros([2]), Tensor::zeros([2])),
    'attend' => fn () => $cache->attend(Tensor::zeros([2])),
    'row' => fn () => $cache->row(0),
] as $name => $call) {
    throws(LogicException::class, $call, "$name after release");
}
$cache->__destruct();
throws(LogicException::class, fn () => $cache->len(), 'len after __destruct');
$raw = (new ReflectionClass(KVCache::class))->newInstanceWithoutConstructor();
throws(LogicException::class, fn () => $raw->len(), 'len before construction');
throws(LogicException::class, fn () => $raw->append(Tensor::zeros([2]), Tensor::zeros([2])), 'append before construction');
unset($raw);
$twice = new KVCache(1, 1);
throws(LogicException::class, fn () => $twice->__construct(1, 1), 'constructed twice');
throws(LogicException::class, fn () => serialize($twice), 'serialized');
throws(Error::class, fn () => clone $twice, 'cloned');

// What cannot be had.
throws(InvalidArgumentException::class, fn () => new KVCache(0, 4), 'no capacity');
throws(InvalidArgumentException::class, fn () => new KVCache(4, -1), 'negative width');
throws(RuntimeException::class, fn () => new KVCache(PHP_INT_MAX, 1024), 'absurd capacity');
throws(RuntimeException::class, fn () => new KVCache(4, PHP_INT_MAX), 'absurd width');

// Many caches come and go without a leak of handles or memory.
for ($i = 0; $i < 2000; ++$i) {
    $each = new KVCache(100000, 64);
    $each->append(Tensor::zeros([64]), Tensor::zeros([64]));
    unset($each);
}

check((new ReflectionClass(KVCache::class))->isFinal(), 'the class is final');
if ($failures > 0) {
    exit(1);
}
echo "KVCache holds\n";
