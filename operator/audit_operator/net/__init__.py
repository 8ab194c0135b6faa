"""What both the operator and receivers need to be reached: an HTTP server that strangers cannot exhaust, and a log that
they cannot fill. Nothing here knows what is served.
"""
