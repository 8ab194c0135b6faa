"""kafka: one message per event, by an idempotent producer; all in-sync replicas have acknowledged what is taken.

The library retries within a delivery, in order and without duplicates, as long as the producer lives. What a delivery
leaves open comes again from the journal; the header ``audit-operator-id`` tells such a message.
"""

import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from audit_operator.receiver.formats import Formatter, formatter, without_bodies
from audit_operator.receiver.reach import Reach
from audit_operator.receiver.sinks import (
    TAKEN,
    Batch,
    Item,
    MisconfiguredError,
    Refusal,
    Result,
    SecretFile,
    Settings,
    SinkError,
    Surroundings,
    TooLargeError,
    UnauthorizedError,
    UnknownSinkError,
    UnreachableError,
    convert,
    nanoseconds,
    secret,
    settings,
    value_of,
)
from audit_operator.receiver.sinks.web import Tls, checked
from audit_operator.receiver.threads import OwnThread
from audit_operator.render.program import SinkProgram


class _Sasl(Settings, frozen=True):
    mechanism: str
    username: str
    password: SecretFile


class _Kafka(Settings, frozen=True):
    brokers: tuple[str, ...]
    topic: str
    transport: Literal["TLS", "Plaintext"]
    client_id: str = msgspec.field(name="clientID")
    max_message_bytes: int
    compression: str
    key: str | None = None
    sasl: _Sasl | None = None


def make(program: SinkProgram, surroundings: Surroundings) -> "Kafka":
    """See `Sink`."""
    given = settings(program, _Kafka)
    tls = convert(program, program.tls or {}, Tls)
    name = f"sink {program.namespace}/{program.name} (kafka)"
    if tls.server_name is not None:
        raise UnknownSinkError(f"{name}: tls.serverName cannot be used: each broker's certificate must carry its name")
    if tls.min_version == "TLS13":
        raise UnknownSinkError(f"{name}: tls.minVersion TLS13 cannot be used: the library takes what brokers offer")
    cluster = _Cluster(given, tls, surroundings.reach, program.timeout)
    return Kafka(given, cluster, formatter(program, surroundings.cluster))


