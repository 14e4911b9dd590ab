"""Every bound in one place. A bound that an operator may set is a field of `Limits` (config key `limits`)."""

from typing import Final

import msgspec

HEADERS_BYTES_MAX: Final = 32 * 1024
HEADERS_COUNT_MAX: Final = 100
JSON_DEPTH_MAX: Final = 64
LARGE_BYTES: Final = 64 * 1024  # of a body or a result: beyond it, it is read and inspected in turns with other work
NOTIFICATION_BYTES_MAX: Final = LARGE_BYTES  # of what a server says beside an answer: it is inspected at one go
QUESTION_BYTES_MAX: Final = 256 * 1024  # of what a server asks of a client
CONTAINERS_PER_BODY_MAX: Final = 200_000  # objects and lists in a large request
TOKEN_BYTES_MAX: Final = 16 * 1024
BUNDLE_BYTES_MAX: Final = 16 * 1024 * 1024
BUNDLE_CHUNK_BYTES: Final = 512 * 1024
TOOLS_PER_SERVER_MAX: Final = 2_000
LIST_PAGES_MAX: Final = 100
LIST_BYTES_MAX: Final = 32 * 1024 * 1024  # of one list of an upstream, all pages
LIST_PAGE_BYTES_MAX: Final = 8 * 1024 * 1024  # of one page that is shown; an entry has 256 KiB at most
LISTS_KEPT_BYTES_MAX: Final = 128 * 1024 * 1024  # rendered lists that an edge keeps
INSTRUCTIONS_CHARS_MAX: Final = 16_384  # where several servers' are merged
INSTRUCTIONS_PER_SERVER_CHARS_MAX: Final = 4_096
URI_CHARS_MAX: Final = 4_096
FINDINGS_PER_CALL_MAX: Final = 32
FINGERPRINTS_PER_CALL_MAX: Final = 256
STDIO_LINE_BYTES_MAX: Final = 8 * 1024 * 1024
POLICY_DEPTH_MAX: Final = 50  # brackets within brackets in a rule or a schema: Cedar's parser is recursive
POLICY_OPERATORS_MAX: Final = 2_000  # operators in one rule: they nest, too
POLICY_VALUES_MAX: Final = 10_000  # argument values handed to a rule in one decision
POLICY_ROUTES_MAX: Final = 8_192  # (principal, agent, tool) for which an edge keeps a prepared decision
APPROVAL_TTL_S: Final = 600  # for how long a question for approval stands, where its rule does not say
APPROVAL_TTL_S_MAX: Final = 7 * 86_400
APPROVALS_KEPT_MAX: Final = 50_000  # questions of a tenant and what became of them, until they expire
APPROVALS_PENDING_MAX: Final = 100  # questions of one person that wait at the same time
APPROVALS_PER_SUBJECT_MAX: Final = 2_000  # of one person, whatever became of them, until they expire
EVENT_BYTES_MAX: Final = 900 * 1024  # below Kafka's default message.max.bytes
LETTER_BYTES_MAX: Final = 1024 * 1024  # of a dead letter with key, headers and framing: what a topic and a client take
WRITER_CHARS_MAX: Final = 512  # of a chain's name: an edge's or a sealer's name and a UUID
RECORD_ID_CHARS_MAX: Final = 256  # of a record that a chain can hold
BATCH_MEMBERS_MAX: Final = 32  # JSON-RPC batches exist on revision 2025-03-26 only
TOKENS_CACHED_MAX: Final = 50_000
CLAIM_CHARS_MAX: Final = 512  # of a subject, login, agent, group or scope
GROUPS_PER_TOKEN_MAX: Final = 1_000
SCOPES_PER_TOKEN_MAX: Final = 256
ACTORS_PER_TOKEN_MAX: Final = 8
JWKS_BYTES_MAX: Final = 512 * 1024
JWKS_KEYS_MAX: Final = 256
SECRETS_BYTES_MAX: Final = 64 * 1024
SEALING_KEYS_MAX: Final = 16
MASTER_KEYS_MAX: Final = 16
TENANTS_CACHED_MAX: Final = 10_000  # whose derived keys are kept
SUBJECT_KEYS_CACHED_MAX: Final = 50_000  # with which an edge seals, in memory
ERASED_KEYS_NAMED_MAX: Final = 10_000  # in the event of one erasure; more are destroyed without being named
SEALED_CHARS_MAX: Final = 64 * 1024
SESSIONS_CACHED_MAX: Final = 50_000
SESSION_RECORD_BYTES_MAX: Final = 16 * 1024
BUS_MESSAGE_BYTES_MAX: Final = 5 * 1024 * 1024  # above a whole request body: answers travel between edges
BUS_OUTBOX_MAX: Final = 10_000  # messages on their way to Redis
BUS_OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024
KEPT_EVENTS_MAX: Final = 1_000  # of one stream, for clients that come back for them
KEPT_STREAM_BYTES_MAX: Final = 8 * 1024 * 1024
KEPT_WAITERS_MAX: Final = 10_000  # readers of kept streams that wait for the next event, on one edge
KEPT_STATE_BYTES_MAX: Final = 128 * 1024 * 1024  # of each file of what an edge keeps of the log on its disk
STREAM_BUFFER_BYTES_MAX: Final = 1024 * 1024  # that wait for a slow reader of a stream, before it is cut off
OUTLET_MESSAGES_MAX: Final = 1_000  # of one stream, on their way into the store of kept events
OUTLET_BYTES_MAX: Final = 8 * 1024 * 1024
ASKS_PER_SESSION_MAX: Final = 32  # questions that wait for one legacy client, at one edge


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds that an operator may set; the defaults suit a laptop and a small cluster."""

    body_bytes_max: int = 4 * 1024 * 1024
    result_bytes_max: int = 16 * 1024 * 1024
    capture_bytes_max: int = 64 * 1024  # of arguments or result kept in an event; beyond that only the digest
    approval_arguments_bytes_max: int = 64 * 1024  # what a person is asked about; more nobody could read
    concurrent_calls_max: int = 1_000
    connections_max: int = 10_000
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    call_timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    upstream_connections_max: int = 256
    upstream_streams_max: int = 2_048  # of one server: streams that are listened to
    upstream_session_idle_s: float = 1_800.0  # longer than any call: idle sessions are ended at their servers
    upstream_failures_max: int = 10  # in a row; then a server is left alone for a while
    paused_calls_max: int = 256  # of one server on one edge, that hold a stream open meanwhile
    drain_timeout_s: float = 20.0
    session_idle_s: float = 3_600.0
    session_window_s: float = 1_800.0  # idle window of a governance session derived for a modern client
    spool_bytes_max: int = 1024 * 1024 * 1024
    kept_state_s: float = 86_400.0  # so old what an edge starts with may be while the log is away; 0: it does not start
    pending_records_max: int = 20_000
    sessions_per_subject_max: int = 1_000
    streams_per_subject_max: int = 100  # long-lived ones (GET, subscriptions/listen), at one edge
    stream_kept_s: float = 300.0  # for how long events of a resumable stream are kept
    list_page_size: int = 500  # entries of a list that are shown at once
    processes_max: int = 64  # of stdio servers, at one edge
    processes_per_principal_max: int = 8  # where each principal has its own
    paused_s: float = 300.0  # for how long a server waits for a client's answers
