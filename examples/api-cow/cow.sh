#!/bin/sh
# What the cow says: the words sent to it, or its greeting. `?eyes=xx` gives it other eyes.
words="Moo! I answer over HTTP."
[ -f "$INPUT_FILE_PATH" ] && words=$(cat "$INPUT_FILE_PATH")
eyes=$(printf '%.2s' "${eyes:-oo}")
line=$(printf '%s--' "$words" | tr -c '-' '-')
cat <<COW
 $line
< $words >
 $line
        \\   ^__^
         \\  ($eyes)\\_______
            (__)\\       )\\/\\
                ||----w |
                ||     ||
COW
