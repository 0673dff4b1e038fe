"""Exit with 0 if a server of this container answers: `healthy.py PORT [CA.crt]`."""

import http.client
import ssl
import sys

port, *authority = sys.argv[1:]
address = ("127.0.0.1", int(port))
# Not through urllib, which would take a proxy from the environment.
connection = http.client.HTTPConnection(*address, timeout=5)
if authority:
    trust = ssl.create_default_context(cafile=authority[0])
    connection = http.client.HTTPSConnection(*address, timeout=5, context=trust)
connection.request("GET", "/health")
sys.exit(connection.getresponse().status != 200)
