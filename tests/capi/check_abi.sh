#!/bin/sh
# Compares the C functions with the stored baseline: check_abi.sh ABIDIFF ABIDW BASELINE LIBRARY HEADERS [--store].
# New functions pass; every other change fails. A struct with struct_size may grow at its end: look at the report, and
# store the baseline anew. Any other change needs a new soname.
set -eu
abidiff=$1 abidw=$2 baseline=$3 library=$4 headers=$5
if [ "${6:-}" = --store ]; then
  exec "$abidw" --headers-dir "$headers" --drop-private-types --drop-undefined-syms --exported-interfaces-only \
    --no-corpus-path --no-comp-dir-path --no-show-locs --out-file "$baseline" "$library"
fi
if ! "$abidiff" --no-show-locs --no-added-syms "$baseline" "$library"; then
  echo "the C interface differs from its baseline $baseline; see $0" >&2
  exit 1
fi
echo "the C interface is that of its baseline"
