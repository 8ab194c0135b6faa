"""audit-operator: Kubernetes audit policies, backends and sinks as custom resources.

Layers, imports go down only: cli -> controller | receiver | node -> render -> policy -> resources.
"""

__version__ = "0.1.0"
