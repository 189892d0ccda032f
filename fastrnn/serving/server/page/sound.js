// Where sound comes from, and the inputs that models take instead of samples.

// The log filterbank of examples/features.py: 25 ms of sound at 16 kHz -> 20 bands; a step is 160 new samples.
export class Bands {
  constructor() {
    const SIZE = 400, N = 512, ratio = 20 ** (1 / 19), edge = (i) => 200 * ratio ** (i - 1);
    this.frame = new Float32Array(SIZE);
    this.hann = Float64Array.from({ length: SIZE }, (_, i) => .5 - .5 * Math.cos(2 * Math.PI * i / (SIZE - 1)));
    this.bank = Array.from({ length: 20 }, (_, b) => {
      const [low, centre, high] = [edge(b), edge(b + 1), edge(b + 2)], nearest = Math.round(centre * N / 16000);
      return Array.from({ length: N / 2 + 1 }, (_, i) => {
        const f = i * 16000 / N;
        return i === nearest ? 1 : Math.max(0, Math.min((f - low) / (centre - low), (high - f) / (high - centre)));
      });
    });
  }
  // samples: the new ones -> out: the bands.
  push(samples, out) {
    this.frame.copyWithin(0, samples.length);
    this.frame.set(samples, this.frame.length - samples.length);
    const power = spectrum(this.frame.map((v, i) => v * this.hann[i]), 512);
    this.bank.forEach((weights, b) => {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * power[i];
      out[b] = .5 * Math.log10(sum + 1e-3);
    });
  }
}

// |FFT|^2 of real samples, padded to n, a power of two.
function spectrum(samples, n) {
  const re = new Float64Array(n), im = new Float64Array(n);
  for (let i = 0, j = 0; i < n; i++) { // in the order of reversed bits
    re[j] = samples[i] || 0;
    let bit = n >> 1;
    while (bit && j & bit) { j ^= bit; bit >>= 1; }
    j |= bit;
  }
  for (let size = 2; size <= n; size *= 2) {
    for (let k = 0; k < size / 2; k++) {
      const c = Math.cos(2 * Math.PI * k / size), s = -Math.sin(2 * Math.PI * k / size);
      for (let a = k; a < n; a += size) {
        const b = a + size / 2, x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x; im[b] = im[a] - y; re[a] += x; im[a] += y;
      }
    }
  }
  return re.map((v, i) => v * v + im[i] * im[i]);
}

// The three words of the example, one after the other, three times: three tones each.
function tones(context) {
  const rate = context.sampleRate, parts = [], words = [[500, 900, 1600], [1600, 900, 500], [900, 1600, 500]];
  const silence = (s) => parts.push(new Float32Array(Math.round(s * rate)));
  silence(.5);
  for (let k = 0; k < 9; k++) {
    for (const pitch of words[k % 3]) {
      const n = Math.round(.1 * rate), edge = .008 * rate;
      parts.push(Float32Array.from({ length: n }, (_, i) => .3 * Math.min(1, i / edge, (n - i) / edge) * Math.sin(2 * Math.PI * pitch * i / rate)));
      silence(.015);
    }
    silence(.7);
  }
  const buffer = context.createBuffer(1, parts.reduce((n, p) => n + p.length, 0), rate);
  parts.reduce((at, part) => { buffer.copyToChannel(part, 0, at); return at + part.length; }, 0);
  return buffer;
}

const REASONS = {
  NotAllowedError: "the browser does not let this page use the microphone: allow it beside the address, then start again",
  NotFoundError: "this device has no microphone: choose a sound file or the test tones",
  NotReadableError: "another program has the microphone",
  EncodingError: "the browser can't read this sound file",
};

// { context, node, end }: an audio node with the sound. Throws an Error that says what to do.
export async function open(kind, rate, file) {
  let context;
  const stop = [];
  try {
    if (kind === "mic") {
      if (!navigator.mediaDevices) throw new Error("browsers give the microphone only to pages from https or localhost");
      const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      const stream = await navigator.mediaDevices.getUserMedia({ audio });
      stop.push(() => stream.getTracks().forEach((track) => track.stop()));
      context = new AudioContext();
      stop.push(() => context.close());
      return { context, node: context.createMediaStreamSource(stream), begin() {}, end: () => stop.forEach((f) => f()) };
    }
    if (kind === "file" && !file) throw new Error("choose a sound file first");
    context = new AudioContext({ sampleRate: rate });
    stop.push(() => context.close());
    const node = context.createBufferSource();
    node.buffer = kind === "file" ? await context.decodeAudioData(await file.arrayBuffer()) : tones(context);
    node.connect(context.destination);
    return { context, node, begin: () => node.start(), end: () => stop.forEach((f) => f()) };
  } catch (error) {
    stop.forEach((f) => f());
    throw REASONS[error.name] ? new Error(REASONS[error.name]) : error;
  }
}
