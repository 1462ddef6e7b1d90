#!/usr/bin/env bash
# Sees to it that there is a Chromium for the browser tests: installs Debian's where it may, else says how to get one.
# usage: dev/get_chromium.sh      CHROMIUM=/path/to/chromium dev/get_chromium.sh
set -euo pipefail

for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then exit 0; fi
done
if [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null; then
    echo "Installing Chromium with apt-get; this takes a minute or two."
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core > /dev/null
    exit 0
fi
echo "The browser tests need Chromium, and there is none on the PATH. On Debian and Ubuntu, as root:" >&2
echo "  apt-get install chromium" >&2
echo "or name one that is elsewhere: CHROMIUM=/path/to/chromium make test-browser" >&2
exit 2
