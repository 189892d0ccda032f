// Asks the server for its numbers each second and shows how they change.
import { Plot } from "./plots.js";
import { showModels, token } from "./talk.js";

const $ = (id) => document.getElementById(id);
const models = new Map(); // name -> what the page has of it
let before = null, refused = [];

const count = (n) => n >= 1e6 ? `${(n / 1e6).toPrecision(3)} M` : n >= 100 ? Math.round(n).toLocaleString("en") : `${Math.round(n * 10) / 10}`;
const bytes = (n) => { let i = 0; while (n >= 1024 && i < 4) { n /= 1024; i++; } return `${n >= 100 || !i ? Math.round(n) : n.toPrecision(2)} ${["B", "KiB", "MiB", "GiB", "TiB"][i]}`; };
const time = (s) => s === null ? "–" : s < 1e-3 ? `${(s * 1e6).toPrecision(3)} µs` : s < 1 ? `${(s * 1e3).toPrecision(3)} ms` : `${s.toPrecision(3)} s`;
const change = (now, then) => ({ count: now.count - then.count, sum: now.sum - then.sum, buckets: now.buckets.map(([bound, n], i) => [bound, n - then.buckets[i][1]]) });

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// The value below which this share of a histogram lies, between the bounds of its bucket; null without any.
function quantile(histogram, share) {
  if (!(histogram.count > 0)) return null;
  const left = share * histogram.count;
  let seen = 0, low = 0;
  for (const [bound, n] of histogram.buckets) {
    if (n >= left) return (low || bound / 2) * (bound / (low || bound / 2)) ** ((left - seen) / (n - seen || 1));
    seen = n; low = bound;
  }
  return low;
}

// Seconds of a step at this batch by the performance model, between the batches that it was asked for.
function expected(calls, batch) {
  if (!calls.length) return null;
  let k = calls.findIndex(([n]) => n >= batch);
  if (k === 0 || batch <= 1) return calls[0][1] / calls[0][0];
  if (k < 0) { const [n, s] = calls[calls.length - 1]; return s / n; }
  const [n, s] = calls[k - 1], [m, t] = calls[k];
  return (s + (t - s) * (batch - n) / (m - n)) / batch;
}

function card(name) {
  if (models.has(name)) return models.get(name);
  const section = $("model").content.firstElementChild.cloneNode(true);
  const of = (key) => section.querySelector(`[data-of=${key}]`), plot = (key) => section.querySelector(`[data-plot=${key}]`);
  const title = section.querySelector("h2");
  title.id = `model-${models.size}`;
  title.textContent = name;
  title.append(document.createElement("small"));
  section.setAttribute("aria-labelledby", title.id);
  $("models").append(section);
  const found = {
    section, of, list: (key) => section.querySelector(`[data-list=${key}]`), calls: [],
    plots: { steps: new Plot(plot("steps"), count), batch: new Plot(plot("batch"), count), wait: new Plot(plot("wait"), time, 2), compute: new Plot(plot("compute"), time, 2) },
  };
  models.set(name, found);
  return found;
}

// Reasons and counts. `always`: shown at 0 too.
function reasons(list, counts, always) {
  const shown = Object.entries(counts).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  if (!shown.length) shown.push([always, 0]);
  const text = JSON.stringify(shown);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...shown.flatMap(([reason, n]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = reason.replaceAll("_", " ");
    dd.textContent = n.toLocaleString("en");
    return [dt, dd];
  }));
}

