"""A call as an OCSF API Activity (class 6003) with the profile `security_control`: the schema's published version, no
member that it does not have. What has no place there is under `unmapped.tidegate`. Pure. Counterpart: `activity.py`.
"""

from typing import Any, Final, NamedTuple

import msgspec

from tidegate.limits import EVENT_BYTES_MAX
from tidegate.ocsf.activity import OPEN, Activity
from tidegate.ocsf.terms import PRODUCT, SCHEMA, clipped, known, severity_caption, severity_id

CATEGORY, CLASS, ACTIVITY = 6, 6003, 99  # Application Activity, API Activity, Other: the method says which
LOG_NAME: Final = "tidegate.calls"
PROFILES: Final = ("security_control",)
TEXT_CHARS_MAX: Final = 4_096  # of one text of an object
LIST_MAX: Final = 1_000  # entries of one list
_SMALL: Final = (256, 100)  # the same, of an object that the log would still not take


class Control(NamedTuple):
    """What the gateway did: OCSF's action and disposition."""

    action_id: int
    action: str
    disposition_id: int
    disposition: str


ALLOWED: Final = Control(1, "Allowed", 1, "Allowed")
MASKED: Final = Control(4, "Modified", 11, "Corrected")
BLOCKED: Final = Control(2, "Denied", 2, "Blocked")
REJECTED: Final = Control(2, "Denied", 25, "Rejected")
ASKED: Final = Control(99, "Asked", 99, "Asked")
_CONTROL_OF_STATUS: Final = {
    "denied": BLOCKED,
    "blocked": BLOCKED,
    "limited": REJECTED,
    "refused": REJECTED,
    "asked": ASKED,
}


def control_of(activity: Activity) -> Control:
    """Blocked covers what was withheld after the call, too."""
    return _CONTROL_OF_STATUS.get(activity.status) or (MASKED if activity.masked else ALLOWED)


def api_activity(activity: Activity) -> dict[str, Any]:
    """The OCSF object. `time` is the time of the request, `metadata.uid` what a SIEM may deduplicate by."""
    started_ms, ended_ms = activity.requested_us // 1000, activity.ended_us // 1000
    return known(
        {
            "metadata": _metadata(activity),
            "category_uid": CATEGORY,
            "category_name": "Application Activity",
            "class_uid": CLASS,
            "class_name": "API Activity",
            "activity_id": ACTIVITY,
            "activity_name": activity.method,
            "type_uid": CLASS * 100 + ACTIVITY,
            "type_name": "API Activity: Other",
            "severity_id": severity_id(activity.severity),
            "severity": severity_caption(activity.severity),
            "time": started_ms,
            "start_time": started_ms,
            "end_time": ended_ms or None,
            "duration": (activity.ended_us - activity.requested_us) // 1000 if ended_ms else None,
            "message": activity.message,
            **_status(activity),
            **control_of(activity)._asdict(),
            "is_alert": activity.is_alert,
            "actor": _actor(activity),
            "src_endpoint": {"name": activity.agent or "unknown"},
            "dst_endpoint": {"svc_name": activity.server} if activity.server else None,
            "api": _api(activity),
            "resources": _resources(activity),
            "authorizations": _authorizations(activity),
            "policy": _policy(activity),
            "unmapped": {"tidegate": _own(activity)},
        }
    )


def encoded(activity: Activity) -> bytes:
    """The OCSF object as JSON, its texts and lists clipped to their bounds; `unmapped.tidegate.clipped` says so.

    An object says several times what an event says once: unclipped it could be larger than the log takes.
    """
    whole = api_activity(activity)
    value = msgspec.json.encode(whole)
    if len(value) <= TEXT_CHARS_MAX:
        return value
    for chars, items in ((TEXT_CHARS_MAX, LIST_MAX), _SMALL):
        small = clipped(whole, chars, items)
        if small != whole:
            small["unmapped"]["tidegate"]["clipped"] = True
            value = msgspec.json.encode(small)
        if len(value) <= EVENT_BYTES_MAX:
            break
    return value


