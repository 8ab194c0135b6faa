"""Real nodes: containerd, kubelet and kubeadm in namespaces of this machine, and what the tests do to them.

`cluster` starts a cluster and ends it; `node` is one machine of it, `namespaces` what it lives in, `images` what runs
on it. Nothing here knows anything of audit.
"""
