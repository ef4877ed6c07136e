"""What an error of redis-py means, and the remedy. Pure; it shows no text of the server's or the client's."""

from __future__ import annotations

import re
from typing import NamedTuple

from asyncdb_guard.connect.redis.endpoint import RedisEndpoint
from asyncdb_guard.failures import chain_of
from asyncdb_guard.settings.problems import label

_CODES = {
    "AskError": "ASK",
    "BusyLoadingError": "LOADING",
    "ClusterCrossSlotError": "CROSSSLOT",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "SlotNotCoveredError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
}
"""The codes that redis-py cuts off the server's text, by the names of its errors."""

_ANSWERS = {
    "ASK": "is a cluster that is moving its slots. Try again later",
    "BUSY": "is busy with a script. Look for a slow script on the server",
    "CLUSTERDOWN": "is a cluster with slots that no node serves. Repair the cluster",
    "CROSSSLOT": "is a cluster that refuses these keys in one command. Check what is between it and this client",
    "LOADING": "is still loading its data. Wait until it has started",
    "MASTERDOWN": "is a replica that has lost its primary. Repair the replication",
    "MISCONF": "cannot save its data and therefore refuses writes. Check its disk and its log",
    "MOVED": "is a cluster that sends this client from node to node. Check the addresses that its nodes announce",
    "NOAUTH": "requires a login. Add the user and the password to {url}",
    "NOPERM": "refuses a command or a key to this user. Allow {rights}, and in a cluster CLUSTER SLOTS and COMMAND",
    "NOREPLICAS": "has too few replicas and therefore refuses writes. Repair the replication",
    "OOM": "has no memory left for new entries. Raise its `maxmemory`, or set `maxmemory-policy` to `allkeys-lru`",
    "READONLY": "is a replica, which refuses writes. Set {url} to the endpoint of the primary",
    "TRYAGAIN": "is a cluster that is moving its slots. Try again later",
    "WRONGPASS": "refused the login. Correct the user and the password in {url}",
}
"""What is said of it, with the remedy; in braces, what the endpoint knows. Sources: redis.io, "Redis serialization
protocol", and the server's own `shared` error texts in server.c."""

_CLUSTER_CODES = frozenset({"ASK", "CROSSSLOT", "MOVED"})
"""The answers that only a cluster gives, and only to a client that does not know it."""

_NO_CLUSTER = "cluster support disabled"

_TEXTS = {
    "max number of clients": "has no connection left. Raise its `maxclients`, or lower the number of its clients",
    "DB index is out of range": "has no database of this number. Correct the number at the end of {url}",
    "in cluster mode": "is a cluster, which has only database 0. Remove the number from {url}",
    "unknown command": "lacks a command. Allow {rights}, or use a server that has them",
    _NO_CLUSTER: "is no longer a cluster. Check {url}",
}
"""What is said of it if the answer has no code of its own, by a part of the answer's text."""

_CODE = re.compile(r"[A-Z][A-Z0-9]{1,19}(?= |$)")
_SCRIPT_CODE = re.compile(r"-([A-Z][A-Z0-9]{1,19}) ")
"""Before version 7, the code of an error in a script is inside the text of another error."""


class Diagnosis(NamedTuple):
    """What is wrong with it."""

    text: str
    """Two sentences: what happened, and the remedy."""
    answered: bool
    """Whether the server answered and refused the command. Otherwise it is unknown whether the command ran."""
    is_cluster: bool | None = None
    """What the answer proves about the server: whether it is a cluster, or None for nothing."""
    timed_out: bool = False


def diagnose(error: BaseException, endpoint: RedisEndpoint) -> Diagnosis:
    """Explain an error of redis-py, by its most telling cause."""
    causes = list(chain_of(error))
    explained = next(filter(None, map(_explain_answer, causes)), None) or _explain_silence(error, causes)
    names = {
        "url": label(endpoint.url_setting),
        "root_cert": label(f"{endpoint.prefix}_ssl_root_cert"),
        "rights": endpoint.rights,
    }
    return explained._replace(text=f"The {endpoint.subject} {explained.text.format_map(names)}")


def _explain_answer(error: BaseException) -> Diagnosis | None:
    text = str(error)
    code = _code(error, text)
    if code in _ANSWERS:
        is_cluster = code in _CLUSTER_CODES or None
        return Diagnosis(_sentences(_ANSWERS[code], code), answered=True, is_cluster=is_cluster)
    for part, said in _TEXTS.items():
        if part in text:
            return Diagnosis(_sentences(said), answered=True, is_cluster=False if part == _NO_CLUSTER else None)
    if "ResponseError" not in _kinds(error):
        return None
    said = "gave an answer that this library does not know. Look it up in the server's log and documentation"
    return Diagnosis(_sentences(said, code or "no code"), answered=True)


def _explain_silence(error: BaseException, causes: list[BaseException]) -> Diagnosis:
    kinds = {kind for cause in causes for kind in _kinds(cause)}
    timed_out = "TimeoutError" in kinds
    if "SSLCertVerificationError" in kinds:
        said = "has a certificate that is not trusted. Set {root_cert} to its CA, and use the host name that is in it"
    elif "SSLError" in kinds:
        said = "and this client do not agree on TLS. Check redis:// or rediss:// in {url}, and the client certificate"
    elif timed_out:
        said = "did not answer in time. Check its load, the security group and, with rediss://, whether it uses TLS"
    elif "InvalidResponse" in kinds:
        said = "does not speak Redis's protocol. Check the host and the port in {url}"
    else:
        said = "is unavailable. Check the server, the network and {url}; with TLS, rediss:// and the client certificate"
    return Diagnosis(_sentences(said, type(error).__name__), answered=False, timed_out=timed_out)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _code(error: BaseException, text: str) -> str | None:
    """The first word of the server's answer, which redis-py cuts off where it knows it."""
    for kind in type(error).__mro__:
        if kind.__name__ == "AuthenticationError":
            return "NOAUTH" if "required" in text else "WRONGPASS"
        if kind.__name__ in _CODES:
            return _CODES[kind.__name__]
    code = _CODE.match(text)
    nested = _SCRIPT_CODE.search(text) if code is None else None
    return nested[1] if nested is not None else code and code[0]


def _sentences(said: str, code: str | None = None) -> str:
    meaning, _, remedy = said.partition(". ")
    return f"{meaning}{f' ({code})' if code else ''}. {remedy}."
