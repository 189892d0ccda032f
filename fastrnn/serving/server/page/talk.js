// "Talk to it": sound -> the model's steps -> its WebSocket -> a curve, bars and what was heard.
import { drawAnswer } from "./plots.js";
import { Bands, open } from "./sound.js";

const $ = (id) => document.getElementById(`talk-${id}`);
const WORDS = ["rise", "fall", "hop"]; // what the example's model hears
const SECONDS = 10; // that are shown
export const token = { get: () => sessionStorage.getItem("fastrnn.token") ?? "", set: (text) => sessionStorage.setItem("fastrnn.token", text) };
const models = new Map();
let talk = null; // what goes on now

const CLOSED = { 1001: "the server is going away", 1006: "the connection was refused or lost", 1013: "the server is busy: try again in a moment" };

export function showModels(found) {
  for (const model of found) {
    models.set(model.name, model.stream);
    $("model").append(new Option(model.name));
  }
  const first = found.find((m) => m.stream.features > 1);
  if (first) $("model").value = first.name;
  chosen();
  draw();
}

// Fill in what a model most likely takes.
function chosen() {
  const n = models.get($("model").value)?.features;
  $("front").value = n === 20 ? "bands" : "samples";
  $("rate").value = n === 288 ? "8000" : "16000";
  $("new").value = { 576: 512, 288: 256, 20: 160 }[n] ?? n ?? 1; // Silero's frames begin with the end of the one before
  hint();
}

function hint() {
  const stream = models.get($("model").value), bands = $("front").value === "bands", fresh = Number($("new").value);
  $("file").hidden = $("source").value !== "file";
  $("new").disabled = bands;
  if (bands) { $("new").value = 160; $("rate").value = "16000"; }
  let text = "";
  if (!stream || stream.why) text = `This model can't be streamed here: ${stream ? stream.why : "there is none"}.`;
  else if (bands && stream.features !== 20) text = `A step of this model has ${stream.features} numbers, not 20 bands.`;
  else if (bands) text = "A step is 20 log bands of 25 ms of sound, every 10 ms.";
  else if (!(Number.isInteger(fresh) && fresh >= 1 && fresh <= stream.features)) text = `New samples a step must be 1 to ${stream.features}.`;
  $("go").disabled = !talk && text !== "" && !text.startsWith("A step is");
  const rest = stream && stream.features - fresh;
  $("hint").textContent = text || `A step is ${stream.features} samples${rest ? `: the last ${rest} of the step before and ${fresh} new ones` : ""}, ${Math.round(fresh / $("rate").value * 1e4) / 10} ms.`;
}

async function start() {
  const name = $("model").value, stream = models.get(name), front = $("front").value;
  const rate = Number($("rate").value), fresh = Number($("new").value), together = Math.max(1, Math.ceil(rate / 50 / fresh));
  const labels = labelsOf(stream, front);
  const mine = talk = {
    name, rate, fresh, labels, features: stream.features, bands: front === "bands" ? new Bands() : null, frame: new Float32Array(stream.features),
    rows: [], levels: [], shown: [], most: Math.ceil(SECONDS * rate / fresh), low: 0, high: 1, deaf: labels.map(() => 0), heard: [], sound: null, socket: null,
  };
  $("go").textContent = "Stop";
  $("error").textContent = "";
  $("heard").textContent = "nothing yet";
  bars(labels);
  try {
    mine.sound = await open($("source").value, rate, $("file").files[0]);
    if (talk !== mine) return mine.sound.end();
    await mine.sound.context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    mine.socket = await connected(mine);
    const blocks = new AudioWorkletNode(mine.sound.context, "blocks", { numberOfOutputs: 0, processorOptions: { rate, block: fresh * together } });
    blocks.port.onmessage = (message) => send(mine, message.data);
    mine.sound.node.connect(blocks);
    mine.sound.node.onended = () => talk === mine && setTimeout(() => talk === mine && stop(""), 500);
    await mine.sound.context.resume();
    mine.sound.begin();
  } catch (error) {
    if (talk === mine) stop(`It could not start: ${error.message}.`);
  }
}

function stop(error) {
  const { sound, socket } = talk;
  talk = null;
  sound?.end();
  socket?.close(1000);
  $("go").textContent = "Start";
  $("error").textContent = error;
  hint();
}

function labelsOf(stream, front) {
  const [name, dims] = stream.outputs[0], n = dims.reduce((a, b) => a * Math.max(1, b), 1);
  if (front === "bands" && n === 3) return WORDS;
  return n === 1 ? [name] : Array.from({ length: Math.min(n, 12) }, (_, i) => `${name} ${i}`);
}

