#!/bin/sh
# make-genome.sh SEQUENCES: a FASTA file of random sequences, the same every time, on stdout.
awk -v count="${1:-200}" 'BEGIN {
    srand(42)
    for (i = 1; i <= count; i++) {
        printf ">seq%04d\n", i
        bias = 0.3 + 0.4 * rand()
        for (row = 0; row < 20; row++) {
            line = ""
            for (col = 0; col < 60; col++)
                line = line substr(rand() < bias ? "GC" : "AT", 1 + (rand() < 0.5), 1)
            print line
        }
    }
}'
