"""(resources, world) -> policy file, kubeconfig, flags, workloads, receiver program, statuses.

Pure and byte for byte deterministic.
Called by the command line (offline) and by the operator (live): both produce the same objects.
"""
