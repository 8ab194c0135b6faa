"""The receiver: HTTPS in, decide, redact, journal, deliver. `receive.py` puts it together; only `cli` calls it.

The way of a POST (everything up to the answer happens before the API server is told that it need not keep the events):

    server.py      an EventList over mTLS, within bounds of size and time; the certificate names the API server
    deciding.py    the program made ready to run: of each event, what reaches which sink at which level
    cutting.py     an event cut to that: bodies, managedFields, redaction; what is not touched stays as it was sent
    journal.py     per sink an append-only log of segments; one sync for all POSTs that wait (group commit), then 200
    quarantine.py  what could not be read, and what a sink refused for good: kept, counted, retrievable

The way out, a worker per sink, none of which waits for another:

    delivery.py    from the cursor: a batch by count, bytes or age, repeated until every event is taken or refused
    formats.py     an event as the sink wants it: audit, ECS, OCSF; bodies as objects or strings
    sinks/         one module per sink type

Beside it: `programs.py` (the program in force: from the mounted file and pushed by the operator), `certificates.py`
(TLS, swapped live), `metrics.py`, `status.py` (what the operator makes conditions of).

Memory is bounded everywhere, and every bound says its reason beside its number. Nothing here imports the controller.
"""
