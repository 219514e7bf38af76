"use strict";

// The generator and the discriminator of a run, computed in the browser, and what one can do with
// them. No library and no network. The first half of the file is the arithmetic; it needs no page,
// and the tests run it in Node. report/export_js.py writes the steps and explains them.

// --- Arrays as text ---

// The bytes of a base64 text.
function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// What export_js.encode wrote, as a typed array. Weights are integers, with a scale for each row.
function decode(array) {
  const buffer = bytesOf(array.data).buffer;
  if (array.type === "int32") return new Int32Array(buffer);
  if (array.type === "float32") return new Float32Array(buffer);
  const integers = new Int16Array(buffer);
  const scale = decode(array.scale);
  const weight = new Float32Array(integers.length);
  const columns = weight.length / scale.length;
  for (let row = 0, i = 0; row < scale.length; row++) {
    for (let column = 0; column < columns; column++, i++) weight[i] = integers[i] * scale[row];
  }
  return weight;
}

// --- Layers ---
// Each has a way forward, from the arrays x that it reads to the array y that it writes, and a way
// back, from dy to dx: how much the result changes with each value. The way back adds to dx, as
// several steps may read one array.

const layers = {};

// A convolution goes from a wide image to a narrow one, a transposed one from narrow to wide; the
// way back of each is the way forward of the other.
const between = (there, andBack) => ({
  forward(step, [x], y) {
    fill(y, step.bias);
    there(step, x, y);
  },
  backward(step, x, y, dy, [dx]) {
    andBack(step, dy, dx);
  },
});
layers.convolution = between(gather, scatter);
layers.transposed = between(scatter, gather);

function fill(y, bias) {
  for (let i = 0; i < y.length; i++) y[i] = bias[i % bias.length];
}

// Add to each place of the narrow image what its weights make of the places of the wide one that
// the kernel covers there: a product of matrices.
function gather({ places, weight, covered, wide, narrow }, from, to) {
  for (let tap = 0, i = 0; tap < places.length; tap++) {
    const place = places[tap];
    for (let c = 0; c < wide[2]; c++, i++) covered[i] = place < 0 ? 0 : from[place + c];
  }
  addProduct(covered, weight, weight.length / narrow[2], to);
}

// The same in the other direction.
function scatter({ places, transposed, covered, wide, narrow }, from, to) {
  covered.fill(0);
  addProduct(from, transposed, narrow[2], covered);
  for (let tap = 0, i = 0; tap < places.length; tap++) {
    const place = places[tap];
    for (let c = 0; c < wide[2]; c++, i++) if (place >= 0) to[place + c] += covered[i];
  }
}

// For each place of the narrow image and each tap of the kernel: where the place of the wide image
// that it covers begins, or -1 outside.
function coveredPlaces({ wide: [height, width, channels], narrow, kernel, stride, padding }) {
  const places = [];
  for (let row = 0; row < narrow[0]; row++) {
    for (let column = 0; column < narrow[1]; column++) {
      for (let tapY = 0; tapY < kernel[0]; tapY++) {
        for (let tapX = 0; tapX < kernel[1]; tapX++) {
          const y = stride[0] * row + tapY - padding[0];
          const x = stride[1] * column + tapX - padding[1];
          const inside = y >= 0 && y < height && x >= 0 && x < width;
          places.push(inside ? (y * width + x) * channels : -1);
        }
      }
    }
  }
  return Int32Array.from(places);
}

function transpose(matrix, rows) {
  const columns = matrix.length / rows;
  const result = new Float32Array(matrix.length);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) result[column * rows + row] = matrix[i];
  }
  return result;
}

