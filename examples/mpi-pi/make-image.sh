#!/bin/sh
# make-image.sh FILE [MIRROR]: an image with Open MPI and mpi4py, as a `docker save` archive.
# Needs Debian's mmdebstrap; as a plain user also uidmap. There is no ssh in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
rootfs=$(mktemp --suffix=.tar)
trap 'rm -f "$rootfs"' EXIT
mmdebstrap --quiet --variant=essential --include=openmpi-bin,python3-mpi4py \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' \
    --dpkgopt='path-exclude=/usr/lib/gcc/*' \
    --dpkgopt='path-exclude=/usr/include/*' \
    --customize-hook='rm -f "$1/usr/bin/ssh"' \
    bookworm "$rootfs" ${2:+"$2"}
python3 "$here/../../tools/image_from_rootfs.py" "$rootfs" "$out" --tag mpi:latest
