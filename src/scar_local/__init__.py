"""The local cloud: AWS's APIs on loopback that really run functions and jobs on this machine."""