// Add to y (n, m) the products of all rows of a (n, length) with all rows of b (m, length). In
// blocks of 4 x 4, since a number that is fetched once is used four times: this takes most of the
// time of the page.
function addProduct(a, b, length, y) {
  const n = a.length / length;
  const m = b.length / length;
  const blockRows = n - (n % 4);
  const blockColumns = m - (m % 4);
  for (let column = 0; column < blockColumns; column += 4) {
    const b0 = column * length, b1 = b0 + length, b2 = b1 + length, b3 = b2 + length;
    for (let row = 0; row < blockRows; row += 4) {
      const a0 = row * length, a1 = a0 + length, a2 = a1 + length, a3 = a2 + length;
      let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
      for (let k = 0; k < length; k++) {
        const w0 = b[b0 + k], w1 = b[b1 + k], w2 = b[b2 + k], w3 = b[b3 + k];
        const x0 = a[a0 + k], x1 = a[a1 + k], x2 = a[a2 + k], x3 = a[a3 + k];
        s00 += x0 * w0; s01 += x0 * w1; s02 += x0 * w2; s03 += x0 * w3;
        s10 += x1 * w0; s11 += x1 * w1; s12 += x1 * w2; s13 += x1 * w3;
        s20 += x2 * w0; s21 += x2 * w1; s22 += x2 * w2; s23 += x2 * w3;
        s30 += x3 * w0; s31 += x3 * w1; s32 += x3 * w2; s33 += x3 * w3;
      }
      const t0 = row * m + column, t1 = t0 + m, t2 = t1 + m, t3 = t2 + m;
      y[t0] += s00; y[t0 + 1] += s01; y[t0 + 2] += s02; y[t0 + 3] += s03;
      y[t1] += s10; y[t1 + 1] += s11; y[t1 + 2] += s12; y[t1 + 3] += s13;
      y[t2] += s20; y[t2 + 1] += s21; y[t2 + 2] += s22; y[t2 + 3] += s23;
      y[t3] += s30; y[t3 + 1] += s31; y[t3 + 2] += s32; y[t3 + 3] += s33;
    }
  }
  for (let row = 0; row < n; row++) { // what is left over
    for (let column = row < blockRows ? blockColumns : 0; column < m; column++) {
      let sum = 0;
      for (let k = 0, i = row * length, j = column * length; k < length; k++, i++, j++) {
        sum += a[i] * b[j];
      }
      y[row * m + column] += sum;
    }
  }
}

layers.affine = {
  forward(step, [x], y) {
    const { scale, shift } = step;
    const n = scale.length;
    for (let i = 0; i < y.length; i++) y[i] = x[i] * scale[i % n] + shift[i % n];
  },
  backward(step, x, y, dy, [dx]) {
    const { scale } = step;
    for (let i = 0; i < dy.length; i++) dx[i] += dy[i] * scale[i % scale.length];
  },
};

// ReLU is the leaky one of slope 0.
layers.leaky = {
  forward(step, [x], y) {
    for (let i = 0; i < y.length; i++) y[i] = x[i] > 0 ? x[i] : step.slope * x[i];
  },
  backward(step, [x], y, dy, [dx]) {
    for (let i = 0; i < dy.length; i++) dx[i] += x[i] > 0 ? dy[i] : step.slope * dy[i];
  },
};

layers.tanh = {
  forward(step, [x], y) {
    for (let i = 0; i < y.length; i++) y[i] = Math.tanh(x[i]);
  },
  backward(step, x, y, dy, [dx]) {
    for (let i = 0; i < dy.length; i++) dx[i] += dy[i] * (1 - y[i] * y[i]);
  },
};

layers.add = {
  forward({ alpha }, [a, b], y) {
    for (let i = 0; i < y.length; i++) y[i] = a[i] + alpha * b[i];
  },
  backward({ alpha }, x, y, dy, [da, db]) {
    for (let i = 0; i < dy.length; i++) {
      da[i] += dy[i];
      db[i] += alpha * dy[i];
    }
  },
};

layers.multiply = {
  forward(step, [a, b], y) {
    for (let i = 0; i < y.length; i++) y[i] = a[i] * b[i];
  },
  backward(step, [a, b], y, dy, [da, db]) {
    for (let i = 0; i < dy.length; i++) {
      da[i] += dy[i] * b[i];
      db[i] += dy[i] * a[i];
    }
  },
};

