"use strict";

// The console asks the API and nothing else. All text goes into the page as text:
// answers of endpoints are shown, and nobody vouches for them.

const REFRESH = 5000; // ms
const PAGE = 25; // deliveries
const MOST = 50; // subscriptions that the list has figures of

const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const signOut = document.getElementById("sign-out");
let user = null;
let round = 0; // of the view that is shown: what comes later for another is dropped
let timer = null;

// el makes an element; null and undefined children are left out.
function el(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else if (value === true) e.setAttribute(key, "");
    else if (value !== false && value != null) e.setAttribute(key, value);
  }
  e.append(...children.flat().filter((c) => c != null));
  return e;
}

// fill puts children in place of those that e has.
function fill(e, ...children) {
  e.replaceChildren(...children.flat().filter((c) => c != null));
}

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function api(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body ? { "Content-Type": "application/json" } : {},
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, "The service can't be reached. This page keeps trying.");
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Refused(response.status, "The service answered with something unexpected (status " + response.status + ").");
  }
  if (!response.ok) throw new Refused(response.status, answer.error || "The service refused (status " + response.status + ").");
  return answer;
}

function explain(error) {
  if (error.status === 403) return "This user may not see webhooks: sign in as an administrator or an integrator.";
  return error.message;
}

function say(text) {
  trouble.textContent = text || "";
  trouble.hidden = !text;
}

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
const when = (text) => el("time", { datetime: text, title: text }, moment.format(new Date(text)));
const ms = (n) => n >= 10000 ? (n / 1000).toFixed(1) + " s" : (n < 10 ? n.toFixed(1) : Math.round(n)) + " ms";
const tones = { delivered: "good", dead: "bad", retrying: "warn", failed: "warn" };
const tag = (text, tone) => el("span", { class: "tag " + (tone || tones[text] || "") }, text);
const reasons = {
  gone: "its endpoint answered 410 Gone",
  no_success: "nothing has succeeded for too long",
  subscription_disabled: "the subscription was disabled",
  subscription_deleted: "the subscription was deleted",
  replay_cancelled: "its replay was cancelled",
  timeout: "no answer in time",
  dial: "no connection",
  dns: "the name could not be resolved",
  tls: "no secure connection",
  reset: "the connection was cut",
  refused_address: "the address may not be sent to",
};

function cause(attempt) {
  if (!attempt || attempt.outcome === "delivered") return "";
  if (attempt.status && (!attempt.error || attempt.error === "status")) return "answered " + attempt.status;
  return reasons[attempt.error] || (attempt.error || "").replaceAll("_", " ");
}

function behind(n) {
  return n > 0 ? el("p", { class: "quiet" }, n.toLocaleString() + " records of the log are not shown yet.") : null;
}

// changes makes a function that says whether what it is given is new: what has not
// changed is left alone, with the reader's place in it.
function changes() {
  let known;
  return (value) => known !== (known = JSON.stringify(value));
}

// show calls draw now and every few seconds, until another view is shown.
function show(draw) {
  const mine = ++round;
  clearTimeout(timer);
  const again = async () => {
    try {
      if (!document.hidden) {
        await draw(() => mine === round);
        if (mine === round) say("");
      }
    } catch (error) {
      if (mine !== round) return;
      if (error.status === 401) return signIn();
      say(explain(error));
    }
    if (mine === round) timer = setTimeout(again, REFRESH);
  };
  return again();
}

function signIn() {
  round++;
  clearTimeout(timer);
  user = null;
  document.getElementById("user").textContent = "";
  signOut.hidden = true;
  const name = el("input", { name: "username", autocomplete: "username", required: true, autocapitalize: "none" });
  const password = el("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const button = el("button", { class: "main" }, "Sign in");
  fill(main, el("form", {
    class: "card sign-in",
    onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        user = (await api("POST", "/api/auth/login", { username: name.value, password: password.value })).user;
        say("");
        route();
      } catch (error) {
        say(error.message);
        button.disabled = false;
        password.select();
      }
    },
  }, el("h1", {}, "Sign in"), el("label", {}, "User name", name), el("label", {}, "Password", password), button));
  name.focus();
}

