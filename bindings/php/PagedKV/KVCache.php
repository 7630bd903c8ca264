<?php
// KVCache: a key-value cache of one attention head for PHP, over libpagedkv by FFI.

declare(strict_types=1);

namespace PagedKV;

use FFI;
use InvalidArgumentException;
use LogicException;
use OutOfBoundsException;
use RuntimeException;

require_once __DIR__ . '/Tensor.php';

/**
 * Rows of K and V side by side in memory that the library owns; a token is one row of each.
 *
 * Exceptions: RuntimeException when memory or the library cannot be had, InvalidArgumentException for a tensor of another
 * shape or type, OutOfBoundsException when the cache is full, LogicException on use after release or before construction.
 * A call that throws has changed nothing.
 */
final class KVCache
{
    private const OK = 0;

    /** The library, loaded once a process. */
    private static ?FFI $library = null;

    /** Handle of the cache; null before construction and after release. */
    private ?FFI\CData $cache = null;
    private int $cap = 0;
    private int $headDim = 0;

    /** Room for $cap tokens of $headDim floats each for K and V. Memory comes with the tokens. */
    public function __construct(int $cap, int $headDim)
    {
        if ($this->cache !== null) {
            throw new LogicException('KVCache is constructed already');
        }
        if ($cap < 1 || $headDim < 1) {
            throw new InvalidArgumentException('cap and headDim must be at least 1');
        }
        $cache = self::library()->kvcache_create($cap, $headDim);
        if ($cache === null || FFI::isNull($cache)) {
            throw new RuntimeException('KVCache cannot be had: ' . self::lastError());
        }
        $this->cache = $cache;
        $this->cap = $cap;
        $this->headDim = $headDim;
    }

    public function __destruct()
    {
        $this->release();
    }

    /** Gives the memory back. Harmless twice. */
    public function release(): void
    {
        if ($this->cache !== null) {
            self::library()->kvcache_free($this->cache);
            $this->cache = null;
        }
    }

    /** Appends token rows in order; k and v have the shape [headDim] or [rows, headDim]. */
    public function append(Tensor $k, Tensor $v): void
    {
        $cache = $this->handle();
        $rows = $this->rowsOf($k, 'k');
        if ($this->rowsOf($v, 'v') !== $rows) {
            throw new InvalidArgumentException('k and v have different numbers of rows');
        }
        if ($rows > $this->cap - $this->len()) {
            throw new OutOfBoundsException("$rows more tokens do not fit into a cache of {$this->cap}");
        }
        $this->check(self::library()->kvcache_append($cache, $k->data(), $v->data(), $rows));
    }

    /** Attention of one query of shape [headDim] over all tokens; zeros if there are none. */
    public function attend(Tensor $q): Tensor
    {
        $cache = $this->handle();
        if ($this->rowsOf($q, 'q') !== 1) {
            throw new InvalidArgumentException('q must be one row');
        }
        $out = Tensor::zeros([$this->headDim]);
        $this->check(self::library()->kvcache_attend($cache, $q->data(), $out->data()));
        return $out;
    }

    /** Number of tokens held. */
    public function len(): int
    {
        return self::library()->kvcache_len($this->handle());
    }

    /** Empties the cache and keeps its memory. */
    public function reset(): void
    {
        $this->check(self::library()->kvcache_reset($this->handle()));
    }

    /** K and V of one token as the library holds them: two arrays of headDim floats. */
    public function row(int $token): array
    {
        $cache = $this->handle();
        if ($token < 0 || $token >= $this->len()) {
            throw new OutOfBoundsException("there is no token $token");
        }
        $rows = self::library()->kvcache_rows($cache);
        $kv = [[], []];
        for ($i = 0; $i < 2 * $this->headDim; ++$i) {
            $kv[intdiv($i, $this->headDim)][] = $rows[$token * 2 * $this->headDim + $i];
        }
        return $kv;
    }

    private function __clone()
    {
    }

    public function __serialize(): array
    {
        throw new LogicException('a KVCache cannot be serialized');
    }

    private function handle(): FFI\CData
    {
        if ($this->cache === null) {
            throw new LogicException('KVCache is used after release or before construction');
        }
        return $this->cache;
    }

    private function rowsOf(Tensor $tensor, string $name): int
    {
        $shape = $tensor->shape();
        $isRow = count($shape) === 1 && $shape[0] === $this->headDim;
        $isRows = count($shape) === 2 && $shape[0] >= 1 && $shape[1] === $this->headDim;
        if (!$isRow && !$isRows) {
            $text = implode(', ', $shape);
            throw new InvalidArgumentException("$name has the shape [$text]; [{$this->headDim}] or [rows, {$this->headDim}] is needed");
        }
        return $isRow ? 1 : $shape[0];
    }

    private function check(int $status): void
    {
        if ($status !== self::OK) {
            throw new RuntimeException(self::library()->pagedkv_status_name($status) . ': ' . self::lastError());
        }
    }

    private static function lastError(): string
    {
        return self::library()->pagedkv_last_error();
    }

    /** Loads libpagedkv: the file that PAGEDKV_LIBRARY names, or the one that the system finds. */
    private static function library(): FFI
    {
        if (self::$library === null) {
            if (!extension_loaded('ffi')) {
                throw new RuntimeException('the FFI extension of PHP is not loaded');
            }
            $file = getenv('PAGEDKV_LIBRARY') ?: 'libpagedkv.so.0.1';
            try {
                self::$library = FFI::cdef(file_get_contents(__DIR__ . '/kvcache.h'), $file);
            } catch (FFI\Exception $error) {
                throw new RuntimeException("libpagedkv cannot be loaded: {$error->getMessage()}", 0, $error);
            }
        }
        return self::$library;
    }
}
