/* Samples a code map from the prior and decodes it, in the browser; the page is book/draw.md.

   DRAW, the weights, comes from draw-weights.js (tools/export_page.py). Layers have the names that
   they have in oasis_helpers/causal.py; the sampler computes of each position only what is new, as
   oasis_helpers/sampling.py does. */
"use strict";

/* ------------------------------------------------------------------------------- products */
/* Vectors of `channels` on a grid; channels last, as in Keras. */
class FeatureMap {
  constructor(height, width, channels, data = new Float32Array(height * width * channels)) {
    Object.assign(this, { height, width, channels, data });
  }
  /* A map of the vectors that `compute` returns for each row and column. */
  static of(height, width, channels, compute) {
    const result = new FeatureMap(height, width, channels);
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++)
        result.at(row, column).set(compute(row, column));
    return result;
  }
  at(row, column = 0) {
    const first = (row * this.width + column) * this.channels;
    return this.data.subarray(first, first + this.channels);
  }
  map(compute) {
    return new FeatureMap(this.height, this.width, this.channels, this.data.map(compute));
  }
}

/* The vector x times a kernel (inputs x outputs, its first number at `first`), plus `start`. */
function product(x, kernel, start, first = 0) {
  const out = start.slice(), outputs = out.length;
  for (let i = 0, at = first; i < x.length; i++, at += outputs) {
    const value = x[i];
    if (value !== 0) for (let o = 0; o < outputs; o++) out[o] += value * kernel[at + o];
  }
  return out;
}

const affine = (x, { kernel, bias }) => product(x, kernel, bias);
const add = (x, y) => x.map((value, i) => value + y[i]);
const sum = (x) => x.reduce((total, value) => total + value, 0);
const relu = (value) => Math.max(value, 0);
const sigmoid = (value) => 1 / (1 + Math.exp(-value));

/* tanh of the first half of the channels times the sigmoid of the second half. */
function gate(x) {
  const half = x.length / 2;
  return x.subarray(0, half).map((value, i) => Math.tanh(value) * sigmoid(x[half + i]));
}

/* A convolution at one position; `top` and `left` are how far it reads above and to the left. */
function convolve(map, { kernel, bias, rows, columns, top, left }, row, column) {
  let out = bias;
  for (let tap = 0; tap < rows * columns; tap++) {
    const i = row - top + Math.floor(tap / columns), j = column - left + (tap % columns);
    if (i >= 0 && i < map.height && j >= 0 && j < map.width)
      out = product(map.at(i, j), kernel, out, tap * map.channels * bias.length);
  }
  return out;
}

/* ------------------------------------------------------------------------------- the prior */
/* A GatedBlock. Its inputs are stored in two maps, where later positions read them. */
class Block {
  constructor(weights, slice, [height, width], filters) {
    Object.assign(this, weights);
    [this.vertical, this.horizontal] = [0, 1].map(() => new FeatureMap(height, width, filters));
    [this.conditionVertical, this.conditionHorizontal] = weights.conditions.map(
      (table) => table.subarray(2 * slice * filters, 2 * (slice + 1) * filters));
    this.toHorizontal = [];
  }
  verticalAt(row, column) {
    const v = convolve(this.vertical, this.conv_vertical, row, column);
    this.toHorizontal[column] = affine(v, this.vertical_to_horizontal);
    return affine(gate(add(v, this.conditionVertical)), this.project_vertical);
  }
  horizontalAt(row, column) {
    const h = convolve(this.horizontal, this.conv_horizontal, row, column);
    const all = add(add(h, this.toHorizontal[column]), this.conditionHorizontal);
    return affine(gate(all), this.project_horizontal);
  }
}

/* A CausalAttention, as a function that remembers the keys and values of earlier positions. */
function attention({ heads, epsilon, project, out }) {
  const keys = [], values = [];
  return (x) => {
    const channels = x.length, mean = sum(x) / channels;
    const variance = sum(x.map((value) => (value - mean) ** 2)) / channels;
    const deviation = Math.sqrt(variance + epsilon);
    const projected = affine(x.map((value) => (value - mean) / deviation), project);
    keys.push(projected.subarray(channels, 2 * channels));
    values.push(projected.subarray(2 * channels));
    const attended = new Float32Array(channels);
    for (let head = 0; head < heads; head++) {
      const start = (head * channels) / heads, end = start + channels / heads;
      const query = projected.subarray(start, end);
      const scores = keys.map((key) => sum(query.map((value, i) => value * key[start + i])));
      const highest = Math.max(...scores), weights = scores.map((s) => Math.exp(s - highest));
      const total = sum(weights);
      weights.forEach((weight, k) => {
        for (let i = start; i < end; i++) attended[i] += (weight / total) * values[k][i];
      });
    }
    return affine(attended, out);
  };
}

