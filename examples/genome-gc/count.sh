#!/bin/sh
# Writes the length and the GC content of each sequence of one part.
set -eu
name=$(basename "$INPUT_FILE_PATH" .fasta)
awk -v OFS='\t' '
    function report() { if (id != "") print id, total, sprintf("%.1f", total ? 100 * gc / total : 0) }
    BEGIN { print "sequence", "bases", "gc_percent" }
    /^>/ { report(); id = substr($1, 2); total = gc = 0; next }
    { total += length($0); gc += gsub(/[GCgc]/, "") }
    END { report() }
' "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/$name.tsv"
echo "$name: $(($(wc -l < "$TMP_OUTPUT_DIR/$name.tsv") - 1)) sequences measured"
