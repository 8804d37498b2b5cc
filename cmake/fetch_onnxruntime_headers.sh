#!/bin/sh
# Unpacks libonnxruntime-dev into the folder $1/x, as any user: apt reads the mirror that the machine itself uses, with
# lists and caches of its own. The first suite that has the package serves: its headers fit every runtime from 1.18 on.
set -eu
folder=$1
command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || {
  echo "no apt-get here to fetch libonnxruntime-dev with"
  exit 1
}
. /etc/os-release
case "${ID:-}" in
  debian) suites="trixie forky sid" ;;
  ubuntu) suites="resolute questing plucky" ;;
  *) echo "libonnxruntime-dev is fetched on Debian and Ubuntu only, this is ${ID:-unknown}"; exit 1 ;;
esac
# The mirror of this machine's first source, in either format of source lists.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null |
  sed -n -e 's/^URIs: *\([^ ]*\).*/\1/p' -e 's/^deb  *\(\[[^]]*\]  *\)\{0,1\}\([^ ]*\) .*/\2/p' | head -n 1)
[ -n "$mirror" ] || { echo "no package source in /etc/apt to take libonnxruntime-dev from"; exit 1; }
components=main
[ "$ID" = ubuntu ] && components="main universe"
keyring=/usr/share/keyrings/$ID-archive-keyring.gpg

mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/parts"
cd "$folder"
for suite in $suites; do
  echo "deb [signed-by=$keyring] $mirror $suite $components" > parts/clipsight.list
  apt() {
    apt-get -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$folder/parts" -o APT::Sandbox::User="" \
      -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder/cache" -o Acquire::Languages=none \
      -o Acquire::Retries=2 -o Acquire::http::Timeout=20 "$@"
  }
  if apt update && apt download libonnxruntime-dev; then
    rm -rf x
    dpkg-deb -x libonnxruntime-dev_*.deb x
    rm -rf lists cache parts
    exit 0
  fi
done
exit 1
