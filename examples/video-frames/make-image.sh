#!/bin/sh
# make-image.sh FILE [MIRROR]: an image with ffmpeg and ImageMagick, as a `docker save` archive.
# Needs Debian's mmdebstrap; as a plain user also uidmap. Any other way to an image is as good.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
rootfs=$(mktemp --suffix=.tar)
trap 'rm -f "$rootfs"' EXIT
mmdebstrap --quiet --variant=essential --include=ffmpeg,imagemagick \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' \
    --dpkgopt='path-exclude=/usr/lib/*/dri/*' \
    bookworm "$rootfs" ${2:+"$2"}
python3 "$here/../../tools/image_from_rootfs.py" "$rootfs" "$out" --tag video-tools:latest
