"""Images without a Docker daemon: references, the distribution protocol, derivation."""
