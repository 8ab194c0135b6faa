"""What an audit policy means: evaluate, lint, union, explain, diff, presets, redaction, requests out of events.

Pure: no I/O, no clock. Called by render, the command line, the operator and the receiver: one policy, one meaning.
"""