class Kafka:
    """One producer for one topic, in a thread: its library calls back where it is polled."""

    def __init__(self, given: _Kafka, cluster: "_Cluster", formatted: Formatter) -> None:
        self._given = given
        self._cluster = cluster
        self._formatted = formatted
        self._thread = OwnThread(f"kafka {given.topic}")

    async def open(self) -> None:
        """Nothing to do: the first delivery connects."""

    async def deliver(self, batch: Batch) -> Result:
        """Messages, and their acknowledgements. Raises SinkError."""
        return await self._thread.run(partial(self._deliver, batch))

    async def close(self) -> None:
        """Let go of the producer."""
        await self._thread.run(self._cluster.forget)
        self._thread.stop()

    def _deliver(self, batch: Batch) -> Result:
        messages: dict[int, tuple[bytes, str | None, str, int]] = {}
        refused = []
        for at, (item, name) in enumerate(zip(batch.items, batch.ids(), strict=True)):
            value = self._value(item)
            if value is None:
                limit = self._given.max_message_bytes
                refused.append(
                    Refusal(at, f"is larger than maxMessageBytes ({limit}) even without bodies", certain=True)
                )
                continue
            key = None if self._given.key is None else value_of(item.event, self._given.key) or None
            messages[at] = (value, key, name, nanoseconds(item.timestamp) // 10**6)
        failed = self._cluster.send(messages) if messages else {}
        if not failed:
            return Result(refused=refused) if refused else TAKEN
        errors = list(failed.values())
        too_large = [at for at, error in failed.items() if isinstance(error, TooLargeError)]
        if len(too_large) == len(batch.items):
            raise errors[0]
        # The broker refuses messages together: some of them may be small enough alone.
        if len(batch.items) == 1:
            raise errors[0]
        if len(failed) == len(messages) and not too_large and not refused:
            raise errors[0]
        return Result(retry=sorted(failed), refused=refused, reason=str(errors[0]))

    def _value(self, item: Item) -> bytes | None:
        limit = self._given.max_message_bytes - _OVERHEAD
        if len(item.data) <= limit:
            return item.data
        smaller = self._formatted(without_bodies(item.audit))
        return smaller if len(smaller) <= limit else None


_OVERHEAD: Final = 512
"""Bytes of a message that are not its value: the library's framing, headers, a key."""

_UNAUTHORIZED: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.ILLEGAL_SASL_STATE,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)
_MISCONFIGURED: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
    }
)
_UNEXPLAINED: Final = frozenset({KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


def _meaning(error: KafkaError, before: KafkaError | None) -> SinkError:
    """What an error is for us; ``before``: what the library last said of the connection, which explains a timeout."""
    told = before if error.code() in _UNEXPLAINED and before is not None else error
    text = f"{told.name()}: {told.str()}"[:300]
    code = told.code()
    if code in _UNAUTHORIZED:
        return UnauthorizedError(text)
    if code in _MISCONFIGURED:
        return MisconfiguredError(text)
    if code in _TOO_LARGE:
        return TooLargeError(text)
    return UnreachableError(text)


class _Cluster:
    """The producer; blocking. It is made anew when a credential has changed, or after an error it cannot mend."""

    def __init__(self, given: _Kafka, tls: Tls, reach: Reach, timeout: float) -> None:
        self._given = given
        self._tls = tls
        self._reach = reach
        self._timeout = timeout
        self._producer: Producer | None = None
        self._made_of: Mapping[str, Any] = {}
        self._said: KafkaError | None = None

    def send(self, messages: Mapping[int, tuple[bytes, str | None, str, int]]) -> dict[int, SinkError]:
        """Value, key, identity and time (ms) of messages; what became of those that are not acknowledged.

        Raises SinkError.
        """
        deadline = time.monotonic() + 0.95 * self._timeout
        producer = self._current()
        outcome: dict[int, KafkaError | None] = {}

        def answered(at: int, error: KafkaError | None, _message: Message) -> None:
            outcome[at] = error

        failed: dict[int, SinkError] = {}
        for at, (value, key, name, milliseconds) in messages.items():
            while True:
                try:
                    producer.produce(
                        self._given.topic,
                        value,
                        key,
                        on_delivery=partial(answered, at),
                        timestamp=milliseconds,
                        headers=[("audit-operator-id", name.encode())],
                    )
                    break
                except BufferError:  # the library's queue is full
                    producer.poll(0.05)
                    if time.monotonic() > deadline:
                        failed[at] = UnreachableError("the library's queue stays full")
                        break
                except KafkaException as error:
                    failed[at] = _meaning(error.args[0], self._said)
                    break
        left = producer.flush(max(0.0, deadline - time.monotonic()))
        if left:
            # What is still in its queue must not arrive behind what is delivered next.
            self.forget()
        for at in messages:
            answer = outcome.get(at)
            if answer is not None:
                failed[at] = _meaning(answer, self._said)
                if answer.fatal() or answer.code() == KafkaError._FATAL:
                    self.forget()
            elif at not in outcome and at not in failed:
                failed[at] = UnreachableError("no acknowledgement in time")
        if not failed:
            self._said = None
        return failed

    def forget(self) -> None:
        """Let go of the producer and of what is in its queue."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(0.1)

    def _current(self) -> Producer:
        wanted = self._config()
        if self._producer is None or wanted != self._made_of:
            self.forget()
            self._said = None
            for broker in self._given.brokers:
                self._look(broker)
            try:
                producer = Producer({**wanted, "error_cb": self._hear, "log_level": 0})
            except KafkaException as error:
                raise UnauthorizedError(f"the credentials cannot be used: {error.args[0].name()}") from None
            self._producer, self._made_of = producer, wanted
            if self._reach.limited:
                self._look_at_advertised(producer)
        return self._producer

    def _hear(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self._said is None:
            self._said = error

    def _look(self, broker: str) -> None:
        """Raises SinkError for a broker that no connection may be made to."""
        host, _, port = broker.rpartition(":")
        if not self._reach.limited:
            return
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except socket.gaierror:
            raise UnreachableError(f"the name {host} cannot be resolved") from None
        for *_, address in found:
            checked(str(address[0]), self._reach)

    def _look_at_advertised(self, producer: Producer) -> None:
        """Brokers name further ones, to which the library connects by itself: no message before they are looked at."""
        try:
            brokers = producer.list_topics(self._given.topic, timeout=self._timeout / 2).brokers.values()
            for broker in brokers:
                self._look(f"{broker.host}:{broker.port}")
        except KafkaException as error:
            self.forget()
            raise _meaning(error.args[0], self._said) from None
        except SinkError:
            self.forget()
            raise

    def _config(self) -> dict[str, Any]:
        """The library's configuration with the credentials of the moment. Raises UnauthorizedError."""
        given, sasl = self._given, self._given.sasl
        encrypted = given.transport == "TLS"
        config: dict[str, Any] = {
            "bootstrap.servers": ",".join(given.brokers),
            "client.id": given.client_id,
            "enable.idempotence": True,  # implies acks=all and order within a partition
            "acks": "all",
            "compression.type": given.compression.lower(),
            "message.max.bytes": given.max_message_bytes,
            "linger.ms": 5,
            "message.timeout.ms": max(1000, int(self._timeout * 900)),
            "security.protocol": f"{'SASL_' if sasl else ''}{'SSL' if encrypted else 'PLAINTEXT'}",
        }
        if sasl is not None:
            config |= {
                "sasl.mechanisms": sasl.mechanism,
                "sasl.username": sasl.username,
                "sasl.password": secret(sasl.password),
            }
        if encrypted:
            config["ssl.endpoint.identification.algorithm"] = "https"
            if (bundle := self._tls.ca()) is not None:
                config["ssl.ca.pem"] = bundle
            if (own := self._tls.client_certificate) is not None:
                config["ssl.certificate.pem"] = secret(SecretFile(file=own.certificate_file))
                config["ssl.key.pem"] = secret(SecretFile(file=own.key_file))
        return config
