"""The custom resources as pydantic models: the only source of crds/*.yaml and of docs/reference.md.

Callable by every layer; imports none of them.
"""
