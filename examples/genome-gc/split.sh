#!/bin/sh
# Cuts a FASTA file into parts of $RECORDS_PER_PART sequences each.
set -eu
name=$(basename "$INPUT_FILE_PATH" .fasta)
awk -v size="$RECORDS_PER_PART" -v stem="$TMP_OUTPUT_DIR/$name" '
    /^>/ && records++ % size == 0 { close(part); part = sprintf("%s-%03d.fasta", stem, ++parts) }
    { print > part }
    END { printf "%d sequences in %d parts\n", records, parts }
' "$INPUT_FILE_PATH"
