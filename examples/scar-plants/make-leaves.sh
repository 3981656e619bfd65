#!/bin/sh
# Makes up leaves: make-leaves.sh SEED LEAVES_PER_SPECIES. The species and their sizes are invented too.
awk -v seed="$1" -v each="$2" '
    function random() { seed = (seed * 16807) % 2147483647; return seed / 2147483647 }
    function around(mean, part,    i, sum) {
        for (i = 0; i < 12; i++) sum += random()
        return mean * (1 + part * (sum - 6))
    }
    NF {
        for (leaf = 0; leaf < each; leaf++)
            printf "%s,%.1f,%.1f,%.1f,%.2f,%.1f\n", $1, around($2, 0.17), around($3, 0.17), around($4, 0.2), \
                around($5, 0.09), around($6, 0.13)
    }
' <<SPECIES
alder 75 60 22 0.58 14
ash 62 24 4 0.45 21
aspen 48 50 45 0.40 9
beech 85 55 11 0.50 7
birch 52 38 17 0.32 18
chestnut 190 58 23 0.48 19
elm 98 62 5 0.52 27
hazel 92 84 13 0.56 24
hornbeam 80 45 12 0.47 35
lime 66 68 33 0.37 31
maple 120 140 95 0.44 5
oak 105 64 4 0.63 6
willow 88 17 8 0.41 42
SPECIES
