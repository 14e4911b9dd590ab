"""The rows of the matrix, and the rules by which a feature is refused. Counterparts: exercises/, running.py."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from tests.matrix.cells import Cell
from tests.matrix.exercises import asking, calling, listing, offering
from tests.matrix.exercises.asserting import Outcome

RULES: Final = {
    "not-offered": "Only 2026-07-28 has words for it, so a server of the handshake era cannot offer it.",
    "removed": "2026-07-28 has removed the method: -32601 with status 404 for a client; a server cannot ask.",
    "capability": "The client has not declared the capability, so the server is not told of one and must do without: "
    "-32021 in the modern era, else the server's own error.",
    "url-required": "The handshake era's word for it is the error -32042 with the page in its data; the call is made "
    "again after the visit.",
    "never-declared": "A server may only ask for what the client has declared: the question never reaches the client, "
    "and the server is told of an error or that nobody answers.",
}
"""Why a feature is refused, by key."""


class Feature(NamedTuple):
    """A row of the matrix."""

    title: str
    exercise: Callable[[Cell], Awaitable[Outcome]]


FEATURES: Final[tuple[Feature, ...]] = (
    Feature("initialize or server/discover: revision, capabilities, instructions", listing.opening),
    Feature("tools/list, all pages: title, icons, annotations, `_meta`, every schema keyword", listing.listing_tools),
    Feature("prompts/list, all pages", listing.listing_prompts),
    Feature("resources/list, all pages", listing.listing_resources),
    Feature("resources/templates/list, all pages", listing.listing_templates),
    Feature("a cursor that was never given: -32602", listing.wrong_cursor),
    Feature("tools/call", calling.calling),
    Feature("structured output", calling.structured),
    Feature("structured output that is no object", calling.structured_list),
    Feature("images, audio, links, embedded resources", calling.contents),
    Feature("arguments in headers (`x-mcp-header`)", calling.header_argument),
    Feature("a tool's error (`isError`)", calling.tool_error),
    Feature("a JSON-RPC error: code, message, data", calling.request_error),
    Feature("unknown tools and prompts", calling.unknown_names),
    Feature("unknown members of results", calling.unknown_members),
    Feature("`_meta` of requests, trace context", calling.request_meta),
    Feature("caching hints, `resultType`", listing.era_words),
    Feature("progress", calling.progress),
    Feature("logging", calling.logging),
    Feature("cancellation", calling.cancelling),
    Feature("elicitation, form", asking.elicitation),
    Feature("elicitation, declined and cancelled", asking.elicitation_declined),
    Feature("elicitation of five calls at once", asking.elicitation_at_once),
    Feature("elicitation, URL", asking.elicitation_url),
    Feature("a page that must be visited first", asking.url_required),
    Feature("elicitation in two rounds", asking.elicitation_rounds),
    Feature("two questions at once", asking.asked_together),
    Feature("sampling", asking.sampling),
    Feature("roots", asking.roots),
    Feature("elicitation in prompts/get", asking.asking_prompt),
    Feature("elicitation in resources/read", asking.asking_resource),
    Feature("client capabilities, as declared", asking.declared),
    Feature("extensions that both sides speak (MCP Apps)", asking.extensions),
    Feature("a tool that needs what the client has not declared", asking.undeclared),
    Feature("a server that asks for what was not declared", asking.asked_unduly),
    Feature("resources/read", offering.reading),
    Feature("resources/read, binary", offering.reading_binary),
    Feature("resources/read, by a template", offering.reading_template),
    Feature("resources/read, not found", offering.not_found),
    Feature("subscribing to a resource, updates, unsubscribing", offering.subscribing),
    Feature("list changes: tools", offering.tools_changed),
    Feature("list changes: prompts", offering.prompts_changed),
    Feature("list changes: resources", offering.resources_changed),
    Feature("prompts/get", offering.getting_prompts),
    Feature("completion for prompts and templates, with context", offering.completing),
    Feature("ping", offering.pinging),
    Feature("ping of a server", offering.pinged),
    Feature("logging/setLevel", offering.setting_level),
)
