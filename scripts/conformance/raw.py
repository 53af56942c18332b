"""Plain HTTP, for what the client would not send."""

import json
import urllib.error
import urllib.request


def call(url, body=None, method=None, headers=None):
    """Status, headers and body of a request; `body` is bytes or something for JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def json_of(url, body=None, **kwargs):
    status, _, text = call(url, body, **kwargs)
    return status, json.loads(text)


def metric(url, name):
    """Sum of a metric's series."""
    _, _, page = call(f"{url}/metrics")
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in page.decode().splitlines()
        if line.startswith((name + "{", name + " "))
    ]
    assert values, f"no metric {name}"
    return sum(values)