// Python has worked out where each value comes from, so that this one layer does for views,
// permutations, slices, concatenations and the pixel unshuffle.
layers.move = {
  forward({ index }, x, y) {
    let start = 0;
    for (const source of x) {
      for (let i = 0; i < y.length; i++) {
        const from = index[i] - start;
        if (from >= 0 && from < source.length) y[i] = source[from];
      }
      start += source.length;
    }
  },
  backward({ index }, x, y, dy, dx) {
    let start = 0;
    for (const source of dx) {
      for (let i = 0; i < dy.length; i++) {
        const from = index[i] - start;
        if (from >= 0 && from < source.length) source[from] += dy[i];
      }
      start += source.length;
    }
  },
};

layers.resample = {
  forward({ channels, count, index, weight }, [x], y) {
    y.fill(0);
    for (let i = 0; i < index.length; i++) {
      const to = Math.floor(i / count) * channels;
      const from = index[i] * channels;
      for (let c = 0; c < channels; c++) y[to + c] += weight[i] * x[from + c];
    }
  },
  backward({ channels, count, index, weight }, x, y, dy, [dx]) {
    for (let i = 0; i < index.length; i++) {
      const to = Math.floor(i / count) * channels;
      const from = index[i] * channels;
      for (let c = 0; c < channels; c++) dx[from + c] += weight[i] * dy[to + c];
    }
  },
};

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}

// --- Networks ---

// A network of the steps that export_js.describe wrote.
class Network {
  constructor({ inputs, steps, output }) {
    this.inputs = inputs.length;
    this.output = output;
    this.steps = steps.map(readStep);
    this.arrays = [
      ...inputs.map((size) => new Float32Array(size)),
      ...steps.map((step) => new Float32Array(step.size)),
    ];
    this.changes = this.arrays.map((array) => new Float32Array(array.length));
  }

  // The output for these inputs. The array is overwritten by the next call.
  forward(...inputs) {
    inputs.forEach((input, i) => this.arrays[i].set(input));
    this.steps.forEach((step, i) => {
      const sources = step.from.map((number) => this.arrays[number]);
      layers[step.op].forward(step, sources, this.arrays[this.inputs + i]);
    });
    return this.arrays[this.output];
  }

  // How the sum of the outputs of the last forward changes with each value of the first input.
  gradient() {
    for (const change of this.changes) change.fill(0);
    this.changes[this.output].fill(1);
    for (let i = this.steps.length - 1; i >= 0; i--) {
      const step = this.steps[i];
      const number = this.inputs + i;
      const sources = step.from.map((source) => this.arrays[source]);
      const changes = step.from.map((source) => this.changes[source]);
      const backward = layers[step.op].backward;
      backward(step, sources, this.arrays[number], this.changes[number], changes);
    }
    return this.changes[0];
  }
}

// A step with its arrays decoded and its tables made.
function readStep(written) {
  const step = { ...written };
  for (const [key, value] of Object.entries(step)) {
    if (value && value.data) step[key] = decode(value);
  }
  if (step.kernel) {
    step.places = coveredPlaces(step);
    step.covered = new Float32Array(step.places.length * step.wide[2]);
    step.transposed = transpose(step.weight, step.narrow[2]);
  }
  return step;
}

// The grey level of a value in [-1, 1], as dataset.to_pixels computes it.
function toPixel(value) {
  return Math.min(Math.max(Math.round((value + 1) * 127.5), 0), 255);
}

function fromPixel(pixel) {
  return pixel / 127.5 - 1;
}

// The mean of the probabilities that each logit stands for.
function probabilityOf(logits) {
  let sum = 0;
  for (const logit of logits) sum += sigmoid(logit);
  return sum / logits.length;
}

// --- Latents ---

// Random numbers from a normal distribution of mean 0 and standard deviation 1 (Box and Muller).
function randomLatent(length) {
  return Float32Array.from({ length }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    return radius * Math.cos(2 * Math.PI * Math.random());
  });
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// The latent a share t of the way from a to b, along a great circle: latents lie near a sphere.
function slerp(a, b, t) {
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(Math.max(cosine, -1), 1));
  const sine = Math.sin(angle);
  const near = sine < 1e-4; // nearly one line: no circle
  const wa = near ? 1 - t : Math.sin((1 - t) * angle) / sine;
  const wb = near ? t : Math.sin(t * angle) / sine;
  return a.map((value, i) => wa * value + wb * b[i]);
}