/* A GatedPixelCNN, one position after another in reading order. */
class Sampler {
  constructor({ grid, prior }, slice) {
    const [height, width] = grid, filters = prior.position_features.length / height / width;
    Object.assign(this, { prior, width, position: 0, previous: new Float32Array(filters) });
    this.positionFeatures = new FeatureMap(height, width, filters, prior.position_features);
    const blocks = prior.blocks.map((weights) => new Block(weights, slice, grid, filters));
    [this.first, ...this.blocks] = blocks;
    this.attention = blocks.map((_, n) => prior.attention[n] && attention(prior.attention[n]));
  }
  /* Samples the code of the next position, with a random number in [0, 1). */
  next(temperature, uniform) {
    const column = this.position % this.width, row = (this.position - column) / this.width;
    if (column === 0) this.verticalStack(row);
    const known = add(this.positionFeatures.at(row, column), this.previous);
    let x = add(this.first.horizontalAt(row, column), known);
    this.blocks.forEach((block, number) => {
      block.horizontal.at(row, column).set(x);
      x = add(x, block.horizontalAt(row, column));
      if (this.attention[number]) x = add(x, this.attention[number](x));
    });
    const features = add(x, this.verticalFeatures[column]).map(relu);
    const logits = affine(affine(features, this.prior.head).map(relu), this.prior.logits);
    const code = inverseCdf(logits, temperature, uniform), filters = x.length;
    this.previous = this.prior.code_embedding.subarray(code * filters, (code + 1) * filters);
    this.first.vertical.at(row, column).set(this.previous);
    this.first.horizontal.at(row, column).set(this.previous);
    this.position += 1;
    return code;
  }
  verticalStack(row) {
    let features = Array.from({ length: this.width }, (_, column) =>
      add(this.first.verticalAt(row, column), this.positionFeatures.at(row, column)));
    for (const block of this.blocks) {
      features.forEach((x, column) => block.vertical.at(row, column).set(x));
      features = features.map((x, column) => add(x, block.verticalAt(row, column)));
    }
    this.verticalFeatures = features;
  }
}

/* The code where the cumulative probability passes a random number in [0, 1). */
function inverseCdf(logits, temperature, uniform) {
  const highest = Math.max(...logits);
  let total = 0;
  const cumulative = logits.map((value) => (total += Math.exp((value - highest) / temperature)));
  return cumulative.findIndex((value) => value > uniform * total);
}

/* NumPy's default_rng(seed).random(): the generator PCG64, started by a SeedSequence. */
function* randomNumbers(seed) {
  const hash = (constant, factor) => (word) => {
    word ^= constant;
    constant = Math.imul(constant, factor);
    word = Math.imul(word, constant);
    return word ^ (word >>> 16);
  };
  const first = hash(0x43b0d7e5, 0x931e8875), pool = [seed, 0, 0, 0].map(first);
  for (let i = 0; i < 16; i++) {
    const from = i >> 2, to = i & 3;
    if (from === to) continue;
    const word = Math.imul(0xca01f9dd, pool[to]) - Math.imul(0x4973f715, first(pool[from]));
    pool[to] = word ^ (word >>> 16);
  }
  const words = [...pool, ...pool].map(hash(0x8b51f9dd, 0x58f38ded));
  const wide = (...places) =>
    places.reduce((value, place) => (value << 32n) | BigInt(words[place] >>> 0), 0n);
  const odd = (wide(5, 4, 7, 6) << 1n) | 1n;
  const step = (state) => BigInt.asUintN(128, state * 0x2360ed051fc65da44385df649fccf645n + odd);
  for (let state = step(odd + wide(1, 0, 3, 2)); ; ) {
    state = step(state);
    const word = BigInt.asUintN(64, state ^ (state >> 64n)), turn = state >> 122n;
    const turned = BigInt.asUintN(64, (word >> turn) | (word << (64n - turn)));
    yield Number(turned >> 11n) / 2 ** 53;
  }
}

