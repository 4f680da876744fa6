#!/usr/bin/env bash
# Prometheus and promtool for the tests, out of Debian's package, into FOLDER: nothing is installed and nothing started.
# Where they are on the PATH already, or there is no apt, it does nothing: the tests that need them say so and skip.
set -euo pipefail
folder=${1:?usage: install.sh FOLDER}
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then exit 0; fi
if [ -x "$folder/usr/bin/prometheus" ]; then exit 0; fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
  echo "no apt here: the tests that need Prometheus will be skipped"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
quiet=(-qq -o APT::Sandbox::User=root -o Acquire::http::Timeout=60)
if ! apt-get "${quiet[@]}" download prometheus 2>/dev/null; then
  apt-get "${quiet[@]}" update >/dev/null 2>&1 || true
  if ! apt-get "${quiet[@]}" download prometheus; then
    echo "apt has no prometheus: the tests that need it will be skipped"
    exit 0
  fi
fi
cd "$OLDPWD"
mkdir -p "$folder"
dpkg -x "$scratch"/prometheus_*.deb "$folder"
