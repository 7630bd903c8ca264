#!/usr/bin/env bash
# Builds and runs the consumer project against this build: check_package.sh KIND BUILD SOURCE WORK [C++ compiler]
#
# KIND  shared, static   find_package of an installed copy, moved after it was installed
#       pkg-config       the installed copy without CMake, shared and static
#       subdirectory     the sources as a part of the consumer's own build
#       symbols          libpagedkv.so exports nothing but pagedkv
set -euo pipefail
kind=$1 build=$2 source=$3 work=$4/$1 cxx=${5:-c++}
consumer=$source/tests/package/consumer
rm -rf "$work"
mkdir -p "$work"

install_moved() {
  cmake --install "$build" --prefix "$work/first" >/dev/null
  mv "$work/first" "$work/prefix"
}

run_consumer() {
  cmake -S "$consumer" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$cxx" "$@"
  cmake --build "$work/build"
  "$work/build/consumer"
}

case $kind in
  shared | static)
    install_moved
    run_consumer -DCMAKE_PREFIX_PATH="$work/prefix" -DPAGEDKV_COMPONENTS="$kind"
    if [ "$kind" = static ]; then
      rm -rf "$work/build"
      consumer=${consumer}_c
      run_consumer -DCMAKE_PREFIX_PATH="$work/prefix"
    fi
    ;;
  subdirectory)
    run_consumer -DPAGEDKV_SOURCE_DIR="$source" -DCMAKE_CXX_COMPILER_LAUNCHER="$(command -v ccache || true)"
    ;;
  pkg-config)
    install_moved
    PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name pagedkv.pc)")
    export PKG_CONFIG_PATH
    libdir=$(pkg-config --variable=libdir pagedkv)
    read -ra cflags < <(pkg-config --cflags pagedkv)
    read -ra libs < <(pkg-config --libs pagedkv)
    "$cxx" -std=c++20 "${cflags[@]}" "$consumer/main.cc" "${libs[@]}" -o "$work/consumer-shared"
    LD_LIBRARY_PATH=$libdir "$work/consumer-shared"
    rm "$libdir"/libpagedkv.so*
    read -ra libs < <(pkg-config --static --libs pagedkv)
    "$cxx" -std=c++20 "${cflags[@]}" "$consumer/main.cc" "${libs[@]}" -o "$work/consumer-static"
    "$work/consumer-static"
    ;;
  symbols)
    install_moved
    library=$(find "$work/prefix" -name 'libpagedkv.so')
    readelf -d "$library" | grep -F 'SONAME'
    foreign=$(nm -D --defined-only --demangle "$library" | awk '{ $1 = $2 = ""; print }' |
      grep -vE '^ *((vtable|typeinfo|typeinfo name) for )?(pagedkv::|pagedkv_|kvcache_)' || true)
    private=$(nm -D --defined-only --demangle "$library" | grep -E '::(Impl|Control)::' || true)
    foreign+=$private
    [ -z "$foreign" ] || { echo "libpagedkv.so exports:" && echo "$foreign" && exit 1; }
    ;;
  *) echo "unknown kind $kind" && exit 2 ;;
esac