// Like [1, 2, 3, ...] in a random order.
function shuffled(list) {
  const result = [...list];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

// One of the label vectors of the training set, as frequent as there.
function randomLabels({ rows, counts }) {
  let left = Math.random() * counts.reduce((sum, count) => sum + count, 0);
  const row = counts.findIndex((count) => (left -= count) < 0);
  return rows[row < 0 ? 0 : row];
}

function labelText({ names }, vector) {
  return names.filter((name, i) => vector[i] > 0).join(", ") || "no finding";
}

// --- The page ---

let data, generator, discriminator;
const still = typeof matchMedia === "function" && matchMedia("(prefers-reduced-motion: reduce)");

function find(id) {
  return document.getElementById(id);
}

// A new element with a text and attributes.
function make(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function start() {
  data = JSON.parse(find("data").textContent);
  generator = new Network(data.generator);
  startStudio();
  // The first image is on the screen before the rest is made ready.
  requestAnimationFrame(() => setTimeout(startRest, 0));
}

function startRest() {
  discriminator = new Network(data.discriminator);
  find("disagrees").hidden = agrees();
  show();
  startLearn();
  startGame();
  document.body.dataset.ready = "yes";
}

// Whether this browser computes what PyTorch has computed, to two grey levels and 1 %.
function agrees() {
  const { latent, pixels, logits } = data.check;
  const labels = data.labels ? [data.labels.rows[0]] : [];
  const drawn = forge(latent, labels[0]);
  const same = drawn.every((pixel, i) => Math.abs(pixel - pixels[i]) <= 2);
  const judged = discriminator.forward(Float32Array.from(pixels, fromPixel), ...labels);
  const near = (a, b) => Math.abs(a - b) < 0.01 * (1 + Math.abs(a));
  return same && logits.every((logit, i) => near(logit, judged[i]));
}

// The pixels that the forger makes of a latent, 0 to 255.
function forge(latent, labels) {
  const values = generator.forward(latent, ...(labels ? [labels] : []));
  return Uint8ClampedArray.from(values, toPixel);
}

// The probability that the detective gives to pixels; the network's gradient is that of this call.
function judge(pixels, labels) {
  const values = Float32Array.from(pixels, fromPixel);
  return probabilityOf(discriminator.forward(values, ...(labels ? [labels] : [])));
}

// Show a picture in a canvas, each of its places as one pixel; the browser enlarges them.
// colourOf: returns the red, green and blue of a place.
function paint(canvas, colourOf) {
  const [height, width] = data.shape;
  canvas.width = width;
  canvas.height = height;
  const picture = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) picture.data.set([...colourOf(i), 255], 4 * i);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function paintPixels(canvas, pixels) {
  if (data.shape[2] === 3) paint(canvas, (i) => pixels.subarray(3 * i, 3 * i + 3));
  else paint(canvas, (i) => [pixels[i], pixels[i], pixels[i]]);
}

// Show a change of each place, -1 to 1, in colours: orange is brighter, blue is darker.
// base: grey levels below it.
function paintChange(canvas, change, base) {
  paint(canvas, (i) => {
    const share = Math.min(Math.abs(change[i]), 1);
    const colour = change[i] > 0 ? [255, 140, 60] : [60, 160, 255];
    return colour.map((value) => (1 - share) * base[i] + share * value);
  });
}

// The sum over the colours of each place.
function sumColours(values) {
  const channels = data.shape[2];
  const sums = new Float32Array(values.length / channels);
  values.forEach((value, i) => (sums[Math.floor(i / channels)] += value));
  return sums;
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

// --- The studio ---

const studio = {
  home: null, // the latent that Reset returns to
  latent: null,
  labels: null, // a vector, if the run has learned labels
  forged: null, // the pixels that the forger made of them
  drawn: null, // what was drawn by hand, added to these
  shown: null, // both
  waiting: false, // for the next frame of the screen
  fresh: false, // whether the forger has to draw anew in it
};

function startStudio() {
  studio.labels = data.labels && [...randomLabels(data.labels)];
  startKnobs();
  startChoices();
  find("new").addEventListener("click", newImage);
  find("reset").addEventListener("click", goHome);
  find("walk").addEventListener("click", toggleWalk);
  find("follow").addEventListener("click", followMap);
  find("clean").addEventListener("click", removeDrawing);
  startBrushes();
  studio.home = randomLatent(data.check.latent.length);
  studio.latent = studio.home;
  studio.fresh = true;
  show();
}

function newImage() {
  studio.home = randomLatent(studio.latent.length);
  goHome();
}

function goHome() {
  stopWalk();
  moveTo(studio.home);
}

// Go to another latent.
function moveTo(latent) {
  studio.latent = latent;
  update(true);
}

// Bring the page up to date in the next frame of the screen; fresh: the forger draws anew.
function update(fresh) {
  studio.fresh ||= fresh;
  if (!studio.waiting) requestAnimationFrame(show);
  studio.waiting = true;
}

function show() {
  if (studio.fresh) {
    const before = performance.now();
    studio.forged = forge(studio.latent, studio.labels);
    showSpeed(performance.now() - before);
    studio.drawn = new Int16Array(studio.forged.length);
    showKnobs();
  }
  studio.waiting = studio.fresh = false;
  studio.shown = studio.forged.map((pixel, i) => pixel + studio.drawn[i]); // it is clamped
  paintPixels(find("image"), studio.shown);
  if (discriminator) showVerdict();
}

// How fast this device draws, from the last images.
const durations = [];
function showSpeed(duration) {
  durations.push(duration);
  if (durations.length > 20) durations.shift();
  const mean = durations.reduce((a, b) => a + b) / durations.length;
  if (durations.length >= 5) {
    find("speed").textContent = `Your device takes ${mean.toFixed(0)} ms for an image.`;
  }
}

let announcing;
function showVerdict() {
  const probability = judge(studio.shown, studio.labels);
  const text = `${percent(probability)} ${data.original}`;
  find("needle").style.left = `${100 * probability}%`;
  find("verdict").textContent = text;
  find("meter").setAttribute("aria-valuenow", Math.round(100 * probability));
  find("meter").setAttribute("aria-valuetext", text);
  // Said aloud once the picture is at rest.
  clearTimeout(announcing);
  announcing = setTimeout(() => (find("spoken").textContent = `The detective: ${text}.`), 800);

  const logits = discriminator.arrays[discriminator.output];
  if (logits.length > 1) {
    const each = Array.from(logits, (logit) => percent(sigmoid(logit))).join(" and ");
    find("opinions").textContent = ` It has several opinions, ${each}: shown is their mean.`;
  }
  // In the map, 1 is the gradient of the strongest hundredth; the picture is faint below it.
  const change = sumColours(discriminator.gradient());
  const sizes = change.map(Math.abs).sort();
  const strong = sizes[Math.floor(0.99 * (sizes.length - 1))] || 1;
  const faint = sumColours(studio.shown).map((sum) => 30 + (0.4 * sum) / data.shape[2]);
  paintChange(find("map"), change.map((value) => value / strong), faint);
}

const FOLLOW = 2; // grey levels, at most

// Change each pixel a little in the direction that the detective likes (Goodfellow et al. 2015).
function followMap() {
  stopWalk(); // or the next picture of the walk would take its place
  judge(studio.shown, studio.labels);
  const gradient = discriminator.gradient();
  const channels = data.shape[2];
  const largest = gradient.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
  for (let i = 0; i < gradient.length; i++) {
    const step = FOLLOW * Math.min(1, (4 * Math.abs(gradient[i])) / largest);
    draw(i, Math.sign(gradient[i]) * Math.round(step));
  }
  update(false);
}

function removeDrawing() {
  studio.drawn.fill(0);
  update(false);
}

// Add to a value of the picture, within what a screen can show.
function draw(i, change) {
  const value = studio.forged[i] + studio.drawn[i] + change;
  studio.drawn[i] = Math.min(Math.max(value, 0), 255) - studio.forged[i];
}

// --- The knobs ---

function startKnobs() {
  document.querySelectorAll("#knobs .knob").forEach((row, number) => {
    const values = new Int8Array(bytesOf(data.effects[number]).buffer);
    const change = Array.from(values, (value) => value / 127);
    paintChange(row.querySelector("canvas"), change, values.map(() => 90));
    const input = row.querySelector("input");
    input.addEventListener("input", () => turnKnob(number, Number(input.value)));
  });
}

// Move the latent along a direction, to this many standard deviations.
function turnKnob(number, value) {
  stopWalk();
  const direction = data.directions[number];
  const step = value - dot(studio.latent, direction);
  moveTo(studio.latent.map((number, i) => number + step * direction[i]));
}

function showKnobs() {
  data.directions.forEach((direction, number) => {
    const value = dot(studio.latent, direction);
    const text = `${value < -0.05 ? "\u2212" : "+"}${Math.abs(value).toFixed(1)} SD`;
    const row = find("knobs").children[number];
    const input = row.querySelector("input");
    // Not while its own thumb moves: rounding to a step would hold it back.
    if (document.activeElement !== input || Math.abs(input.value - value) > 0.03) {
      input.value = value;
    }
    input.setAttribute("aria-valuetext", `${value.toFixed(1)} standard deviations`);
    row.querySelector("output").textContent = text;
  });
}

function startChoices() {
  for (const input of document.querySelectorAll("#choices input")) {
    input.checked = studio.labels[input.value] > 0;
    input.addEventListener("change", () => {
      if (!data.labels.several) studio.labels.fill(0);
      studio.labels[input.value] = input.checked ? 1 : 0;
      update(true);
    });
  }
}

// --- A walk from latent to latent ---

const STROLL = 4000; // milliseconds from one latent to the next
let walk = null;

function toggleWalk() {
  if (walk) return stopWalk();
  walk = { from: studio.latent, to: randomLatent(studio.latent.length), since: performance.now() };
  find("walk").setAttribute("aria-pressed", "true");
  stroll();
}

function stopWalk() {
  walk = null;
  find("walk").setAttribute("aria-pressed", "false");
}

function stroll() {
  if (!walk) return;
  const share = (performance.now() - walk.since) / STROLL;
  moveTo(slerp(walk.from, walk.to, Math.min(share, 1)));
  if (share >= 1) {
    walk = { from: walk.to, to: randomLatent(studio.latent.length), since: performance.now() };
  }
  // Those who want no motion get a new picture each second.
  if (still.matches) setTimeout(stroll, 1000);
  else requestAnimationFrame(stroll);
}

// --- The brushes ---

const BRUSH = { brighter: 40, darker: -40 }; // grey levels in the middle of a stroke
const spot = { row: 0, column: 0 }; // where the arrow keys are

function brush() {
  return document.querySelector("#brushes input:checked").value;
}

function startBrushes() {
  const canvas = find("image");
  [spot.row, spot.column] = data.shape.map((size) => Math.floor(size / 2));
  find("brushes").addEventListener("change", () => {
    const on = brush() !== "none";
    canvas.classList.toggle("brush", on);
    canvas.tabIndex = on ? 0 : -1;
    const label = on ? "The picture: arrow keys move, Space draws" : "The image that the forger draws";
    canvas.setAttribute("aria-label", label);
    if (on) stopWalk();
    if (!on) find("cursor").hidden = true;
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (brush() === "none") return;
    canvas.setPointerCapture(event.pointerId);
    stroke(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (brush() !== "none" && event.buttons) stroke(event);
  });
  canvas.addEventListener("keydown", moveSpot);
  canvas.addEventListener("blur", () => (find("cursor").hidden = true));
}

function stroke(event) {
  const [height, width] = data.shape;
  const box = find("image").getBoundingClientRect();
  const row = Math.floor(((event.clientY - box.top) / box.height) * height);
  const column = Math.floor(((event.clientX - box.left) / box.width) * width);
  dab(row, column);
}

// Draw on a pixel, and half as much on its neighbours.
function dab(row, column) {
  const [height, width, channels] = data.shape;
  const kind = brush();
  for (let y = row - 1; y <= row + 1; y++) {
    for (let x = column - 1; x <= column + 1; x++) {
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      const middle = y === row && x === column;
      for (let c = 0; c < channels; c++) {
        const i = (y * width + x) * channels + c;
        if (kind === "erase") studio.drawn[i] = 0;
        else draw(i, middle ? BRUSH[kind] : BRUSH[kind] / 2);
      }
    }
  }
  update(false);
}

function moveSpot(event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const [height, width] = data.shape;
  if (brush() === "none" || !(event.key in moves || event.key === " ")) return;
  event.preventDefault(); // else the page would scroll
  const [down, right] = moves[event.key] || [0, 0];
  spot.row = Math.min(Math.max(spot.row + down, 0), height - 1);
  spot.column = Math.min(Math.max(spot.column + right, 0), width - 1);
  if (event.key === " ") dab(spot.row, spot.column);
  const cursor = find("cursor");
  cursor.hidden = false;
  cursor.style.left = `${(100 * spot.column) / width}%`;
  cursor.style.top = `${(100 * spot.row) / height}%`;
  cursor.style.width = `${100 / width}%`;
  cursor.style.height = `${100 / height}%`;
}

// --- The epochs ---

function startLearn() {
  if (!data.learn) return;
  const sprite = new Image();
  sprite.addEventListener("load", () => {
    find("epoch").addEventListener("input", () => showEpoch(sprite));
    showEpoch(sprite);
  });
  sprite.src = data.learn.picture;
}

function showEpoch(sprite) {
  const { epochs, history, latents } = data.learn;
  const [height, width] = data.shape;
  const place = Number(find("epoch").value);
  const epoch = epochs[place];
  const row = history.find((row) => row.epoch === epoch);
  find("epoch-number").textContent = `${epoch} of ${data.allEpochs}`;
  find("epoch").setAttribute("aria-valuetext", `epoch ${epoch}`);
  find("epoch-text").textContent = row ? row.text : "No numbers were recorded for this epoch.";

  const columns = Math.ceil(Math.sqrt(latents));
  const canvas = find("epochs");
  canvas.width = columns * (width + 1) - 1;
  canvas.height = Math.ceil(latents / columns) * (height + 1) - 1;
  const context = canvas.getContext("2d");
  for (let i = 0; i < latents; i++) {
    const x = (i % columns) * (width + 1);
    const y = Math.floor(i / columns) * (height + 1);
    context.drawImage(sprite, i * width, place * height, width, height, x, y, width, height);
  }
  canvas.dataset.epoch = epoch;

  if (history.length > 0) showInCurves(epoch, row);
}

// Mark an epoch in the curves of play.html.jinja. row: its row of the history, if there is one.
function showInCurves(epoch, row) {
  const svg = find("curves");
  const values = ["d_real", "d_fake"].map((key) => (row ? row[key].toFixed(2) : "unknown"));
  svg.setAttribute("aria-label", `D(x) and D(G(z)) in epoch ${epoch}: ${values.join(" and ")}`);
  svg.querySelector("g").setAttribute("visibility", row ? "visible" : "hidden");
  if (!row) return;
  svg.querySelectorAll("polyline").forEach((line, i) => {
    const { x, y } = line.points.getItem(data.learn.history.indexOf(row));
    const point = svg.querySelectorAll("circle")[i];
    point.setAttribute("cx", x);
    point.setAttribute("cy", y);
    for (const end of ["x1", "x2"]) svg.querySelector(".cursor").setAttribute(end, x);
  });
}

// --- The game ---

const HALF = 10; // of the tiles are from the training set
const game = {
  tiles: [], // {pixels, real, labels, probability, answer}
  pool: [], // numbers of the training images that were not shown since they were last shuffled
};

function startGame() {
  find("game-size").textContent = 2 * half();
  find("begin").addEventListener("click", beginGame);
  find("again").addEventListener("click", beginGame);
  find("say-real").addEventListener("click", () => answer(true));
  find("say-forged").addEventListener("click", () => answer(false));
  find("round").addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") answer(true);
    else if (event.key === "ArrowLeft") answer(false);
    else return;
    event.preventDefault();
  });
}

function half() {
  return Math.min(HALF, data.game.count);
}

function beginGame() {
  stopWalk();
  game.tiles = shuffled([...originals(half()), ...forgeries(half())]);
  for (const part of ["intro", "end"]) find(part).hidden = true;
  find("round").hidden = false;
  showTile();
  find("say-forged").focus();
}

// Training images that were not in the last games, as long as there are any.
function originals(count) {
  const values = bytesOf(data.game.real);
  const size = values.length / data.game.count;
  return Array.from({ length: count }, () => {
    if (game.pool.length === 0) game.pool = shuffled(Array(data.game.count).keys());
    const number = game.pool.pop();
    const pixels = Uint8ClampedArray.from(values.subarray(number * size, (number + 1) * size));
    return newTile(pixels, true, data.game.labels && data.game.labels[number]);
  });
}

function forgeries(count) {
  return Array.from({ length: count }, () => {
    const labels = data.labels && randomLabels(data.labels);
    return newTile(forge(randomLatent(data.check.latent.length), labels), false, labels);
  });
}

function newTile(pixels, real, labels) {
  return { pixels, real, labels, probability: judge(pixels, labels), answer: null };
}

function showTile() {
  const number = game.tiles.findIndex((tile) => tile.answer === null);
  const tile = game.tiles[number];
  paintPixels(find("tile"), tile.pixels);
  find("count").textContent = `Image ${number + 1} of ${game.tiles.length}`;
  find("tile-label").textContent = tile.labels ? `, ${labelText(data.labels, tile.labels)}` : "";
  const said = `${find("count").textContent}${find("tile-label").textContent}`;
  find("game-spoken").textContent = said;
}

function answer(real) {
  const tile = game.tiles.find((tile) => tile.answer === null);
  if (!tile) return;
  tile.answer = real;
  if (game.tiles.every((tile) => tile.answer !== null)) endGame();
  else showTile();
}

// How many of these tiles someone was right about; said: what they said of a tile.
function right(tiles, said) {
  return tiles.filter((tile) => said(tile) === tile.real).length;
}

const YOU = (tile) => tile.answer;
const DETECTIVE = (tile) => tile.probability > 0.5;

function endGame() {
  const { tiles } = game;
  const [yours, its] = [YOU, DETECTIVE].map((said) => right(tiles, said));
  const won = yours > its ? "You win." : yours < its ? "The detective wins." : "A draw.";
  const score = `You told ${yours} of ${tiles.length} right, the detective ${its}. ${won}`;
  find("score").textContent = score;
  find("game-spoken").textContent = score;
  fillConfusion(find("confusion").tBodies[0]);
  const { fresh } = data.game;
  find("fresh").textContent = fresh
    ? "A fresh detective, trained from scratch for the report, told " +
      `${percent(fresh.accuracy)} of ${fresh.images} other images right.`
    : "";
  find("revealed").replaceChildren(...tiles.map(reveal));
  find("round").hidden = true;
  find("end").hidden = false;
  find("end").focus();
}

function fillConfusion(body) {
  const groups = [
    [data.originals, game.tiles.filter((tile) => tile.real)],
    ["forgeries", game.tiles.filter((tile) => !tile.real)],
  ];
  body.replaceChildren(
    ...groups.map(([name, tiles]) => {
      const row = make("tr");
      const counts = [YOU, DETECTIVE].flatMap((said) => {
        const real = tiles.filter(said).length;
        return [make("td", real), make("td", tiles.length - real)];
      });
      row.append(make("th", `${tiles.length} ${name}`, { scope: "row" }), ...counts);
      return row;
    }),
  );
}

function reveal(tile) {
  const figure = make("figure");
  const picture = make("canvas", "", { role: "img", "aria-label": nameOf(tile.real) });
  paintPixels(picture, tile.pixels);
  const caption = make("figcaption");
  const [sign, kind] = tile.answer === tile.real ? ["\u2713", "right"] : ["\u2717", "wrong"];
  caption.append(
    make("b", nameOf(tile.real)),
    make("br"),
    make("span", `you: ${nameOf(tile.answer)} ${sign}`, { class: kind }),
    make("br"),
    `detective: ${percent(tile.probability)}`,
  );
  figure.append(picture, caption);
  return figure;
}

function nameOf(real) {
  return real ? data.original : "forged";
}

if (typeof document === "undefined") module.exports = { Network };
else start();
