<?php
// Memory that cannot be had is a RuntimeException. Run with little address space: ulimit -v 4000000.

declare(strict_types=1);

require __DIR__ . '/../PagedKV/KVCache.php';

try {
    new PagedKV\KVCache((1 << 31) - 1, 1024);
} catch (RuntimeException $error) {
    echo "refused: {$error->getMessage()}\n";
    exit(0);
}
fwrite(STDERR, "16 TiB were had in 4 GB of address space\n");
exit(1);