function showModel(now, then, seconds) {
  const found = card(now.name), { of, plots } = found;
  put(found.section.querySelector("small"), now.versions.length > 1 ? `versions ${now.versions.join(", ")}` : `version ${now.versions[0]}`);
  put(of("sequences"), `${count(now.sequences)}`);
  put(of("waiting"), count(now.waiting));
  put(of("state"), bytes(now.state_bytes));
  put(of("starts"), count(now.starts));
  reasons(found.list("ends"), now.ends, "none so far");
  reasons(found.list("rejected"), now.rejected, "none so far");
  const why = now.expected.why;
  if (then) {
    const steps = (now.steps - then.steps) / seconds;
    const [batch, wait, compute] = ["batch_size", "queue_wait_seconds", "compute_seconds"].map((key) => change(now[key], then[key]));
    const mean = batch.count ? batch.sum / batch.count : null;
    const [w50, w99, c50, c99] = [[wait, .5], [wait, .99], [compute, .5], [compute, .99]].map(([h, q]) => quantile(h, q));
    put(of("steps"), count(steps));
    put(of("batch"), mean === null ? "–" : mean.toPrecision(3));
    put(of("wait50"), time(w50)); put(of("wait99"), time(w99)); put(of("compute50"), time(c50)); put(of("compute99"), time(c99));
    plots.steps.add(steps); plots.batch.add(mean); plots.wait.add(w50, w99); plots.compute.add(c50, c99);
    const taken = now.steps - then.steps, should = expected(now.expected.calls, mean ?? 1);
    if (taken > 0) {
      put(of("expected"), time(should));
      put(of("ticked"), time(compute.sum / taken));
      put(of("why"), why ? `No expectation: ${why}.` : `Expected by the performance model at batch ${mean.toPrecision(2)}.`);
    }
    const old = found.calls[0] ?? now.calls, call = quantile(change(now.calls.seconds, old.seconds), .5);
    if (call !== null) put(of("measured"), time(call * (now.calls.calls - old.calls) / (now.calls.steps - old.steps)));
  }
  found.calls.push(now.calls); // the engine times every 64th call: the median of a minute
  if (found.calls.length > 60) found.calls.shift();
}

function showEvents(events) {
  const text = JSON.stringify(events), body = $("events");
  if (body.dataset.shown === text) return;
  body.dataset.shown = text;
  $("no-events").hidden = events.length > 0;
  body.replaceChildren(...events.map((event) => {
    const row = document.createElement("li"), at = new Date(event.time * 1e3).toLocaleTimeString("en", { hour12: false });
    const parts = [["time", at], ["b", event.model || "–"], ["i", `${event.kind}: ${event.reason.replaceAll("_", " ")}`], ["p", event.text]];
    row.append(...parts.map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: text })));
    return row;
  }));
}

function state(text, kind) {
  put($("state"), text);
  $("state").className = `pill ${kind}`;
}

function age(seconds) {
  const m = Math.floor(seconds / 60), h = Math.floor(m / 60);
  return h >= 48 ? `${Math.floor(h / 24)} days` : h ? `${h} h ${m % 60} min` : m ? `${m} min` : "less than a minute";
}

function show(now) {
  const then = before && before.started === now.started ? before : null;
  const seconds = then ? now.time - then.time : 0;
  if (then && seconds <= 0) return;
  const sum = (key) => now.models.reduce((n, m) => n + m[key], 0);
  const all = (m) => Object.values(m.rejected).reduce((a, b) => a + b, 0);
  put($("t-sequences"), count(sum("sequences")));
  put($("t-state"), bytes(sum("state_bytes")));
  put($("about"), `version ${now.version}, up for ${age(now.time - now.started)}`);
  const total = now.models.reduce((n, m) => n + all(m), 0);
  if (!then) refused = [];
  refused.push([now.time, total]);
  while (now.time - refused[0][0] > 60) refused.shift();
  put($("t-refused"), count(total - refused[0][1]));
  if (then) put($("t-steps"), count((sum("steps") - then.models.reduce((n, m) => n + m.steps, 0)) / seconds));
  for (const model of now.models) showModel(model, then && then.models.find((m) => m.name === model.name), seconds);
  showEvents(now.events);
  if (!before) showModels(now.models);
  state(!now.live ? "Stuck" : now.ready ? "Serving" : "Draining", now.ready ? "good" : "bad");
  before = now;
}

async function poll() {
  if (!document.hidden) {
    try {
      const secret = token.get(), headers = secret ? { authorization: `Bearer ${secret}` } : {};
      const answer = await fetch("live", { cache: "no-store", headers, signal: AbortSignal.timeout(5000) });
      $("token").hidden = answer.status !== 401;
      if (answer.ok) show(await answer.json());
      else state(answer.status !== 401 ? `Error ${answer.status}` : secret ? "Wrong token" : "Needs a token", "bad");
    } catch {
      state("No connection", "bad");
    }
  }
  setTimeout(poll, 1000);
}

$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(event.target.querySelector("input").value.trim());
});
const redraw = () => models.forEach((found) => Object.values(found.plots).forEach((plot) => plot.draw()));
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
poll();