signOut.addEventListener("click", async () => {
  try {
    await api("POST", "/api/auth/logout");
    say("");
  } catch (error) {
    if (error.status !== 401) return say(error.message);
  }
  signIn();
});

function state(sub) {
  if (sub.enabled) return tag("enabled", "good");
  return tag("disabled", sub.disabled ? "bad" : "");
}

function whyDisabled(sub) {
  if (sub.enabled || !sub.disabled) return null;
  return el("p", { class: "quiet" }, "Disabled by the system: " + (reasons[sub.disabled.reason] || sub.disabled.reason) + ", ", when(sub.disabled.at));
}

function subscriptions() {
  const changed = changes();
  show(async (current) => {
    const { subscriptions: found } = await api("GET", "/api/webhooks");
    const numbers = await Promise.all(found.slice(0, MOST).map((sub) =>
      api("GET", "/api/webhooks/" + encodeURIComponent(sub.id) + "/stats").catch(() => null))); // it may just have gone
    if (!current() || !changed([found, numbers])) return;
    fill(main, 
      el("h1", {}, "Subscriptions"),
      found.length === 0 ? el("p", { class: "quiet" }, "There are none yet. Subscribe with POST /api/webhooks.") : null,
      ...found.map((sub, i) =>
        el("a", { class: "card subscription", href: "#/" + encodeURIComponent(sub.id) },
          el("span", { class: "row" }, el("strong", { class: "grow" }, sub.event_name), state(sub)),
          el("span", { class: "url quiet" }, sub.target_url),
          whyDisabled(sub), numbers[i] ? el("span", { class: "line" }, summary(numbers[i].stats)) : null)),
    );
  });
}

const percent = (rate) => rate == null ? "–" : (rate * 100).toFixed(rate === 1 ? 0 : 1) + " %";

function summary(stats) {
  const hour = stats["1h"];
  const said = [hour.attempts ? percent(hour.success_rate) + " of " + hour.attempts.toLocaleString() + " attempts succeeded in the last hour" : "Nothing was sent in the last hour"];
  if (stats.waiting) said.push(stats.waiting.toLocaleString() + " wait");
  if (stats.retrying) said.push(stats.retrying.toLocaleString() + " will be tried again");
  return said.join(", ") + ".";
}

function figures(name, f) {
  const line = (term, value) => [el("dt", {}, term), el("dd", {}, value)];
  return el("div", { class: "card" },
    el("div", { class: "quiet" }, name), el("strong", {}, percent(f.success_rate)), " succeeded",
    el("dl", {},
      line("Attempts", f.attempts.toLocaleString()),
      line("Failed", (f.failed + f.dead).toLocaleString() + (f.dead ? ", " + f.dead.toLocaleString() + " for good" : "")),
      f.discarded ? line("Discarded", f.discarded.toLocaleString()) : [],
      line("Latency", f.latency_ms ? "p50 " + ms(f.latency_ms.p50) + ", p99 " + ms(f.latency_ms.p99) : "–")));
}

function attempts(delivery) {
  if (delivery.attempts.length === 0) return [el("p", { class: "attempt quiet" }, "It waits for its first attempt.")];
  return delivery.attempts.map((a) =>
    el("div", { class: "attempt" },
      el("div", { class: "row" },
        el("strong", {}, "Attempt " + a.attempt), tag(a.outcome), el("span", { class: "grow" }, cause(a)),
        el("span", { class: "quiet" }, when(a.at), ", " + ms(a.latency_ms))),
      a.answer ? el("pre", {}, a.answer) : null));
}

