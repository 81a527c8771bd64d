"""A proxy that the environment names: never asked for this machine, and named when it fails."""

import os
import urllib.request

import openai
import pytest

from pipeline.proxies import keep_loopback_direct, proxy_of
from tests.fault_server import Answer, FaultServer
from tests.teacher.test_faults import GOOD, ask, questions


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that refuses everything, in every variable that names one."""
    server = FaultServer(lambda call: Answer(b"<html>access denied</html>", status=403))
    with server.running() as url:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://user:secret@{url.split('/')[2]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "example.org")
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_directly(tmp_path, proxy, host, stream):
    outcome, traces, _ = ask(lambda call: GOOD, tmp_path, questions(2), stream=stream)
    assert len(traces) == 2 and outcome.failed == 0 and not proxy.calls
    opener = urllib.request.build_opener()      # urlopen's own keeps the first proxy it saw
    with FaultServer(lambda call: GOOD).running() as url:
        address = url.replace("127.0.0.1", host)
        found = openai.OpenAI(base_url=address, api_key="none").chat.completions.create(
            model="m", messages=[])
        assert found.choices[0].message.content == "42"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            opener.open("http://elsewhere.test/v1", timeout=5)
        assert opener.open(f"{address}/x", timeout=5).status == 200
    assert len(proxy.calls) == 1 and os.environ["NO_PROXY"].startswith("example.org,")


def test_a_failing_proxy_is_named_without_its_password(tmp_path, proxy):
    error, _, calls = ask(lambda call: GOOD, tmp_path, questions(4), concurrency=1,
                          base_url="http://models.test/v1")
    assert "asked through the proxy http://127.0.0.1:" in str(error) and "NO_PROXY" in str(error)
    assert "secret" not in str(error) and not calls and proxy.calls


def test_hosts_that_the_environment_exempts_have_no_proxy(proxy, monkeypatch):
    assert proxy_of("https://models.test/v1") and not proxy_of("https://example.org/v1")
    assert not proxy_of("http://127.0.0.1:8000/v1")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    keep_loopback_direct()
    assert os.environ["NO_PROXY"] == "*"


def test_a_proxy_that_cannot_be_one_is_refused_in_a_sentence(tmp_path, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", "ftp://files.test")
    monkeypatch.setenv("HTTP_PROXY", "ftp://files.test")
    error, _, _ = ask(lambda call: GOOD, tmp_path)
    assert "cannot be used" in str(error) and "fix HTTP_PROXY" in str(error)