// The open WebSocket of a talk.
function connected(mine) {
  const url = new URL(`v2/models/${encodeURIComponent(mine.name)}/stream?input=float32&output=json`, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  return new Promise((resolve, reject) => {
    const secret = token.get(), socket = mine.socket = new WebSocket(url, secret ? ["fastrnn", `fastrnn.bearer.${secret}`] : []);
    let refused = "";
    socket.onopen = () => resolve(socket);
    socket.onmessage = (message) => {
      const answer = JSON.parse(message.data);
      if (answer.error) refused = answer.error;
      else if (talk === mine) answered(mine, answer);
    };
    socket.onclose = ({ code }) => {
      const why = refused ? `the model refused: ${refused}` : CLOSED[code] ?? `the connection ended with code ${code}`;
      reject(new Error(why));
      if (talk === mine) stop(`It stopped: ${why}.`);
    };
  });
}

// Steps of new samples.
function send(mine, samples) {
  if (talk !== mine || mine.socket.readyState !== WebSocket.OPEN) return;
  if (mine.socket.bufferedAmount > 4 << 20) return stop("It stopped: the connection is slower than the sound.");
  const steps = samples.length / mine.fresh, data = new Float32Array(steps * mine.features);
  for (let i = 0; i < steps; i++) {
    const fresh = samples.subarray(i * mine.fresh, (i + 1) * mine.fresh), out = data.subarray(i * mine.features, (i + 1) * mine.features);
    if (mine.bands) mine.bands.push(fresh, out);
    else {
      mine.frame.copyWithin(0, mine.fresh);
      mine.frame.set(fresh, mine.features - mine.fresh);
      out.set(mine.frame);
    }
    mine.levels.push(Math.min(1, fresh.reduce((most, v) => Math.max(most, Math.abs(v)), 0)));
  }
  mine.socket.send(data);
}

function answered(mine, { step_index, outputs }) {
  const rows = Object.values(outputs)[0].map((row) => [row].flat(Infinity));
  rows.forEach((row, i) => {
    mine.rows.push(row);
    mine.shown.push(mine.levels.shift() ?? 0);
    if (mine.rows.length > mine.most) { mine.rows.shift(); mine.shown.shift(); }
    row.forEach((v) => { if (v < mine.low) mine.low = v; if (v > mine.high) mine.high = v; });
    hear(mine, row, step_index + i);
  });
  draw();
}

// A value that rises above its threshold is heard; it is not heard again for 0.3 s, and until it has dropped.
function hear(mine, row, step) {
  const limit = mine.labels.length > 1 ? .7 : .5, hold = Math.ceil(.3 * mine.rate / mine.fresh);
  mine.labels.forEach((label, k) => {
    if (mine.deaf[k]) { if (mine.deaf[k] > 1 || row[k] < limit) mine.deaf[k]--; return; }
    if (!(row[k] >= limit)) return;
    mine.deaf[k] = hold;
    mine.heard.push(`${label} at ${(step * mine.fresh / mine.rate).toFixed(1)} s`);
    $("heard").textContent = mine.heard.slice(-6).join(", ");
  });
}

function bars(labels) {
  $("bars").replaceChildren(...labels.map((label) => {
    const row = document.createElement("div"), name = document.createElement("span"), value = document.createElement("span");
    const meter = Object.assign(document.createElement("meter"), { min: 0, max: 1, value: 0 });
    name.textContent = label;
    meter.setAttribute("aria-label", label);
    value.textContent = "–";
    row.append(name, meter, value);
    return row;
  }));
}

// Draw at the next frame, or twice a second for those who want less motion.
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let due = false;
export function draw() {
  if (due) return;
  due = true;
  const later = calm.matches ? (f) => setTimeout(f, 500) : requestAnimationFrame;
  later(() => {
    due = false;
    const { rows, shown, most, low, high } = talk ?? last;
    last = { rows, shown, most, low, high };
    drawAnswer($("plot"), rows, shown, most, low, high);
    const row = rows[rows.length - 1];
    if (row) [...$("bars").children].forEach((bar, k) => {
      bar.children[1].value = row[k];
      bar.children[2].textContent = row[k].toFixed(2);
    });
  });
}
let last = { rows: [], shown: [], most: 2, low: 0, high: 1 };

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (talk) stop("");
  else start();
});
$("model").addEventListener("change", chosen);
for (const id of ["source", "front", "rate", "new"]) $(id).addEventListener("input", hint);