// card shows a delivery; opened, it asks for the attempts.
function card(d, opened) {
  const body = el("div", {});
  const load = async () => {
    try {
      const { delivery } = await api("GET", "/api/deliveries/" + encodeURIComponent(d.delivery_id));
      fill(body, 
        el("p", { class: "id quiet" }, d.delivery_id, delivery.event_position ? ", event " + delivery.event_position : "", delivery.origin ? ", " + delivery.origin : ""),
        ...attempts(delivery));
    } catch (error) {
      if (error.status === 401) return signIn();
      fill(body, el("p", { class: "quiet" }, explain(error)));
    }
  };
  const card = el("details", {
    class: "card delivery",
    ontoggle: () => {
      if (card.open) opened.set(d.delivery_id, body);
      else opened.delete(d.delivery_id);
      if (card.open) load();
    },
  },
  el("summary", {},
    el("div", { class: "row" }, tag(d.status), el("span", { class: "grow" }, d.event), el("span", { class: "quiet" }, when(d.created_at))),
    el("div", { class: "quiet" },
      d.attempt_count === 1 ? "1 attempt" : d.attempt_count + " attempts",
      d.last_attempt ? ", " + [cause(d.last_attempt), ms(d.last_attempt.latency_ms)].filter(Boolean).join(", ") : "",
      d.next_attempt_at ? ", next " : "", d.next_attempt_at ? when(d.next_attempt_at) : "")),
  body);
  if (opened.has(d.delivery_id)) {
    body.append(...opened.get(d.delivery_id).childNodes); // until the attempts are here again
    card.open = true;
  }
  return card;
}

function subscription(id) {
  const path = "/api/webhooks/" + encodeURIComponent(id);
  const head = el("div", {});
  const numbers = el("div", {});
  const list = el("div", {});
  const opened = new Map();
  const changed = changes();
  let pages = 1;
  const option = (value) => el("option", { value }, value || "every status");
  const choice = el("select", { "aria-label": "Status", onchange: () => { pages = 1; start(); } },
    ...["", "waiting", "retrying", "delivered", "dead", "discarded"].map(option));
  fill(main, el("p", {}, el("a", { href: "#/" }, "← All subscriptions")), head, numbers,
    el("div", { class: "row" }, el("h2", { class: "grow" }, "Deliveries"), choice), list);

  const start = () => show(async (current) => {
    const [{ subscription: sub }, { stats }] = await Promise.all([api("GET", path), api("GET", path + "/stats")]);
    const found = [];
    let last = {};
    for (let i = 0; i < pages; i++) {
      const query = new URLSearchParams({ limit: PAGE });
      if (choice.value) query.set("status", choice.value);
      if (last.next_cursor) query.set("cursor", last.next_cursor);
      last = await api("GET", path + "/deliveries?" + query);
      found.push(...last.deliveries);
      if (!last.next_cursor) break;
    }
    if (!current()) return;
    fill(head, el("div", { class: "row" }, el("h1", { class: "grow" }, sub.event_name), state(sub)),
      el("div", { class: "url" }, sub.target_url), el("div", { class: "id quiet" }, sub.id), whyDisabled(sub));
    fill(numbers, el("h2", {}, "Figures"),
      el("div", { class: "figures" }, figures("Last 5 minutes", stats["5m"]), figures("Last hour", stats["1h"]), figures("Last day", stats["24h"])),
      el("p", { class: "quiet" }, stats.waiting.toLocaleString() + " wait for their first attempt, " + stats.retrying.toLocaleString() + " to be tried again."));
    if (!changed([found, last.next_cursor, last.behind])) return;
    fill(list,
      behind(last.behind),
      found.length === 0 ? el("p", { class: "quiet" }, "There are none.") : null,
      ...found.map((d) => card(d, opened)),
      last.next_cursor ? el("button", { class: "more", type: "button", onclick: () => { pages++; start(); } }, "Show more") : null);
  });
  start();
}

function route() {
  document.getElementById("user").textContent = user ? user.username : "";
  signOut.hidden = !user;
  if (!user) return signIn();
  const id = decodeURIComponent(location.hash.slice(2));
  say("");
  fill(main, el("p", { class: "quiet" }, "Loading …"));
  if (id) subscription(id);
  else subscriptions();
}

window.addEventListener("hashchange", () => { if (user) route(); });

async function begin() {
  try {
    user = (await api("GET", "/api/auth/me")).user;
  } catch (error) {
    if (error.status !== 401) {
      say(explain(error));
      setTimeout(begin, REFRESH);
      return;
    }
  }
  say("");
  route();
}
begin();
