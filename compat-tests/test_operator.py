"""The operator's commands about accounts, access keys and instances, each from its beginning to its end."""

import subprocess
from dataclasses import replace

import pytest

from conftest import Account
from raw import call
from running import until


@pytest.fixture(scope="module")
def made(vbs):
    """An account of this file alone, and an access key of it."""
    number = vbs.operator("account", "create", "operators-own")
    return number, Account(vbs.endpoint, *vbs.operator("access-key", "create", "operators-own").split())


def rows(text):
    return {line.split("\t")[0]: line.split("\t") for line in text.splitlines()}


def answer(account):
    got = call(account, Action="DescribeVolumes")
    return 200 if got.status == 200 else got.code


def refusal(vbs, *arguments):
    with pytest.raises(AssertionError) as caught:
        vbs.operator(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("what", ["account", "access-key"])
def test_what_is_disabled_is_refused_at_once_until_it_is_enabled_again(vbs, made, what):
    number, account = made
    name = {"account": "operators-own", "access-key": account.key}[what]
    shown = {"account": number, "access-key": account.key}[what]
    assert answer(account) == 200
    assert rows(vbs.operator(what, "list"))[shown][2] == "enabled"
    vbs.operator(what, "disable", name)
    assert rows(vbs.operator(what, "list"))[shown][2] == "disabled"
    until("refused", lambda: answer(account) == "AuthFailure", 1)
    vbs.operator(what, "enable", name)
    until("let in", lambda: answer(account) == 200, 1)


def test_an_instance_changes_hands(vbs, made):
    number, account = made
    instance = vbs.instances[1]
    before = rows(vbs.operator("instance", "list"))[instance][-1]
    assert instance.encode() not in call(account, Action="DescribeInstances").body
    vbs.operator("instance", "assign", instance, "operators-own")
    assert rows(vbs.operator("instance", "list"))[instance][-1] == number
    assert instance.encode() in call(account, Action="DescribeInstances").body
    vbs.operator("instance", "assign", instance, before)
    assert instance.encode() not in call(account, Action="DescribeInstances").body
    assert "does not exist" in refusal(vbs, "instance", "assign", "i-0fedcba9876543210", before)
    assert "no account" in refusal(vbs, "instance", "assign", instance, "nobody")
    assert "nonsense" in refusal(vbs, "instance", "assign", "nonsense", before)
    assert "--force" in refusal(vbs, "instance", "terminate", instance)


def test_an_account_goes_when_nothing_of_it_is_left(vbs, made):
    number, account = made
    assert "cannot be deleted" in refusal(vbs, "account", "delete", "operators-own")
    vbs.operator("access-key", "delete", account.key)
    assert account.key not in rows(vbs.operator("access-key", "list", "operators-own"))
    until("unknown", lambda: answer(account) == "AuthFailure", 1)
    assert "no access key" in refusal(vbs, "access-key", "enable", account.key)
    vbs.operator("account", "delete", number)
    assert number not in rows(vbs.operator("account", "list"))
    assert answer(replace(account, key="AKIAIOSFODNN7EXAMPLE")) == "AuthFailure"
