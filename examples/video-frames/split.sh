#!/bin/sh
# Cuts a video into one picture for each 1/$FRAMES_PER_SECOND seconds.
set -eu
name=$(basename "${INPUT_FILE_PATH%.*}")
ffmpeg -nostdin -loglevel error -i "$INPUT_FILE_PATH" -vf "fps=$FRAMES_PER_SECOND" "$TMP_OUTPUT_DIR/$name-%03d.png"
echo "$(ls "$TMP_OUTPUT_DIR" | wc -l) frames cut from $name"
