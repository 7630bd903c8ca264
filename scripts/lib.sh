# What scripts share: messages, stages with their times, Debian packages, quiet builds. Sourced by bash, never run.
#
# After sourcing, the current directory is the root of the repository and standard input is closed.

set -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
exec </dev/null
mkdir -p build/logs
jobs=$(nproc 2>/dev/null || echo 2)

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' red='' green='' plain=''; fi
say() { printf '%s==> %s%s\n' "$bold" "$*" "$plain"; }
fail() {
  printf '%serror: %s%s\n' "$red" "$*" "$plain" >&2
  exit 1
}

# usage CODE: prints the comment at the head of the script that runs, up to where it sources this file, and ends it.
usage() {
  sed -n '2,/^source/{/^#/s/^# \{0,1\}//p}' "scripts/${0##*/}"
  exit "$1"
}

# need_packages GROUP...: installs what is missing of these groups of scripts/packages.
need_packages() {
  local groups missing=() package sudo=()
  groups=$(printf '%s|' "$@")
  if ! command -v dpkg-query >/dev/null; then
    say "not a Debian system: assuming that the packages of scripts/packages ($*) are here under other names"
    return
  fi
  while read -r package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done < <(awk -v groups="^(${groups%|})\$" '$1 ~ groups { print $2 }' scripts/packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "not root and no sudo; as root run: apt-get install ${missing[*]}"
    sudo=(sudo)
  fi
  apt_get "${sudo[@]}" update || say "the package lists could not be renewed; trying those that are here"
  apt_get "${sudo[@]}" install -y --no-install-recommends "${missing[@]}" ||
    fail "apt-get could not install: ${missing[*]} (see build/logs/apt.log)"
}

# apt_get [sudo] ARGS...: one apt-get command, its words in build/logs/apt.log, only progress on the screen.
apt_get() {
  local prefix=()
  if [ "$1" = sudo ]; then prefix=(sudo) && shift; fi
  "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@" 2>&1 | tee -a build/logs/apt.log |
    awk '/^(Setting up|E:|W:)/ { print "    " $0; fflush() }'
}

# configure PRESET [ARGS...]: cmake --preset with ccache where it is installed; speaks only when it fails.
configure() {
  local preset=$1 launcher=()
  shift
  if command -v ccache >/dev/null; then
    launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  fi
  cmake --preset "$preset" "${launcher[@]}" "$@" >"build/logs/configure-$preset.log" 2>&1 ||
    { cat "build/logs/configure-$preset.log"; return 1; }
}

# build PRESET [ARGS...]: cmake --build --preset; on a terminal ninja's own progress line, else a line every 15 seconds.
build() {
  local preset=$1
  shift
  if [ -t 1 ]; then
    NINJA_STATUS='    [%f/%t %es] ' cmake --build --preset "$preset" -j "$jobs" "$@"
  else
    NINJA_STATUS='[%f/%t] ' cmake --build --preset "$preset" -j "$jobs" "$@" 2>&1 | every_15_seconds
  fi
}

# every_15_seconds: passes on the last of each 15 seconds of ninja's steps, and all of everything else.
every_15_seconds() {
  local line step='' next=$((SECONDS + 15))
  while IFS= read -r line; do
    case $line in
      '['[0-9]*/[0-9]*']'*) step="    $line" ;;
      'ninja: no work'* | 'ninja: Entering'*) continue ;;
      *) printf '%s\n' "$line" ;;
    esac
    if [ -n "$step" ] && [ $SECONDS -ge $next ]; then
      printf '%s\n' "$step" && step='' && next=$((SECONDS + 15))
    fi
  done
  [ -z "$step" ] || printf '%s\n' "$step"
}
