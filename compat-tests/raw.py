"""Requests by hand, for what no client would send."""

import socket
from dataclasses import dataclass
from urllib.parse import urlencode
from xml.etree import ElementTree

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

FORM = "application/x-www-form-urlencoded; charset=utf-8"


@dataclass
class Answer:
    """What came back: the status, the headers in lower case, and the body."""

    status: int
    headers: dict
    body: bytes

    @property
    def code(self):
        """The error's code, of a document that must be EC2's error document and nothing else."""
        return self.error()[0]

    @property
    def message(self):
        return self.error()[1]

    def error(self):
        assert self.headers.get("content-type", "").startswith("text/xml"), self
        root = ElementTree.fromstring(self.body)
        assert root.tag == "Response" and [child.tag for child in root] == ["Errors", "RequestID"], self
        assert root.findtext("RequestID"), self
        (error,) = root.find("Errors")
        assert error.tag == "Error" and [child.tag for child in error] == ["Code", "Message"], self
        return error.findtext("Code"), error.findtext("Message")


def signed(account, body, path="/", method="POST", service="ec2", region="us-east-1", headers=None, query=""):
    """The bytes of a request with a body (bytes, or a dict for a form), signed by SigV4 in a header."""
    body = urlencode(body).encode() if isinstance(body, dict) else body
    target = f"{path}?{query}" if query else path
    asked = AWSRequest(method, account.endpoint + target, headers=headers or {"Content-Type": FORM}, data=body)
    SigV4Auth(Credentials(account.key, account.secret), service, region).add_auth(asked)
    return request(account, method, target, dict(asked.headers.items()), body)


def presigned(account, parameters, expires=60):
    """The bytes of a GET request that is signed in its query."""
    url = f"{account.endpoint}/?{urlencode(parameters)}"
    asked = AWSRequest("GET", url, headers={})
    SigV4QueryAuth(Credentials(account.key, account.secret), "ec2", "us-east-1", expires=expires).add_auth(asked)
    return request(account, "GET", asked.url.removeprefix(account.endpoint), {}, b"")


def request(account, method, target, headers, body):
    host, port = account.address
    headers = {"Host": f"{host}:{port}", "Content-Length": str(len(body)), "Connection": "close"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def send(account, data, half_close=False):
    """Sends bytes on a connection of their own and reads the answer to its end."""
    with socket.create_connection(account.address, timeout=60) as line:
        try:
            line.sendall(data)
            if half_close:
                line.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # An answer may come before all of a body is read.
        return read(line)


def read(line):
    """Reads until the other side closes."""
    received = b""
    try:
        while chunk := line.recv(1 << 16):
            received += chunk
    except ConnectionResetError:
        assert received, "the connection was reset without an answer"
    return parse(received)


def parse(received):
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(status.split()[1]), headers, body)


def call(account, **parameters):
    """A signed POST with these parameters."""
    return send(account, signed(account, {"Version": "2016-11-15"} | parameters))
