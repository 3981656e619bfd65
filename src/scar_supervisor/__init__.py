"""The supervisor: runs inside the function's container. Standard library only."""
