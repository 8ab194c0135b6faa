"""`audit-operator demo`: the whole way of an event on one machine, with a receiver that is killed in the middle.

`command` is what the command line calls; `run` is what happens in which order, with the API servers of `api_servers`
and the processes of `laptop`. `traffic` and `findings` are pure: what is sent, and whether it arrived.
"""
