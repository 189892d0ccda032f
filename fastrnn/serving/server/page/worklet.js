// Resamples sound to the model's rate and cuts it into blocks. A windowed sinc of 24 zero crossings a side.
const common = (a, b) => b ? common(b, a % b) : a;
const sinc = (t) => t ? Math.sin(Math.PI * t) / (Math.PI * t) : 1;

class Resampler {
  constructor(from, to) {
    const g = common(from, to);
    this.up = to / g; this.down = from / g; // output n is at input n * down / up
    const cut = .95 * Math.min(1, to / from);
    this.half = this.up === this.down ? 0 : Math.ceil(24 / cut);
    this.phases = [];
    for (let p = 0; this.half && p < this.up; p++) {
      const taps = Float64Array.from({ length: 2 * this.half }, (_, i) => {
        const t = i + 1 - this.half - p / this.up, w = t / this.half;
        return Math.abs(w) >= 1 ? 0 : sinc(cut * t) * (.42 + .5 * Math.cos(Math.PI * w) + .08 * Math.cos(2 * Math.PI * w));
      });
      const sum = taps.reduce((a, b) => a + b);
      this.phases.push(taps.map((v) => v / sum));
    }
    this.kept = new Float32Array(Math.max(0, this.half - 1)); // input from `first` on; silence before the sound
    this.first = -this.kept.length;
    this.n = 0;
  }
  push(sound) {
    if (!this.half) return sound;
    const { half, up, down } = this, x = new Float32Array(this.kept.length + sound.length), y = [];
    x.set(this.kept); x.set(sound, this.kept.length);
    const end = this.first + x.length;
    let base;
    while ((base = Math.floor(this.n * down / up)) + half < end) {
      const taps = this.phases[this.n * down % up], at = base + 1 - half - this.first;
      let sum = 0;
      for (let i = 0; i < taps.length; i++) sum += x[at + i] * taps[i];
      y.push(sum);
      this.n++;
    }
    const keep = base + 1 - half - this.first;
    this.kept = x.slice(keep); this.first += keep;
    return Float32Array.from(y);
  }
}

registerProcessor("blocks", class extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate, block } }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.block = new Float32Array(block); this.filled = 0;
  }
  process([channels]) {
    if (!channels.length) return true;
    let mono = channels[0];
    if (channels.length > 1) mono = mono.map((_, i) => channels.reduce((sum, c) => sum + c[i], 0) / channels.length);
    let sound = this.resampler.push(mono);
    while (sound.length) {
      const taken = sound.subarray(0, this.block.length - this.filled);
      this.block.set(taken, this.filled);
      this.filled += taken.length;
      sound = sound.subarray(taken.length);
      if (this.filled === this.block.length) { this.port.postMessage(this.block.slice()); this.filled = 0; }
    }
    return true;
  }
});
