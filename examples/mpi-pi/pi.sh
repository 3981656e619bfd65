#!/bin/sh
# On several nodes SCAR has told mpirun everything. On one machine it starts two ranks here.
set -e
steps=200000
if [ -f "$INPUT_FILE_PATH" ]; then steps=$(cat "$INPUT_FILE_PATH"); fi
if [ -z "$SCAR_NUM_NODES" ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_plm_rsh_agent=/bin/false # Open MPI insists on one, and does not use it here
    set -- --oversubscribe -np 2
fi
mpirun "$@" python3 "$EXTRA_PAYLOAD/pi.py" "$steps"
