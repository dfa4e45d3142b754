"""What the page of `mull serve` needs of its server: its files under a strict policy, and answers to what it asks."""

import json
import re
import urllib.error
import urllib.request
from typing import Any

import mull


def test_what_the_page_asks_of_the_server(running: Any, client: Any) -> None:
    """Guards what is there for the page alone: purpose, example and rules of each model; tokens and iterations of every
    piece of text; a trace behind given tokens, with exits, which is that of mull.trace."""
    told = {each.id: each.mull for each in client.models.list()}  # type: ignore[attr-defined]
    assert told["text"]["prompt"] == "Natalia sold" and told["text"]["purpose"].startswith("Writes on in the manner of")
    assert told["plain"]["purpose"] is None and told["plain"]["prompt"] is None
    assert [each["name"] for each in told["parity"]["exits"]][:2] == ["latent", "acceleration"]
    assert told["inner-thinking"]["exits"] == told["plain"]["exits"] == []
    options: dict[str, Any] = {"model": "text", "prompt": "Natalia ü", "max_tokens": 12, "stream": True}
    chunks = list(client.completions.create(**options, extra_body={"iterations": 16, "exit": "latent:0.03"}))
    pieces = [chunk.mull for chunk in chunks if chunk.choices and chunk.choices[0].text]
    model = running.model("text")
    found = mull.generate(model, "Natalia ü", iterations=16, exit="latent:0.03", max_new_tokens=12)
    tokens = [token for piece in pieces for token in piece["tokens"]]
    assert tokens == found.tokens[0, -12:].tolist()
    assert [count for piece in pieces for count in piece["iterations"]] == found.iterations[0].tolist()
    body = {"model": "text", "prompt": "Natalia ü", "answer": tokens, "iterations": 16, "exit": "latent:0.03"}
    own = mull.trace(model, found.tokens, 16, exits=["latent:0.03"])
    run = asked(running, body)["runs"][0]
    assert run["exits"] == {"latent:0.03": own.exits["latent:0.03"][0].tolist()} and len(run["tokens"]) == len(
        own.input_ids[0]
    )
    for answer in ([257], [-1], [True], "text", [1.5]):
        assert (
            "answer must be a list of token ids from 0 to 256"
            in asked(running, {**body, "answer": answer})["error"]["message"]
        )
    refused = asked(running, {**body, "exit": "never:1"})["error"]["message"]
    assert refused.startswith("exit 'never' is not known")


def asked(running: Any, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{running.url}/mull/trace", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


def test_the_policy_of_the_page_is_strict(running: Any) -> None:
    """Guards what a browser is told: own files alone, and no script in the document."""
    with urllib.request.urlopen(f"{running.url}/") as answer:
        policy, document = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert policy.split("; ")[0] == "default-src 'self'" and "unsafe" not in policy and "*" not in policy
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?:", document)
    for name in re.findall(r'(?:src|href)="([^"]+)"', document):
        with urllib.request.urlopen(f"{running.url}/{name}") as answer:
            text = answer.read().decode()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
