"""Whether a Flower process of this container answers: `healthy.py PORT [CA.crt]`."""

import http.client
import ssl
import sys

port, *authority = sys.argv[1:]
# Not through urllib, which would take a proxy from the environment.
connection = (
    http.client.HTTPSConnection(
        "127.0.0.1",
        int(port),
        timeout=5,
        context=ssl.create_default_context(cafile=authority[0]),
    )
    if authority
    else http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
)
connection.request("GET", "/health")
sys.exit(connection.getresponse().status != 200)
