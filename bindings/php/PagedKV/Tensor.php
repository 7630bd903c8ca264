<?php
// Tensor: a dense array of 32-bit floats in memory that C can read.

declare(strict_types=1);

namespace PagedKV;

use FFI;
use InvalidArgumentException;

/** Row-major, contiguous, f32. */
final class Tensor
{
    /** PHP's FFI keeps the length of an array in 32 bits and drops the rest. */
    private const MAX_ELEMENTS = (1 << 31) - 1;

    /** For the types of arrays: FFI::new as a static call is deprecated from PHP 8.3 on. */
    private static ?FFI $ffi = null;

    /** @param list<int> $shape */
    private function __construct(private array $shape, private FFI\CData $elements)
    {
    }

    /** @param list<int> $shape each at least 1 */
    public static function zeros(array $shape): self
    {
        $count = 1;
        foreach ($shape as $size) {
            if (!is_int($size) || $size < 1 || $size > intdiv(self::MAX_ELEMENTS, $count)) {
                throw new InvalidArgumentException('every size of a shape must be an integer of at least 1, and their product less than 2^31');
            }
            $count *= $size;
        }
        if ($shape === []) {
            throw new InvalidArgumentException('a shape needs at least one size');
        }
        self::$ffi ??= FFI::cdef();
        return new self(array_values($shape), self::$ffi->new("float[$count]"));
    }

    /** A clone has elements of its own. */
    public function __clone()
    {
        $this->elements = clone $this->elements;
    }

    /** @param list<float|int>|list<list<float|int>> $values one row, or rows of equal length */
    public static function from(array $values): self
    {
        $rows = is_array($values[0] ?? null) ? $values : [$values];
        $width = count($rows[0]);
        $tensor = self::zeros(is_array($values[0] ?? null) ? [count($rows), $width] : [$width]);
        $i = 0;
        foreach ($rows as $row) {
            if (!is_array($row) || count($row) !== $width) {
                throw new InvalidArgumentException('rows must be arrays of equal length');
            }
            foreach ($row as $value) {
                if (!is_int($value) && !is_float($value)) {
                    throw new InvalidArgumentException('elements must be numbers');
                }
                $tensor->elements[$i++] = $value;
            }
        }
        return $tensor;
    }

    /** @return list<int> */
    public function shape(): array
    {
        return $this->shape;
    }

    /** @return list<float> all elements in row-major order */
    public function toArray(): array
    {
        $values = [];
        foreach ($this->elements as $value) {
            $values[] = $value;
        }
        return $values;
    }

    /** The elements as C sees them: float[count]. */
    public function data(): FFI\CData
    {
        return $this->elements;
    }
}
