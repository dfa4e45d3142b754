// What is asked of the server, and its answers as they come. The key, where one is wanted, is in this memory alone.
"use strict";

let key = "";

class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the server does not answer; is mull serve still running?", 0);
  }
  if (!response.ok) throw new Refusal(await reasonOf(response), response.status);
  return response;
}

// The one line of the server's error, or what can be said without.
async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status} ${response.statusText}`;
  }
}

// The events of a stream, until it says that it is done.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const brokeOff = new Refusal("the answer broke off: the server has ended the connection", 0);
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => { throw error.name === "AbortError" ? error : brokeOff; });
    if (done) throw brokeOff;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue; // a comment, which keeps the connection open
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(event.error.message, 500);
      yield event;
    }
  }
}
