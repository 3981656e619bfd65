#!/bin/sh
# Makes a small grey picture of one frame.
set -eu
name=$(basename "$INPUT_FILE_PATH" .png)
convert "$INPUT_FILE_PATH" -resize 80x60 -colorspace Gray "$TMP_OUTPUT_DIR/$name.jpg"
identify -format '%f is %wx%h\n' "$TMP_OUTPUT_DIR/$name.jpg"
