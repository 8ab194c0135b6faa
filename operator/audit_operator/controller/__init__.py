"""The live operator: watches with kopf and makes the cluster what `render` says, one pass over everything.

Called by the command line only. Decisions are render's; here is what talks to the cluster, and when.
"""