/* ----------------------------------------------------------------------------- the decoder */
const STEPS = {
  convolve: (map, layer) =>
    FeatureMap.of(map.height, map.width, layer.bias.length, (row, column) =>
      convolve(map, layer, row, column)),
  residual: (map, { conv3x3, conv1x1 }) => {
    const { data } = STEPS.convolve(STEPS.convolve(map.map(relu), conv3x3).map(relu), conv1x1);
    return map.map((value, i) => value + data[i]);
  },
  /* A transposed convolution without overlap: each position paints `rows` x `columns`. */
  upsample: (map, { kernel, bias, rows, columns }) =>
    FeatureMap.of(map.height * rows, map.width * columns, bias.length, (row, column) => {
      const x = map.at(Math.floor(row / rows), Math.floor(column / columns));
      const tap = (row % rows) * columns + (column % columns);
      return product(x, kernel, bias, tap * map.channels * bias.length);
    }),
  relu: (map) => map.map(relu),
  sigmoid: (map) => map.map(sigmoid),
};

/* The grey values in [0, 1] of a code map's region of interest. */
function decode({ grid: [height, width], codebook, decoder, colours }, codes) {
  const entries = new FeatureMap(colours.length, 1, codebook.length / colours.length, codebook);
  const vectors = FeatureMap.of(height, width, entries.channels, (row, column) =>
    entries.at(codes[row * width + column]));
  return decoder.reduce((map, step) => STEPS[step.kind](map, step), vectors);
}

/* -------------------------------------------------------------------------------- the page */
function unpacked({ model, weights }) {
  const text = atob(weights), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const numbers = new Float32Array(bytes.buffer);
  return JSON.parse(model, (_, item) => (item?.to ? numbers.subarray(item.from, item.to) : item));
}

const element = (name) => document.getElementById(`draw-${name}`);
const model = unpacked(DRAW), [height, width] = model.grid, codes = Array(height * width).fill(-1);
const positions = addButtons("map", codes.length, (position) => {
  write(position, chosen);
  showSlice();
});
const palette = addButtons("palette", model.palette.length, choose);
let chosen, run = 0;

/* Buttons in a group, which is one stop of the Tab key; arrow keys move inside it. */
function addButtons(name, count, press) {
  const group = element(name), buttons = Array.from({ length: count }, (_, number) => {
    const button = group.appendChild(document.createElement("button"));
    return Object.assign(button, { onclick: () => press(number), tabIndex: number ? -1 : 0 });
  });
  group.addEventListener("focusin", ({ target }) =>
    buttons.forEach((button) => (button.tabIndex = button === target ? 0 : -1)));
  group.addEventListener("keydown", (event) => {
    const columns = buttons.filter(({ offsetTop }) => offsetTop === buttons[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step) event.preventDefault(); // the page would scroll
    buttons[buttons.indexOf(event.target) + step]?.focus();
  });
  return buttons;
}

function choose(number) {
  chosen = model.palette[number].code;
  palette.forEach((button, other) => (button.ariaPressed = other === number));
}

/* Writes a code at a position of the map; -1 for none. */
function write(position, code) {
  const place = `row ${Math.floor(position / width)}, column ${position % width}`;
  positions[position].title = `${place}: ${code < 0 ? "no code yet" : `code ${code}`}`;
  positions[position].style.backgroundColor = model.colours[code] ?? "";
  codes[position] = code;
}

function showSlice() {
  const slice = decode(model, codes.map((code) => (code < 0 ? model.background : code)));
  const context = element("slice").getContext("2d");
  const image = context.createImageData(slice.width, slice.height);
  slice.data.forEach((grey, i) => image.data.set([255 * grey, 255 * grey, 255 * grey, 255], 4 * i));
  context.putImageData(image, 0, 0);
}

async function sample() {
  const current = ++run, start = performance.now();
  const [slice, temperature, seed] = ["index", "temperature", "seed"].map((n) => element(n).value);
  element("status").textContent = `Sampling ${codes.length} codes ...`;
  element("python").textContent =
    `sample_codes(models.prior, 1, slice_index=${slice}, temperature=${temperature}, seed=${seed})`;
  codes.forEach((_, position) => write(position, -1));
  const sampler = new Sampler(model, Number(slice)), random = randomNumbers(Number(seed));
  while (sampler.position < codes.length) {
    if (sampler.position % 2 === 0) await new Promise(requestAnimationFrame); // two codes a frame
    if (current !== run) return; // the button was pressed again
    write(sampler.position, sampler.next(Math.fround(temperature), random.next().value));
    if (sampler.position % width === 0) showSlice();
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  element("status").textContent = `Sampled ${codes.length} codes in ${seconds} seconds.`;
}

model.palette.forEach(({ code, patch }, number) => {
  palette[number].title = `code ${code}`;
  palette[number].style.background = `url(${patch}) 0 0 / cover`;
  palette[number].style.borderColor = model.colours[code];
});
choose(0);
element("form").onsubmit = (event) => {
  event.preventDefault();
  sample();
};
sample();
