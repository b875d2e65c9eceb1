"""Ask the server in this container for a path, like /healthz; exit with 1 unless it answers 200. Prints the answer."""

import sys
from http.client import HTTPConnection, HTTPException

connection = HTTPConnection("127.0.0.1", 9880, timeout=4)  # not urllib, which may ask a proxy
try:
    connection.request("GET", sys.argv[1])
    response = connection.getresponse()
    sys.stdout.write(response.read(4096).decode(errors="replace"))
except (OSError, HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(response.status != 200)
