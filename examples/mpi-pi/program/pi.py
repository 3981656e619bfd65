"""π as the integral of 4/(1+x²) from 0 to 1, each rank adding up its share of the steps."""

import os
import socket
import sys

from mpi4py import MPI

world = MPI.COMM_WORLD
steps = int(sys.argv[1])
width = 1.0 / steps
share = sum(4.0 / (1.0 + ((i + 0.5) * width) ** 2) for i in range(world.rank, steps, world.size))
pi = world.allreduce(share * width)
hosts = world.gather(socket.gethostname())
if world.rank == 0:
    print(f"{world.size} ranks on {len(set(hosts))} hosts: pi is {pi:.10f}", flush=True)
    with open(os.path.join(os.environ["TMP_OUTPUT_DIR"], "pi.txt"), "w") as file:
        file.write(f"{pi:.10f}\n")
