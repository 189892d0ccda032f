// Plots on canvases, in the colours of the page.
const MOST = 120;

function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`);
}

// The context of a canvas in CSS pixels, cleared: [context, width, height].
function cleared(canvas) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

// A line through values; null is a gap. x and y: functions of index and value.
function line(context, values, x, y, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.beginPath();
  let down = false;
  values.forEach((v, i) => {
    if (v === null || !Number.isFinite(v)) { down = false; return; }
    if (down) context.lineTo(x(i), y(v));
    else { context.moveTo(x(i), y(v)); context.lineTo(x(i) + .01, y(v)); }
    down = true;
  });
  context.stroke();
}

// A round number from `most` up, so that the scale seldom changes.
function ceiling(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].find((n) => n * power >= most * 1.05) * power || 10 * power;
}

// A moving plot of one or two series. text: of the value at the top.
export class Plot {
  constructor(canvas, text, series = 1) {
    this.canvas = canvas; this.text = text;
    this.values = Array.from({ length: series }, () => []);
  }
  add(...values) {
    values.forEach((v, i) => { this.values[i].push(v); if (this.values[i].length > MOST) this.values[i].shift(); });
    this.draw();
  }
  draw() {
    const colour = colours(), [context, width, height] = cleared(this.canvas), low = height - 1;
    const top = ceiling(Math.max(0, ...this.values.flat().filter(Number.isFinite)));
    context.strokeStyle = colour("line");
    context.lineWidth = 1;
    for (const share of [0, .5, 1]) {
      const y = Math.round(low - share * (height - 18)) + .5;
      context.beginPath(); context.moveTo(0, y - .5); context.lineTo(width, y - .5); context.stroke();
    }
    context.fillStyle = colour("muted");
    context.font = "12px system-ui, sans-serif";
    context.fillText(this.text(top), 0, 12);
    const x = (i, n) => width - 3 - (n - 1 - i) * (width - 6) / (MOST - 1);
    const y = (v) => low - 1 - Math.min(v / top, 1.05) * (height - 19);
    if (this.values.length === 1 && this.values[0].length > 1) { // the area below a single line
      const values = this.values[0], n = values.length;
      context.fillStyle = colour("soft");
      context.beginPath();
      context.moveTo(x(0, n), low);
      values.forEach((v, i) => context.lineTo(x(i, n), y(v ?? 0)));
      context.lineTo(x(n - 1, n), low);
      context.fill();
    }
    this.values.map((values, k) => [values, k]).reverse().forEach(([values, k]) => {
      line(context, values, (i) => x(i, values.length), y, colour(k ? "two" : "one"));
    });
  }
}

// Answers between 0 and 1 as lines, and the level of the sound below them. rows: arrays; levels: 0..1 for each row.
export function drawAnswer(canvas, rows, levels, most, low, high) {
  const colour = colours(), [context, width, height] = cleared(canvas), foot = height - 46;
  const x = (i) => width - (rows.length - 1 - i) * width / Math.max(1, most - 1);
  const y = (v) => 4 + (1 - (v - low) / (high - low)) * (foot - 8);
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  for (const share of [0, .5, 1]) {
    const at = Math.round(y(low + share * (high - low))) + .5;
    context.beginPath(); context.moveTo(0, at); context.lineTo(width, at); context.stroke();
  }
  context.fillStyle = colour("muted");
  context.globalAlpha = .55;
  levels.forEach((v, i) => { const h = Math.max(1, v * 38); context.fillRect(x(i), height - 20 - h / 2, Math.max(1, width / most - .5), h); });
  context.globalAlpha = 1;
  const count = rows.length ? Math.min(rows[0].length, 3) : 0;
  for (let k = count - 1; k >= 0; k--) line(context, rows.map((r) => r[k]), x, y, colour(["one", "two", "muted"][k]));
}
