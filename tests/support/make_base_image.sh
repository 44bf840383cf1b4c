#!/bin/bash
# A stand-in for the official python:3.11-slim-bookworm, for machines that can't pull images: Debian's own packages, and
# the Python of the prefix $1. Writes the tar file $2. Run as root, with mmdebstrap.
set -euo pipefail
python=$1 out=$2
include=ca-certificates,netbase,tzdata,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8
include+=,libncursesw6,libuuid1,libnsl2,libtirpc3,libstdc++6
sources=()
[ -f /etc/apt/sources.list.d/debian.sources ] && sources=(/etc/apt/sources.list.d/debian.sources)
export python
mmdebstrap --quiet --format=tar --variant=minbase --include="$include" --aptopt='Acquire::Languages "none"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --customize-hook='mkdir -p "$1/usr/local"' \
  --customize-hook='tar -C "$python" -c --exclude=__pycache__ --exclude="lib/python3.11/test" \
      --exclude="lib/python3.11/config-*" --exclude="lib/python3.11/site-packages/*" bin/python3.11 bin/python3 \
      lib/python3.11 $(cd "$python" && ls lib/libpython3*.so* 2>/dev/null | sed "s/^/ /") | tar -C "$1/usr/local" -x' \
  --customize-hook='cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"' \
  --customize-hook='chroot "$1" ldconfig' \
  --customize-hook='chroot "$1" /usr/local/bin/python3.11 -m ensurepip --default-pip > /dev/null' \
  bookworm "$out" "${sources[@]}"