def _metadata(activity: Activity) -> dict[str, Any]:
    return known(
        {
            "version": SCHEMA,
            "uid": activity.uid,
            "correlation_uid": activity.root_call_id,
            "tenant_uid": activity.tenant,
            "log_name": LOG_NAME,
            "profiles": PROFILES,
            "product": PRODUCT,
            "reporter": {"name": activity.edge} if activity.edge else None,
            "labels": activity.labels,
        }
    )


def _status(activity: Activity) -> dict[str, Any]:
    """Success is an answer without an error; `isError` is none. A question back to the client is neither."""
    told = {"status_code": activity.status, "status_detail": activity.reason}
    if activity.status == "ok":
        return known({"status_id": 1, "status": "Success", **told})
    if activity.status in OPEN:
        return known({"status_id": 0, "status": "Unknown", **told})
    if activity.status in ("asked", "input-required"):
        return known({"status_id": 99, "status": activity.status, **told})
    return known({"status_id": 2, "status": "Failure", **told})


def _actor(activity: Activity) -> dict[str, Any]:
    user = {
        "uid": activity.subject_id,
        "name": activity.login,
        "groups": [{"name": name} for name in activity.groups if name],
    }
    return known(
        {
            "app_name": activity.agent,
            "user": known(user) if activity.subject_id or activity.login else None,
            "session": known({"uid": activity.session_id, "issuer": activity.issuer}),
            "invoked_by": "" if activity.agent else "unknown",
        }
    )


def _api(activity: Activity) -> dict[str, Any]:
    sent = {
        "target": activity.target,
        "arguments_sha256": activity.arguments_digest,
        "arguments_bytes": activity.arguments_bytes,
    }
    request = known({"uid": activity.call_id, "data": known(sent)})
    got = {"result_sha256": activity.result_digest, "result_bytes": activity.result_bytes or None}
    response = {
        "code": activity.error_code,
        "error": "" if activity.status == "ok" else activity.status,
        "data": known(got),
    }
    return known(
        {
            "operation": activity.method or "unknown",
            "version": activity.protocol,
            "service": {"name": activity.server} if activity.server else None,
            "request": request if activity.call_id else None,
            "response": None if activity.status in OPEN else known(response),
        }
    )


def _resources(activity: Activity) -> list[dict[str, Any]]:
    if not activity.target:
        return []
    kind = "mcp.tool" if activity.method == "tools/call" else f"mcp.{activity.method.partition('/')[0]}"
    named = {"uid": f"{activity.server}/{activity.target}", "name": activity.target, "type": kind}
    return [known({**named, "labels": activity.labels})]


def _authorizations(activity: Activity) -> list[dict[str, Any]]:
    """One for each rule that decided; a decision without any rule stands alone."""
    decisions = [{"decision": activity.decision, "policy": _rule(activity, rule)} for rule in activity.rules if rule]
    return decisions or [{"decision": activity.decision}]


def _policy(activity: Activity) -> dict[str, Any] | None:
    """The first rule that decided."""
    return next((_rule(activity, rule) for rule in activity.rules if rule), None)


def _rule(activity: Activity, rule: str) -> dict[str, Any]:
    return known({"uid": rule, "version": activity.bundle, "is_applied": True})


def _own(activity: Activity) -> dict[str, Any]:
    findings = [
        {
            "rule": one.rule,
            "severity": one.severity,
            "action": one.action,
            "direction": one.direction,
            "count": one.count,
        }
        for one in activity.findings
    ]
    return known(
        {
            "call_id": activity.call_id,
            "erased": True if activity.is_erased else None,
            "region": activity.region,
            "mode": activity.mode,
            "stage": activity.stage,
            "release": activity.release or None,
            "findings": findings,
            "masked": activity.masked or None,
            "policy_us": activity.policy_us or None,
            "upstream_us": activity.upstream_us or None,
            "total_us": activity.total_us or None,
            "writer": activity.writer,
            "seq": activity.seq or None,
        }
    )
