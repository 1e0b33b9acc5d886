"""Asks a delegate for something itself, as a gateway does: what a tenant's calls cannot bring about."""

import json
import secrets
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


class Refused(Exception):
    """The delegate did not do it. `kind` is what a gateway makes of that: `retry`, `fatal` ..."""

    def __init__(self, told):
        super().__init__(told["message"])
        self.kind = told["kind"]


@dataclass(frozen=True)
class Answer:
    """What the delegate said, and how many seconds that took."""

    value: object
    seconds: float


def ask(delegate, verb, spec, generation=1):
    """Asks a delegate for something. It says itself for which life of it a call must be signed."""
    life = ""
    while True:
        try:
            return signed(delegate, verb, spec, generation, life)
        except urllib.error.HTTPError as refused:
            told = json.load(refused)
            if refused.code != 421 or life:
                raise Refused(told) from None
            life = told["life"]


def signed(delegate, verb, spec, generation, life):
    url = f"{delegate.url}/v1/{verb}?life={life}&nonce={secrets.token_hex(16)}"
    body = json.dumps({"generation": generation, "spec": spec}).encode()
    request = AWSRequest("POST", url, data=body, headers={"Content-Type": "application/json"})
    SigV4Auth(Credentials(delegate.node, delegate.key), "vbs-delegate", delegate.node).add_auth(request)
    began = time.monotonic()
    with urllib.request.urlopen(urllib.request.Request(url, body, dict(request.headers)), timeout=120) as answer:
        text = answer.read()
    return Answer(json.loads(text) if text else None, time.monotonic() - began)


def new_id(kind):
    """A name for a volume (`vol`) or a snapshot (`snap`) that nothing else has."""
    return f"{kind}-0{secrets.token_hex(8)}"
