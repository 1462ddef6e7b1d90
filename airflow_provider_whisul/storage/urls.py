"""Which media URLs and addresses may be requested, and how a message shows a URL. No I/O."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import quote as percent_encode
from urllib.parse import urljoin, urlsplit, urlunsplit

from airflow_provider_whisul.api.connection import is_loopback
from airflow_provider_whisul.exceptions import WhisulMediaUnsafeError
from airflow_provider_whisul.text import quote

#: The argument of the operator that permits private addresses, as messages name it.
ALLOW_PRIVATE = "allow_private_media"

# What a URL may hold as it is: reserved characters, and "%", since the URL may be encoded already.
_SAFE = "!#$%&'()*+,/:;=?@[]~"

_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}

# IPv6 networks whose last 32 bits are an IPv4 address: IPv4-compatible addresses, and NAT64.
_EMBEDDING_NETWORKS = (ipaddress.ip_network("::/96"), ipaddress.ip_network("64:ff9b::/96"))


@dataclass(frozen=True)
class MediaAccess:
    """
    Which hosts media may come from.

    :param api_url: The base URL of the API, None if it is not known.
    :param allow_private: Whether the user permits addresses that are not public.
    """

    api_url: str | None = None
    allow_private: bool = False

    def permits_address(self, address: str) -> bool:
        """
        Return whether media may be downloaded from an IP address.

        Addresses that are not public are refused, unless the user permits them, or the API's own URL has such a one.

        :param address: The address, without brackets.
        """
        return self.allow_private or is_public(address) or self._api_is_private()

    def permits_plain_http(self, url: str) -> bool:
        """
        Return whether a URL of plain http may be requested: to the host and port of the API itself, on this machine.

        :param url: The URL.
        """
        host = urlsplit(url).hostname or ""
        if self.allow_private and is_loopback(host):
            return True
        api = urlsplit(self.api_url or "")
        same_host = host == api.hostname or {host, api.hostname} <= _LOOPBACK_NAMES
        same_port = (urlsplit(url).port or 80) == (api.port or 80)
        return api.scheme == "http" and is_loopback(host) and same_host and same_port

    def _api_is_private(self) -> bool:
        host = urlsplit(self.api_url or "").hostname or ""
        try:
            return not is_public(host)
        except ValueError:
            return is_loopback(host)


def require_allowed(url: str, job_id: str, access: MediaAccess, *, redirected_from: str | None = None) -> str:
    """
    Return the absolute URL to request, percent-encoded. This decides which URLs may be requested.

    It must be https, or plain http to the sandbox. What a host name resolves to is known only when it is connected to:
    :meth:`MediaAccess.permits_address` decides that.

    :param url: The URL, or the ``Location`` of a redirect, which may be relative.
    :param job_id: The song's job, for the message.
    :param access: Which hosts media may come from.
    :param redirected_from: The URL that redirected to this one, None for the song's own URL.
    :raises WhisulMediaUnsafeError: The URL is malformed, holds a user name or password, has another scheme, or its host
        is an address that is not public.
    """
    subject = "The media URL" if redirected_from is None else f"The redirect from {redact_url(redirected_from)}"
    absolute = _absolute(url, redirected_from or "")
    if absolute is None:
        raise WhisulMediaUnsafeError(
            f"{subject} of job {job_id} is malformed, so nothing was downloaded. Contact Whisul's support.",
            job_id=job_id,
        )
    parts = urlsplit(absolute)
    # A redirect from another machine must not lead to plain http on this one.
    from_loopback = redirected_from is None or is_loopback(urlsplit(redirected_from).hostname or "")
    if parts.scheme == "https":
        require_permitted(parts.hostname or "", absolute, job_id, access)
    elif parts.scheme != "http" or not from_loopback or not access.permits_plain_http(absolute):
        raise WhisulMediaUnsafeError(
            f"{subject} of job {job_id} leads to {redact_url(absolute)}, which is not https, so nothing was downloaded "
            "from there. Plain http is accepted only to the host and port of the Airflow connection, where that is "
            "this machine (the sandbox). Contact Whisul's support.",
            job_id=job_id,
        )
    return absolute


def require_permitted(host: str, url: str, job_id: str, access: MediaAccess) -> None:
    """
    Raise where a host is an IP address that media may not come from. A host name is accepted.

    :param host: The IP address, or a host name.
    :param url: The URL, for the message.
    :param job_id: The song's job, for the message.
    :param access: Which hosts media may come from.
    :raises WhisulMediaUnsafeError: The address is not public.
    """
    try:
        permitted = access.permits_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return
    if not permitted:
        raise WhisulMediaUnsafeError(
            f"The media URL {redact_url(url)} of job {job_id} leads to {quote(host)}, which is no public address, so "
            "nothing was requested from there: a song must not make the worker call hosts of your own network. If "
            f"your media host is there, set {ALLOW_PRIVATE}=True.",
            job_id=job_id,
        )


def is_public(address: str) -> bool:
    """
    Return whether an IP address is one of the internet, and of one host only.

    :param address: The address.
    :raises ValueError: The text is no IP address.
    """
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and any(ip in network for network in _EMBEDDING_NETWORKS):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is None and ip.is_site_local:
            return False
        ip = embedded or ip
    return ip is not None and ip.is_global and not ip.is_multicast and not ip.is_reserved


def location_text(header: str) -> str:
    """
    Return the text of a ``Location`` header. Hosts send UTF-8 in it, and HTTP clients read it as Latin-1.

    :param header: The header as the client has read it.
    """
    raw = header.encode("latin-1", "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return percent_encode(raw, safe=_SAFE)


def redact_url(url: str) -> str:
    """
    Return a URL as a message may show it: without user, query and fragment, which may hold a signature.

    :param url: The URL.
    """
    try:
        parts = urlsplit(url)
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        host = f"{name}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "(malformed URL)"
    return quote(f"{parts.scheme}://{host}{parts.path}")


def _absolute(url: str, base: str) -> str | None:
    """Return the absolute URL, encoded as browsers do, or None where it is malformed or holds a user."""
    url = url.strip()
    if any(character < " " or character in "\\\x7f" for character in url):
        return None
    try:
        parts = urlsplit(urljoin(base, url))
        _ = parts.port
        odd_host = any(character in ' %"<>^`{|}' or not character.isprintable() for character in parts.netloc)
        if not parts.hostname or odd_host or parts.username is not None or parts.password is not None:
            return None
        path, query = (percent_encode(part, safe=_SAFE) for part in (parts.path, parts.query))
    except ValueError:
        return None
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))
