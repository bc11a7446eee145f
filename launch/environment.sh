# Sourced by demo.sh and test.sh: makes the virtual environment that they run in.
#
# prepare_environment ROLE installs requirements/ROLE.txt and the package itself
# into .venv of this checkout, unless that was done before with the same
# requirements and the same Python. PYTHON names the interpreter to use.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

# A second run loads what the first one compiled.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}

# Where modules are not kept compiled, each process compiles all of JAX anew.
unset PYTHONDONTWRITEBYTECODE

fail() {
  echo "$(basename "$0"): error: $*" >&2
  exit 1
}

prepare_environment() {
  local role=$1 python
  python=$(find_python "${PYTHON:-python3}")
  mkdir -p "$root/.cache"
  (
    # Two scripts that start together must not build one environment. (macOS has
    # no flock; there, start one after the other.)
    if command -v flock >/dev/null; then
      flock 9
    fi
    install_environment "$role" "$python"
  ) 9>"$root/.cache/environment.lock"
}

# Prints the interpreter behind $1; inside a virtual environment that is the one
# which the environment was made with, since .venv may itself be the active one.
find_python() {
  command -v "$1" >/dev/null ||
    fail "there is no '$1': install Python 3.11 or later, or set PYTHON to its path"
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$1" --version 2>&1) is too old: install Python 3.11 or later, or set PYTHON to its path"
  "$1" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)'
}

# What the environment depends on, as one line; the package is installed in place,
# so that its own code does not count.
fingerprint() {
  local role=$1 python=$2
  "$python" - "$root" "$role" <<'PYTHON'
import hashlib
import pathlib
import sys

root, role = pathlib.Path(sys.argv[1]), sys.argv[2]
names = ["setup.py", "requirements/demo.txt", f"requirements/{role}.txt"]
digest = hashlib.sha256(b"".join((root / name).read_bytes() for name in names))
print(sys.version.split()[0], root, digest.hexdigest())
PYTHON
}

install_environment() {
  local role=$1 python=$2 wanted
  local stamp=$venv/installed-$role begun=$venv/installing
  wanted=$(fingerprint "$role" "$python")
  if [[ ! -e $begun && -x $venv/bin/python && -e $stamp ]] &&
    [[ $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  # An installation that was cut short may have left half a package behind, which
  # pip would take for a whole one.
  if [[ -e $venv ]] && { [[ -e $begun ]] || ! is_usable "$python"; }; then
    echo "$(basename "$0"): making .venv anew" >&2
    rm -rf "$venv"
  fi
  echo "$(basename "$0"): installing requirements/$role.txt into .venv, once; this takes a minute or two" >&2
  if [[ ! -e $venv ]]; then
    "$python" -m venv "$venv" ||
      fail "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"
  fi
  touch "$begun"
  # --no-compile: Python compiles the few modules that are imported when they are,
  # which takes half the time of compiling all of them here.
  pip install --no-compile -r "$root/requirements/$role.txt"
  pip install --no-deps --no-build-isolation -e "$root"
  echo "$wanted" >"$stamp"
  rm "$begun"
}

# Is .venv a working environment of the same Python?
is_usable() {
  local version='import sys; print(sys.version)'
  "$venv/bin/python" -c 'import pip' 2>/dev/null &&
    [[ $("$venv/bin/python" -c "$version") == "$("$1" -c "$version")" ]]
}

pip() {
  "$venv/bin/python" -m pip "$1" -qq --disable-pip-version-check "${@:2}" ||
    fail "pip could not install the packages; is a package index within reach?"
}
