// PaliGemma in plain JavaScript: the model of this course a second time, in another language.
//
// Read it beside the Python files named in the headings: the order is theirs, and whatever exists there keeps its name
// here (GemmaAttention, rotate_half, make_attn_mask). Three things are simpler, because a page asks one question about
// one picture: there is no batch, a tensor is a matrix of one row a token, and every attention keeps its last weights.
//
// Shapes: C channels, N patches of a picture ("image tokens"), L tokens fed in now, T tokens in all, D width of a
// token, H query heads, H_kv key/value heads, d size of a head, V vocabulary. The sizes come from config.json.
"use strict";

/** rows x cols numbers, row by row: the one kind of tensor in this file. */
class Matrix {
  constructor(rows, cols, data = new Float32Array(rows * cols)) {
    this.rows = rows;
    this.cols = cols;
    this.data = data;
  }
  row(index) {
    return this.data.subarray(index * this.cols, (index + 1) * this.cols);
  }
  add(other) {
    for (let i = 0; i < this.data.length; i++) this.data[i] += other.data[i];
    return this;
  }
}

// ------------------------------------------------------------------------------------------------- checkpoint.py

// Names in use, and the published ones that this file uses (PREFIXES in checkpoint.py). The first that fits counts.
const PREFIXES = [
  ["vision_tower.vision_model.", "vision_tower.vision_model."],
  ["language_model.model.", "language_model.model."],
  ["multi_modal_projector.", "multi_modal_projector."],
  ["vision_tower.", "vision_tower.vision_model."],
  ["model.vision_tower.vision_model.", "vision_tower.vision_model."],
  ["model.vision_tower.", "vision_tower.vision_model."],
  ["model.language_model.", "language_model.model."],
  ["model.multi_modal_projector.", "multi_modal_projector."],
];

function published_name(name) {
  const found = PREFIXES.find(([prefix]) => name.startsWith(prefix));
  return found ? found[1] + name.slice(found[0].length) : name;
}

/** The bytes of a safetensors file -> {name: {shape, data: Float32Array}}. Raises Error for other files and dtypes. */
function read_safetensors(buffer) {
  const length = buffer.byteLength < 8 ? 0 : Number(new DataView(buffer).getBigUint64(0, true));
  if (length < 2 || length > buffer.byteLength - 8) {
    throw new Error(`the weights are ${buffer.byteLength} bytes without a header, expected a whole .safetensors file`);
  }
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const bytes = buffer.slice(8 + length + data_offsets[0], 8 + length + data_offsets[1]);
    tensors[published_name(name)] = { shape, data: to_float32(bytes, dtype, name) };
  }
  return tensors;
}

function to_float32(bytes, dtype, name) {
  if (dtype === "F32") return new Float32Array(bytes);
  if (dtype === "BF16") {
    // bfloat16 is the upper half of a float32
    return new Float32Array(Uint32Array.from(new Uint16Array(bytes), (half) => half << 16).buffer);
  }
  if (dtype === "F16") return Float32Array.from(new Uint16Array(bytes), half_to_number);
  throw new Error(`${name} is of dtype ${dtype}, expected F32, F16 or BF16: save the weights as one of these`);
}

/** float16: one bit of sign, five of exponent, ten of fraction. */
function half_to_number(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

/** Hands out the tensors of a checkpoint, each checked against the shape that the configuration asks for. */
class Weights {
  constructor(tensors, prefix = "") {
    this.tensors = tensors;
    this.prefix = prefix;
  }
  under(name) {
    return new Weights(this.tensors, `${this.prefix}${name}.`);
  }
  get(name, ...shape) {
    const full = this.prefix + name, tensor = this.tensors[full];
    if (!tensor) throw new Error(`${full} is not in the weights: expected the weights of this config.json`);
    if (tensor.shape.join() !== shape.join()) {
      throw new Error(`${full} is [${tensor.shape}], expected [${shape}]: config.json and weights do not belong together`);
    }
    return tensor.data;
  }
}

// ------------------------------------------------------------------------------------- torch.nn, as far as needed

/** x [L, I] times weight [O, I] transposed, plus bias [O] -> [L, O] */
function linear(x, weight, bias = null) {
  const L = x.rows, I = x.cols, O = weight.length / I, a = x.data;
  const y = new Matrix(L, O), out = y.data;
  // Blocks of 4 rows by 4 outputs: each number that is read is used four times (three times as fast as one by one).
  let l = 0;
  for (; l + 4 <= L; l += 4) {
    const x0 = l * I, x1 = x0 + I, x2 = x1 + I, x3 = x2 + I;
    let o = 0;
    for (; o + 4 <= O; o += 4) {
      const w0 = o * I, w1 = w0 + I, w2 = w1 + I, w3 = w2 + I;
      let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
      for (let i = 0; i < I; i++) {
        const u0 = weight[w0 + i], u1 = weight[w1 + i], u2 = weight[w2 + i], u3 = weight[w3 + i];
        let v = a[x0 + i];
        s00 += v * u0; s01 += v * u1; s02 += v * u2; s03 += v * u3;
        v = a[x1 + i];
        s10 += v * u0; s11 += v * u1; s12 += v * u2; s13 += v * u3;
        v = a[x2 + i];
        s20 += v * u0; s21 += v * u1; s22 += v * u2; s23 += v * u3;
        v = a[x3 + i];
        s30 += v * u0; s31 += v * u1; s32 += v * u2; s33 += v * u3;
      }
      let p = l * O + o;
      out[p] = s00; out[p + 1] = s01; out[p + 2] = s02; out[p + 3] = s03;
      p += O;
      out[p] = s10; out[p + 1] = s11; out[p + 2] = s12; out[p + 3] = s13;
      p += O;
      out[p] = s20; out[p + 1] = s21; out[p + 2] = s22; out[p + 3] = s23;
      p += O;
      out[p] = s30; out[p + 1] = s31; out[p + 2] = s32; out[p + 3] = s33;
    }
    for (let row = l; row < l + 4; row++) dot_products(a, row * I, weight, I, out, row * O, o, O);
  }
  for (; l < L; l++) dot_products(a, l * I, weight, I, out, l * O, 0, O);
  if (bias) for (let row = 0; row < L; row++) for (let o = 0; o < O; o++) out[row * O + o] += bias[o];
  return y;
}

/** Outputs `from` to `to` of one row: four at a time, then the rest. */
function dot_products(a, start, weight, I, out, place, from, to) {
  let o = from;
  for (; o + 4 <= to; o += 4) {
    const w0 = o * I, w1 = w0 + I, w2 = w1 + I, w3 = w2 + I;
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let i = 0; i < I; i++) {
      const v = a[start + i];
      s0 += v * weight[w0 + i]; s1 += v * weight[w1 + i]; s2 += v * weight[w2 + i]; s3 += v * weight[w3 + i];
    }
    out[place + o] = s0; out[place + o + 1] = s1; out[place + o + 2] = s2; out[place + o + 3] = s3;
  }
  for (; o < to; o++) {
    let sum = 0;
    for (let i = 0; i < I; i++) sum += a[start + i] * weight[o * I + i];
    out[place + o] = sum;
  }
}

class Linear {
  constructor(weights, inputs, outputs, { bias = true } = {}) {
    this.weight = weights.get("weight", outputs, inputs);
    this.bias = bias ? weights.get("bias", outputs) : null;
  }
  forward(x) {
    return linear(x, this.weight, this.bias);
  }
}

/** Subtract each token's mean, divide by its standard deviation, then scale and shift each feature. [L, D] */
class LayerNorm {
  constructor(weights, dim, eps) {
    this.weight = weights.get("weight", dim);
    this.bias = weights.get("bias", dim);
    this.eps = eps;
  }
  forward(x) {
    const y = new Matrix(x.rows, x.cols), D = x.cols;
    for (let l = 0; l < x.rows; l++) {
      const from = x.row(l), to = y.row(l);
      let mean = 0, variance = 0;
      for (let i = 0; i < D; i++) mean += from[i] / D;
      for (let i = 0; i < D; i++) variance += (from[i] - mean) ** 2 / D;
      const factor = 1 / Math.sqrt(variance + this.eps);
      for (let i = 0; i < D; i++) to[i] = (from[i] - mean) * factor * this.weight[i] + this.bias[i];
    }
    return y;
  }
}

/** The tanh form of GELU, in place. */
function gelu(x) {
  const a = x.data, slope = Math.sqrt(2 / Math.PI);
  for (let i = 0; i < a.length; i++) a[i] = 0.5 * a[i] * (1 + Math.tanh(slope * (a[i] + 0.044715 * a[i] ** 3)));
  return x;
}

/** Numbers to shares that sum to 1, in place. */
function softmax(row) {
  let top = -Infinity, sum = 0;
  for (let i = 0; i < row.length; i++) if (row[i] > top) top = row[i];
  for (let i = 0; i < row.length; i++) sum += row[i] = Math.exp(row[i] - top);
  for (let i = 0; i < row.length; i++) row[i] /= sum;
  return row;
}

/**
 * query [L, H*d], key and value [T, H_kv*d] -> [output [L, H*d], weights: H matrices [L, T]]
 *
 * softmax(query key^T * scale + mask) value, head by head (Vaswani et al. 2017, section 3.2). `mask` [L, T] is added
 * to the scores; null lets all see all. Heads stand side by side in a row; H / H_kv query heads share a key head.
 */
function scaled_dot_product_attention(query, key, value, heads, head_dim, scale, mask = null) {
  const L = query.rows, T = key.rows, d = head_dim, groups = (heads * d) / key.cols;
  const output = new Matrix(L, heads * d), all_weights = [];
  for (let h = 0; h < heads; h++) {
    const weights = new Matrix(L, T), first = Math.floor(h / groups) * d; // where this head's key begins in its row
    for (let l = 0; l < L; l++) {
      const q = query.row(l).subarray(h * d, h * d + d), row = weights.row(l);
      for (let t = 0; t < T; t++) {
        let score = 0;
        for (let i = 0, k = t * key.cols + first; i < d; i++) score += q[i] * key.data[k + i];
        row[t] = score * scale + (mask ? mask.data[l * T + t] : 0);
      }
      softmax(row);
      const out = output.row(l).subarray(h * d, h * d + d);
      for (let t = 0; t < T; t++) {
        if (row[t] === 0) continue;
        for (let i = 0, v = t * value.cols + first; i < d; i++) out[i] += row[t] * value.data[v + i];
      }
    }
    all_weights.push(weights);
  }
  return [output, all_weights];
}

// --------------------------------------------------------------------------------------------- modeling_siglip.py

const SIGLIP_DEFAULTS = {
  hidden_size: 768, intermediate_size: 3072, num_hidden_layers: 12, num_attention_heads: 12, num_channels: 3,
  image_size: 224, patch_size: 16, layer_norm_eps: 1e-6,
};

/** Cut the picture into patches, map each to a vector, add where it came from. pixels [C, S, S] -> [N, D] */
class SiglipVisionEmbeddings {
  constructor(config, weights) {
    const { hidden_size, num_channels, patch_size } = config;
    this.config = config;
    this.grid = Math.floor(config.image_size / patch_size); // patches along one side
    const kernel = weights.under("patch_embedding");
    this.patch_embedding = {
      weight: kernel.get("weight", hidden_size, num_channels, patch_size, patch_size),
      bias: kernel.get("bias", hidden_size),
    };
    this.position_embedding = weights.get("position_embedding.weight", this.grid ** 2, hidden_size);
  }
  /** The numbers of each patch in a row, channel by channel. [C, S, S] -> [N, C*P*P] */
  patches(pixel_values) {
    const { num_channels: C, patch_size: P, image_size: S } = this.config, N = this.grid ** 2;
    const patches = new Matrix(N, C * P * P);
    for (let n = 0, to = 0; n < N; n++) {
      const top = Math.floor(n / this.grid) * P, left = (n % this.grid) * P;
      for (let c = 0; c < C; c++)
        for (let y = 0; y < P; y++)
          for (let x = 0; x < P; x++) patches.data[to++] = pixel_values[c * S * S + (top + y) * S + left + x];
    }
    return patches;
  }
  forward(pixel_values) {
    // A convolution whose stride equals its kernel is a linear map of each patch.
    const { weight, bias } = this.patch_embedding;
    const embeddings = linear(this.patches(pixel_values), weight, bias);
    return embeddings.add({ data: this.position_embedding });
  }
}

/** Every patch looks at every patch. [N, D] -> [N, D] */
class SiglipAttention {
  constructor(config, weights) {
    const D = config.hidden_size;
    this.num_heads = config.num_attention_heads;
    this.head_dim = D / this.num_heads;
    this.scale = this.head_dim ** -0.5;
    for (const name of ["k_proj", "v_proj", "q_proj", "out_proj"]) this[name] = new Linear(weights.under(name), D, D);
  }
  forward(hidden_states) {
    const query = this.q_proj.forward(hidden_states);
    const key = this.k_proj.forward(hidden_states);
    const value = this.v_proj.forward(hidden_states);
    const [output, weights] = scaled_dot_product_attention(query, key, value, this.num_heads, this.head_dim, this.scale);
    this.weights = weights; // H matrices [N, N], kept to be looked at
    return this.out_proj.forward(output);
  }
}

/** Each token by itself: widen, bend, narrow. [N, D] -> [N, D] */
class SiglipMLP {
  constructor(config, weights) {
    this.fc1 = new Linear(weights.under("fc1"), config.hidden_size, config.intermediate_size);
    this.fc2 = new Linear(weights.under("fc2"), config.intermediate_size, config.hidden_size);
  }
  forward(hidden_states) {
    return this.fc2.forward(gelu(this.fc1.forward(hidden_states)));
  }
}

/** Attention between tokens, then an MLP on each, both added to what came in. [N, D] -> [N, D] */
class SiglipEncoderLayer {
  constructor(config, weights) {
    this.layer_norm1 = new LayerNorm(weights.under("layer_norm1"), config.hidden_size, config.layer_norm_eps);
    this.self_attn = new SiglipAttention(config, weights.under("self_attn"));
    this.layer_norm2 = new LayerNorm(weights.under("layer_norm2"), config.hidden_size, config.layer_norm_eps);
    this.mlp = new SiglipMLP(config, weights.under("mlp"));
  }
  forward(hidden_states) {
    hidden_states = this.self_attn.forward(this.layer_norm1.forward(hidden_states)).add(hidden_states);
    return this.mlp.forward(this.layer_norm2.forward(hidden_states)).add(hidden_states);
  }
}

/** The stack of layers. [N, D] -> [N, D]; `hidden_states` keeps what goes in and what each layer gives. */
class SiglipEncoder {
  constructor(config, weights) {
    this.layers = stack(config, weights, SiglipEncoderLayer);
  }
  forward(inputs_embeds) {
    this.hidden_states = [inputs_embeds];
    for (const layer of this.layers) this.hidden_states.push(layer.forward(this.hidden_states.at(-1)));
    return this.hidden_states.at(-1);
  }
}

function stack(config, weights, Layer) {
  return Array.from({ length: config.num_hidden_layers }, (_, i) => new Layer(config, weights.under(`layers.${i}`), i));
}

/** Patches, layers, one last norm. pixel_values [C, S, S] from -1 to 1 -> [N, D] */
class SiglipVisionTransformer {
  constructor(config, weights) {
    this.embeddings = new SiglipVisionEmbeddings(config, weights.under("embeddings"));
    this.encoder = new SiglipEncoder(config, weights.under("encoder"));
    this.post_layernorm = new LayerNorm(weights.under("post_layernorm"), config.hidden_size, config.layer_norm_eps);
  }
  forward(pixel_values) {
    return this.post_layernorm.forward(this.encoder.forward(this.embeddings.forward(pixel_values)));
  }
}

class SiglipVisionModel {
  constructor(config, weights) {
    this.config = config;
    this.vision_model = new SiglipVisionTransformer(config, weights.under("vision_model"));
  }
  forward(pixel_values) {
    return this.vision_model.forward(pixel_values);
  }
}

// --------------------------------------------------------------------------------------- processing_paligemma.py

/** How much a pixel at distance x counts: the two filters of PIL that are needed here, with their reach. */
const BICUBIC = {
  support: 2,
  weight(x) {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
  },
};
const BILINEAR = { support: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) };

/**
 * For each new pixel along one side: the first old pixel that counts, and the weights from there on. When a side gets
 * shorter the filter gets wider, so that every old pixel counts (antialiasing), as in PIL (Resample.c).
 */
function filter_weights(old_size, new_size, filter) {
  const scale = old_size / new_size, stretch = Math.max(scale, 1), support = filter.support * stretch;
  return Array.from({ length: new_size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), old_size);
    const weights = [];
    for (let x = first; x < end; x++) weights.push(filter.weight((x - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((w) => w / sum)];
  });
}

/**
 * A picture to another size, like PIL's Image.resize: along one side, then along the other.
 *
 * picture {width, height, channels, data}. Pictures of 8 bits (data is a Uint8ClampedArray) are computed in whole
 * numbers with 22 bits after the point and rounded after each of the two steps: to the last bit what Pillow 13 gives.
 * (So the order of the steps matters: it takes the height first where that shrinks far more. Older ones never did.)
 */
function resize(picture, width, height, filter = BICUBIC) {
  const eight_bits = picture.data instanceof Uint8ClampedArray, C = picture.channels, POINT = 2 ** 22;
  const along = (from, old_size, new_size, lines, step, line_step, to, to_step, to_line_step) => {
    filter_weights(old_size, new_size, filter).forEach(([first, weights], i) => {
      if (eight_bits) weights = weights.map((w) => Math.trunc(w * POINT + (w < 0 ? -0.5 : 0.5)));
      for (let line = 0; line < lines; line++)
        for (let c = 0; c < C; c++) {
          let sum = eight_bits ? POINT / 2 : 0, at = line * line_step + first * step + c;
          for (let k = 0; k < weights.length; k++, at += step) sum += from[at] * weights[k];
          to[line * to_line_step + i * to_step + c] = eight_bits ? Math.floor(sum / POINT) : sum;
        }
    });
    return to;
  };
  const empty = (size) => new picture.data.constructor(size);
  const to_width = ({ width: w, height: h, data }) => {
    if (w === width) return { width: w, height: h, channels: C, data };
    data = along(data, w, width, h, C, w * C, empty(width * h * C), C, width * C);
    return { width, height: h, channels: C, data };
  };
  const to_height = ({ width: w, height: h, data }) => {
    if (h === height) return { width: w, height: h, channels: C, data };
    data = along(data, h, height, w, w * C, C, empty(w * height * C), w * C, C);
    return { width: w, height, channels: C, data };
  };
  const height_first = picture.height > height && picture.height - height > 2 * (picture.width - width);
  return height_first ? to_width(to_height(picture)) : to_height(to_width(picture));
}

/** A picture of 8 bits {width, height, channels: 3, data} -> Float32Array [3, S, S] from -1 to 1, channels first. */
function process_image(picture, image_size) {
  const { data } = resize(picture, image_size, image_size), count = image_size ** 2;
  const pixel_values = new Float32Array(3 * count);
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < count; i++) {
      const rescaled = Math.fround(data[i * 3 + c] / 255); // 0 to 1
      pixel_values[c * count + i] = (rescaled - 0.5) / 0.5; // -1 to 1
    }
  return pixel_values;
}

/** Byte-pair encoding of Gemma's kind, from tokenizer.json: spaces are ▁, what is unknown is spelled in bytes. */
class Tokenizer {
  constructor(json) {
    const { model, added_tokens, pre_tokenizer, normalizer } = json;
    if (model?.type !== "BPE" || !model.byte_fallback) {
      throw new Error(`tokenizer.json holds a ${model?.type} model, expected BPE with byte_fallback, as Gemma's`);
    }
    this.vocabulary = new Map([...Object.entries(model.vocab), ...added_tokens.map((t) => [t.content, t.id])]);
    this.tokens = [];
    for (const [token, id] of this.vocabulary) this.tokens[id] = token;
    this.special = new Set(added_tokens.filter((t) => t.special).map((t) => t.id));
    this.ranks = new Map(model.merges.map((m, i) => [Array.isArray(m) ? m.join("\0") : m.replace(" ", "\0"), i]));
    const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const longest_first = added_tokens.map((t) => t.content).sort((a, b) => b.length - a.length);
    this.added = new RegExp(`(${longest_first.map(escape).join("|")})`);
    const steps = (part, kind) => (part?.type === "Sequence" ? part[kind] : [part ?? []].flat());
    this.replacements = steps(normalizer, "normalizers").map((step) => {
      if (step.type !== "Replace") throw new Error(`the tokenizer normalises by ${step.type}, expected Replace`);
      return [step.pattern.String, step.content];
    });
    this.splits = steps(pre_tokenizer, "pretokenizers").map((step) => {
      if (step.type !== "Split") throw new Error(`the tokenizer splits by ${step.type}, expected Split`);
      return [new RegExp(step.pattern.Regex ?? escape(step.pattern.String), "gu"), step.behavior];
    });
  }

  /** Text to token ids; tokens such as <loc0012> may stand in the text. */
  encode(text) {
    const ids = [];
    text.split(this.added).forEach((part, i) => {
      if (i % 2) ids.push(this.vocabulary.get(part));
      else for (const word of this.words(part)) ids.push(...this.merge(word));
    });
    return ids;
  }

  /** Pieces inside which tokens are merged. */
  words(text) {
    for (const [from, to] of this.replacements) text = text.replaceAll(from, to);
    let pieces = [text];
    for (const [pattern, behavior] of this.splits) pieces = pieces.flatMap((piece) => split(piece, pattern, behavior));
    return pieces.filter((piece) => piece);
  }

  /** Join the neighbours that were joined earliest in training, again and again. */
  merge(word) {
    const parts = [...word];
    for (;;) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + "\0" + parts[i + 1]) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) break;
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
    const in_bytes = (part) => Array.from(new TextEncoder().encode(part), (byte) =>
      this.vocabulary.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
    return parts.flatMap((part) => this.vocabulary.get(part) ?? in_bytes(part));
  }

  /** Token ids to text, special tokens left out; <loc> and <seg> tokens stay. */
  decode(ids) {
    let text = "", bytes = [];
    const flush = () => {
      if (!bytes.length) return;
      try {
        text += new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
      } catch {
        text += "\ufffd".repeat(bytes.length);
      }
      bytes = [];
    };
    for (const id of ids) {
      if (this.special.has(id)) continue;
      const token = this.tokens[id] ?? "", byte = /^<0x([0-9A-F]{2})>$/.exec(token);
      if (byte) bytes.push(parseInt(byte[1], 16));
      else {
        flush();
        text += token.replaceAll("▁", " ");
      }
    }
    flush();
    return text;
  }
}

/** Cut a text where the pattern fits; `behavior` says where what fitted goes. */
function split(text, pattern, behavior) {
  const pieces = [];
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    pieces.push([text.slice(last, match.index), false], [match[0], true]);
    last = match.index + match[0].length;
  }
  pieces.push([text.slice(last), false]);
  if (behavior === "Isolated") return pieces.map(([piece]) => piece);
  if (behavior === "Removed") return pieces.filter(([, fits]) => !fits).map(([piece]) => piece);
  // pieces alternate: text, fit, text, fit, ..., text
  const text_at = (i) => pieces[i]?.[0] ?? "";
  if (behavior === "MergedWithNext") {
    return [text_at(0), ...pieces.flatMap(([piece, fits], i) => (fits ? [piece + text_at(i + 1)] : []))];
  }
  if (behavior === "MergedWithPrevious") {
    return [...pieces.flatMap(([piece, fits], i) => (fits ? [text_at(i - 1) + piece] : [])), text_at(pieces.length - 1)];
  }
  throw new Error(`the tokenizer splits with behaviour ${behavior}, which is not known here`);
}

/** Picture and prompt to what the model takes. */
class PaliGemmaProcessor {
  constructor(tokenizer, config) {
    this.tokenizer = tokenizer;
    this.config = config;
    this.image_seq_length = Math.floor(config.vision_config.image_size / config.vision_config.patch_size) ** 2; // N
    this.image_size = config.vision_config.image_size;
  }
  /** <image> x N, <bos>, the prompt, a newline that ends it. */
  add_image_tokens_to_prompt(prefix_prompt) {
    return `${"<image>".repeat(this.image_seq_length)}<bos>${prefix_prompt}\n`;
  }
  /** 0 for picture and prompt, which see each other; the answer's tokens get 1 as they are written. [L] */
  token_type_ids(input_ids) {
    return input_ids.map(() => 0);
  }
  /** picture: see `process_image`. -> {pixel_values [3, S, S], input_ids [L], token_type_ids [L]} */
  forward(prompt, picture) {
    const input_ids = this.tokenizer.encode(this.add_image_tokens_to_prompt(prompt.replaceAll("<image>", "")));
    const pixel_values = process_image(picture, this.image_size);
    return { pixel_values, input_ids, token_type_ids: this.token_type_ids(input_ids) };
  }
}

// ------------------------------------------------------------------------------------------------- kv_cache.py

/** Keys and values of every layer, allocated once and written in place. */
class KVCache {
  constructor(config, max_length) {
    const width = config.num_key_value_heads * config.head_dim; // H_kv * d
    const empty = () => Array.from({ length: config.num_hidden_layers }, () => new Matrix(max_length, width));
    this.keys = empty();
    this.values = empty();
    this.max_length = max_length;
    this.length = 0;
  }
  /** Write the new tokens' keys and values [L, H_kv*d] of one layer; return all so far [T, H_kv*d], as views. */
  update(key, value, layer_idx) {
    const so_far = [[this.keys[layer_idx], key], [this.values[layer_idx], value]].map(([all, fresh]) => {
      all.data.set(fresh.data, this.length * all.cols);
      const T = this.length + fresh.rows;
      return new Matrix(T, all.cols, all.data.subarray(0, T * all.cols));
    });
    return so_far;
  }
  advance(new_tokens) {
    this.length += new_tokens;
  }
}

// ---------------------------------------------------------------------------------------------- modeling_gemma.py

const GEMMA_DEFAULTS = {
  vocab_size: 257216, hidden_size: 2048, intermediate_size: 16384, num_hidden_layers: 18, num_attention_heads: 8,
  num_key_value_heads: 1, head_dim: 256, rms_norm_eps: 1e-6, rope_theta: 10000, model_type: "gemma",
};

/** Divide each token by its root mean square, then scale each feature by 1 + weight. [L, D] -> [L, D] */
class GemmaRMSNorm {
  constructor(weights, dim, eps) {
    this.weight = weights.get("weight", dim);
    this.eps = eps;
  }
  forward(x) {
    const y = new Matrix(x.rows, x.cols), D = x.cols;
    for (let l = 0; l < x.rows; l++) {
      const from = x.row(l), to = y.row(l);
      let square = 0;
      for (let i = 0; i < D; i++) square += from[i] ** 2 / D;
      const factor = 1 / Math.sqrt(square + this.eps);
      for (let i = 0; i < D; i++) to[i] = from[i] * factor * (1 + this.weight[i]);
    }
    return y;
  }
}

/** RoPE: turn pairs of numbers by an angle that grows with the position (Su et al. 2021, section 3.2.2). */
class GemmaRotaryEmbedding {
  constructor(config) {
    this.dim = config.head_dim;
    this.inv_freq = Float32Array.from({ length: this.dim / 2 }, (_, i) => 1 / config.rope_theta ** ((2 * i) / this.dim));
  }
  /** Which two numbers of a head make pair i: i and i + d/2 ("halves"). */
  pair(i) {
    return [i, i + this.dim / 2];
  }
  /** Turn all heads of queries or keys [L, heads*d], in place; `first_position` is the first row's. */
  apply_rotary_pos_emb(x, first_position) {
    for (let l = 0; l < x.rows; l++)
      for (let i = 0; i < this.dim / 2; i++) {
        const angle = Math.fround((first_position + l) * this.inv_freq[i]);
        const cos = Math.cos(angle), sin = Math.sin(angle), [first, second] = this.pair(i);
        for (let head = l * x.cols; head < (l + 1) * x.cols; head += this.dim) {
          const a = x.data[head + first], b = x.data[head + second];
          x.data[head + first] = a * cos - b * sin;
          x.data[head + second] = b * cos + a * sin;
        }
      }
    return x;
  }
}

/** Gated MLP. [L, D] -> [L, D] */
class GemmaMLP {
  constructor(config, weights) {
    const { hidden_size: D, intermediate_size: I } = config;
    this.gate_proj = new Linear(weights.under("gate_proj"), D, I, { bias: false });
    this.up_proj = new Linear(weights.under("up_proj"), D, I, { bias: false });
    this.down_proj = new Linear(weights.under("down_proj"), I, D, { bias: false });
  }
  forward(x) {
    const gate = gelu(this.gate_proj.forward(x)), up = this.up_proj.forward(x);
    for (let i = 0; i < gate.data.length; i++) gate.data[i] *= up.data[i];
    return this.down_proj.forward(gate);
  }
}

/** Grouped-query attention with rotary positions and a cache. [L, D] -> [L, D] */
class GemmaAttention {
  constructor(config, weights, layer_idx) {
    const { hidden_size: D, num_attention_heads: H, num_key_value_heads: H_kv, head_dim: d } = config;
    this.layer_idx = layer_idx;
    this.num_heads = H;
    this.head_dim = d;
    this.scale = d ** -0.5;
    this.q_proj = new Linear(weights.under("q_proj"), D, H * d, { bias: false });
    this.k_proj = new Linear(weights.under("k_proj"), D, H_kv * d, { bias: false });
    this.v_proj = new Linear(weights.under("v_proj"), D, H_kv * d, { bias: false });
    this.o_proj = new Linear(weights.under("o_proj"), H * d, D, { bias: false });
  }
  forward(hidden_states, rotary_emb, attention_mask, kv_cache) {
    const position = kv_cache.length + 1; // positions count from 1
    const query = rotary_emb.apply_rotary_pos_emb(this.q_proj.forward(hidden_states), position);
    const new_key = rotary_emb.apply_rotary_pos_emb(this.k_proj.forward(hidden_states), position);
    const [key, value] = kv_cache.update(new_key, this.v_proj.forward(hidden_states), this.layer_idx);
    const { num_heads, head_dim, scale } = this;
    const [output, weights] = scaled_dot_product_attention(query, key, value, num_heads, head_dim, scale, attention_mask);
    this.weights = weights; // H matrices [L, T], kept to be looked at
    return this.o_proj.forward(output);
  }
}

/** Attention, then MLP, each on a normalised copy and added to what came in. [L, D] -> [L, D] */
class GemmaDecoderLayer {
  constructor(config, weights, layer_idx) {
    const norm = (name) => new GemmaRMSNorm(weights.under(name), config.hidden_size, config.rms_norm_eps);
    this.self_attn = new GemmaAttention(config, weights.under("self_attn"), layer_idx);
    this.mlp = new GemmaMLP(config, weights.under("mlp"));
    this.input_layernorm = norm("input_layernorm");
    this.post_attention_layernorm = norm("post_attention_layernorm");
  }
  forward(hidden_states, rotary_emb, attention_mask, kv_cache) {
    const normed = this.input_layernorm.forward(hidden_states);
    hidden_states = this.self_attn.forward(normed, rotary_emb, attention_mask, kv_cache).add(hidden_states);
    return this.mlp.forward(this.post_attention_layernorm.forward(hidden_states)).add(hidden_states);
  }
}

/**
 * Who may look at whom. mask_ar [T]: 1 where a token starts a new step that those before it must not see; a query sees
 * a key when the key's step is not later than its own. Returns what is added to the scores, for the last `num_queries`
 * tokens [L, T]: 0, or minus infinity.
 */
function make_attn_mask(mask_ar, num_queries) {
  const T = mask_ar.length, L = num_queries, mask = new Matrix(L, T);
  let steps = 0;
  const step = mask_ar.map((starts) => (steps += starts)); // the running sum
  for (let l = 0; l < L; l++)
    for (let t = 0; t < T; t++) mask.data[l * T + t] = step[t] <= step[T - L + l] ? 0 : -Infinity;
  return mask;
}

/** The decoder without its head: embeddings in, the last layer's normalised states out. [L, D] -> [L, D] */
class GemmaModel {
  constructor(config, weights) {
    this.config = config;
    this.embed_tokens = weights.get("embed_tokens.weight", config.vocab_size, config.hidden_size);
    this.embed_scale = Math.fround(Math.sqrt(config.hidden_size));
    this.layers = stack(config, weights, GemmaDecoderLayer);
    this.norm = new GemmaRMSNorm(weights.under("norm"), config.hidden_size, config.rms_norm_eps);
    this.rotary_emb = new GemmaRotaryEmbedding(config);
  }
  /** Token ids to vectors, times sqrt(D). [L] -> [L, D] */
  embed(input_ids) {
    const D = this.config.hidden_size, x = new Matrix(input_ids.length, D);
    input_ids.forEach((id, l) => {
      for (let i = 0; i < D; i++) x.data[l * D + i] = this.embed_tokens[id * D + i] * this.embed_scale;
    });
    return x;
  }
  /** `hidden_states` keeps what goes in and what each layer gives, for the logit lens. */
  forward(inputs_embeds, token_type_ids, kv_cache) {
    const mask = make_attn_mask(token_type_ids, inputs_embeds.rows);
    this.hidden_states = [inputs_embeds];
    for (const layer of this.layers) {
      this.hidden_states.push(layer.forward(this.hidden_states.at(-1), this.rotary_emb, mask, kv_cache));
    }
    kv_cache.advance(inputs_embeds.rows);
    return this.norm.forward(this.hidden_states.at(-1));
  }
}

/** The decoder with its head, which is the embedding table again ("tied"). */
class GemmaForCausalLM {
  constructor(config, weights) {
    this.config = config;
    this.model = new GemmaModel(config, weights.under("model"));
  }
  /** [L, D] -> logits [L, V] */
  lm_head(hidden_states) {
    return linear(hidden_states, this.model.embed_tokens);
  }
}

/** From the image encoder's width to the decoder's. [N, D_image] -> [N, D] */
class PaliGemmaMultiModalProjector {
  constructor(config, weights) {
    const { vision_config, text_config } = config;
    this.linear = new Linear(weights.under("linear"), vision_config.hidden_size, text_config.hidden_size);
  }
  forward(image_features) {
    return this.linear.forward(image_features);
  }
}

/** config.json as it is, with what it leaves out. Raises Error for models of another kind. */
function paligemma_config(values) {
  if (!values?.vision_config || !values?.text_config) {
    throw new Error(`config.json is that of a ${values?.model_type ?? "model of unknown type"}, expected PaliGemma's: ` +
      "one with vision_config and text_config");
  }
  const given = (part) => Object.fromEntries(Object.entries(part).filter(([, value]) => value !== null));
  const rope = values.text_config.rope_parameters ?? {};
  const text_config = { ...GEMMA_DEFAULTS, ...given(rope), ...given(values.text_config) };
  if (text_config.model_type !== "gemma") {
    throw new Error(`text_config.model_type is ${text_config.model_type}, expected gemma: this page knows PaliGemma 1`);
  }
  return {
    image_token_index: 257152, pad_token_id: 0, bos_token_id: 2, eos_token_id: 1, ...given(values),
    vision_config: { ...SIGLIP_DEFAULTS, ...given(values.vision_config) },
    text_config,
  };
}

/** A picture and a prompt in, the logits of the next token out. */
class PaliGemmaForConditionalGeneration {
  constructor(config, tensors) {
    const weights = new Weights(tensors);
    this.config = config;
    this.vision_tower = new SiglipVisionModel(config.vision_config, weights.under("vision_tower"));
    this.multi_modal_projector = new PaliGemmaMultiModalProjector(config, weights.under("multi_modal_projector"));
    this.language_model = new GemmaForCausalLM(config.text_config, weights.under("language_model"));
  }
  /** Pixels [C, S, S] to what stands for them in the sequence, [N, D]. Not scaled. */
  get_image_features(pixel_values) {
    return this.multi_modal_projector.forward(this.vision_tower.forward(pixel_values));
  }
  /** The embedded prompt with each <image> token's vector replaced by a patch's. [L], [N, D] -> [L, D] */
  _merge_input_ids_with_image_features(input_ids, image_features) {
    const is_image = input_ids.map((id) => id === this.config.image_token_index);
    const x = this.language_model.model.embed(input_ids.map((id, l) => (is_image[l] ? 0 : id)));
    let n = 0;
    is_image.forEach((image, l) => {
      if (image) x.row(l).set(image_features.row(n++));
    });
    return x;
  }
  /** input_ids [L]; token_type_ids [T] (the cache's tokens count too) -> logits of the last position [V] */
  forward({ input_ids, pixel_values = null, image_features = null, token_type_ids }, kv_cache) {
    if (pixel_values) image_features = this.get_image_features(pixel_values);
    const inputs_embeds = image_features
      ? this._merge_input_ids_with_image_features(input_ids, image_features)
      : this.language_model.model.embed(input_ids);
    const hidden_states = this.language_model.model.forward(inputs_embeds, token_type_ids, kv_cache);
    const last = new Matrix(1, hidden_states.cols, hidden_states.row(hidden_states.rows - 1));
    return this.language_model.lm_head(last).data;
  }
}

// -------------------------------------------------------------------------------------------------- generation.py

/**
 * Write an answer: yields {id, logits [V], attention, hidden_states} for each token, the last being EOS.
 *
 * attention[layer][head] are the weights from which this token was chosen: the last row of a matrix [L, T] (the first
 * token's matrix is the whole prompt's). hidden_states[layer] [L, D] likewise. `forced` are ids to write first,
 * whatever the model would rather say: what if it had said "blue"?
 */
function* generate_tokens(model, inputs, max_new_tokens = 64, forced = []) {
  const decoder = model.language_model.model, kv_cache = new KVCache(decoder.config, inputs.input_ids.length + max_new_tokens);
  const token_type_ids = [...inputs.token_type_ids];
  const step = (id, logits) => ({
    id, logits,
    attention: decoder.layers.map((layer) => layer.self_attn.weights),
    hidden_states: decoder.hidden_states,
  });
  // Prefill: picture and prompt in one pass.
  let logits = model.forward(inputs, kv_cache);
  for (let n = 0; n < max_new_tokens; n++) {
    const id = forced[n] ?? argmax(logits);
    yield step(id, logits);
    if (id === model.config.eos_token_id || n + 1 === max_new_tokens) return;
    // Decode: the new token alone; what came before is in the cache.
    token_type_ids.push(1);
    logits = model.forward({ input_ids: [id], token_type_ids }, kv_cache);
  }
}

function argmax(numbers) {
  let best = 0;
  for (let i = 1; i < numbers.length; i++) if (numbers[i] > numbers[best]) best = i;
  return best;
}

/** The k likeliest tokens, likeliest first: [{id, probability}] */
function likeliest(logits, k) {
  const probabilities = softmax(Float64Array.from(logits));
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
  return order.slice(0, k).map((id) => ({ id, probability: probabilities[id] }));
}

/** What each layer would say next, if it were the last: for the last row, the k likeliest tokens of every layer. */
function logit_lens(model, hidden_states, row, k) {
  const { model: decoder } = model.language_model;
  return hidden_states.map((states) => {
    const normed = decoder.norm.forward(new Matrix(1, states.cols, states.row(row)));
    return likeliest(model.language_model.lm_head(normed).data, k);
  });
}

// --------------------------------------------------------------------------------------------------- locations.py

/**
 * What the model wrote, read as things in the picture: [{label, box: [y1, x1, y2, x2] from 0 to 1, codes or null}].
 * Only things with four <loc> tokens that make a box, and 16 <seg> tokens or none, count.
 */
function parse_detections(text) {
  const pieces = text.split(";").flatMap((piece) => piece.replace(/([^<>\s])\s*(?=<loc\d{4}>)/g, "$1;").split(";"));
  const found = [];
  for (const piece of pieces) {
    const match = /^((?:<loc\d{4}>){4})\s*((?:<seg\d{3}>)*)([^<>]*)$/.exec(piece.trim());
    if (!match) continue;
    const [y1, x1, y2, x2] = match[1].match(/\d{4}/g).map(Number);
    const codes = (match[2].match(/\d{3}/g) ?? []).map(Number);
    if (Math.max(y2, x2) > 1023 || y2 <= y1 || x2 <= x1 || ![0, 16].includes(codes.length)) continue;
    if (codes.some((code) => code > 127)) continue;
    found.push({ label: match[3].trim(), box: [y1, x1, y2, x2].map((bin) => bin / 1023), codes: codes.length ? codes : null });
  }
  return found;
}

/** Area that two boxes share over the area that they cover together. */
function box_iou(a, b) {
  const area = ([y1, x1, y2, x2]) => Math.max(y2 - y1, 0) * Math.max(x2 - x1, 0);
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  const either = area(a) + area(b) - both;
  return either > 0 ? both / either : 0;
}

// ------------------------------------------------------------------------------------------------ segmentation.py

const MASK_SIZE = 64, MASK_GRID = 4;

/** Sixteen codes to a mask: the decoder of the mask tokenizer. Planes are {channels, size, data [C, size, size]}. */
class MaskTokenizer {
  constructor(config, tensors) {
    const weights = new Weights(tensors), { code_dim, num_codes, width: c } = config;
    this.config = config;
    this.codebook = weights.get("_vq_vae._embedding", num_codes, code_dim);
    const conv = (name, inputs, outputs, side) => ({
      weight: weights.get(`decoder.${name}.weight`, outputs, inputs, side, side),
      bias: weights.get(`decoder.${name}.bias`, outputs),
    });
    this.first = conv("0", code_dim, 8 * c, 1);
    this.residual_blocks = ["2", "3"].map((name) =>
      [["0", 3], ["2", 3], ["4", 1]].map(([part, side]) => conv(`${name}.net.${part}`, 8 * c, 8 * c, side)));
    this.doubling = [["4", 8, 8], ["6", 8, 4], ["8", 4, 2], ["10", 2, 1]].map(([name, inputs, outputs]) => ({
      weight: weights.get(`decoder.${name}.weight`, inputs * c, outputs * c, 4, 4), // transposed: inputs first
      bias: weights.get(`decoder.${name}.bias`, outputs * c),
    }));
    this.last = conv("12", c, 1, 1);
  }
  /** 16 codes -> Float32Array [64, 64], about -1 outside and +1 inside. */
  decode_signed(codes) {
    const { code_dim } = this.config, places = MASK_GRID ** 2;
    let x = { channels: code_dim, size: MASK_GRID, data: new Float32Array(code_dim * places) };
    codes.forEach((code, place) => {
      for (let i = 0; i < code_dim; i++) x.data[i * places + place] = this.codebook[code * code_dim + i];
    });
    x = relu(conv2d(x, this.first));
    for (const [first, second, third] of this.residual_blocks) {
      const inside = conv2d(relu(conv2d(relu(conv2d(x, first)), second)), third);
      inside.data.forEach((value, i) => (x.data[i] += value));
    }
    for (const layer of this.doubling) x = relu(conv_transpose2d(x, layer));
    return conv2d(x, this.last).data;
  }
  /** Codes and box to the picture's mask: Uint8Array [height, width] of 0 and 1. */
  codes_to_mask(codes, box, width, height) {
    const sides = [height, width, height, width];
    const [y1, x1, y2, x2] = box.map((side, i) => round_half_even(side * sides[i]));
    const pasted = new Uint8Array(width * height);
    if (y1 >= y2 || x1 >= x2) return pasted;
    const mask = { width: MASK_SIZE, height: MASK_SIZE, channels: 1, data: this.decode_signed(codes) };
    const { data } = resize(mask, x2 - x1, y2 - y1, BILINEAR);
    for (let y = y1; y < y2; y++)
      for (let x = x1; x < x2; x++) pasted[y * width + x] = data[(y - y1) * (x2 - x1) + x - x1] > 0 ? 1 : 0;
    return pasted;
  }
}

/** Python's round(): a half goes to the even neighbour. */
function round_half_even(number) {
  const floor = Math.floor(number), rest = number - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}

function relu(x) {
  x.data.forEach((value, i) => value < 0 && (x.data[i] = 0));
  return x;
}

/** Convolution with the same size in and out; weight [O, I, side, side], side 1 or 3. */
function conv2d(x, { weight, bias }) {
  const { size, channels: I } = x, O = bias.length, side = Math.sqrt(weight.length / (O * I)), pad = (side - 1) / 2;
  const y = { channels: O, size, data: new Float32Array(O * size * size) };
  for (let o = 0; o < O; o++)
    for (let row = 0; row < size; row++)
      for (let col = 0; col < size; col++) {
        let sum = bias[o];
        for (let i = 0; i < I; i++)
          for (let dy = 0; dy < side; dy++)
            for (let dx = 0; dx < side; dx++) {
              const r = row + dy - pad, c = col + dx - pad;
              if (r < 0 || c < 0 || r >= size || c >= size) continue;
              sum += x.data[(i * size + r) * size + c] * weight[((o * I + i) * side + dy) * side + dx];
            }
        y.data[(o * size + row) * size + col] = sum;
      }
  return y;
}

/** Transposed convolution, kernel 4, stride 2, padding 1: each pixel paints 4 x 4 pixels of a picture twice as large. */
function conv_transpose2d(x, { weight, bias }) {
  const { size, channels: I } = x, O = bias.length, large = 2 * size;
  const y = { channels: O, size: large, data: new Float32Array(O * large * large) };
  for (let o = 0; o < O; o++) {
    y.data.fill(bias[o], o * large * large, (o + 1) * large * large);
    for (let i = 0; i < I; i++)
      for (let row = 0; row < size; row++)
        for (let col = 0; col < size; col++) {
          const value = x.data[(i * size + row) * size + col];
          if (value === 0) continue;
          for (let dy = 0; dy < 4; dy++)
            for (let dx = 0; dx < 4; dx++) {
              const r = 2 * row + dy - 1, c = 2 * col + dx - 1;
              if (r < 0 || c < 0 || r >= large || c >= large) continue;
              y.data[(o * large + r) * large + c] += value * weight[((i * O + o) * 4 + dy) * 4 + dx];
            }
        }
  }
  return y;
}

// ---------------------------------------------------------------------------------------------- attention_maps.py

/** How much of each patch lies inside a box (y1, x1, y2, x2) of fractions: [grid * grid] from 0 to 1. */
function box_patches([y1, x1, y2, x2], grid) {
  const covered = (low, high, i) => Math.max(Math.min((i + 1) / grid, high) - Math.max(i / grid, low), 0) * grid;
  return Float32Array.from({ length: grid * grid }, (_, n) =>
    covered(y1, y2, Math.floor(n / grid)) * covered(x1, x2, n % grid));
}

/** The share of the attention to the picture [grid * grid] that falls inside the box. */
function share_inside(weights, box, grid) {
  const inside = box_patches(box, grid);
  let sum = 0, all = 0;
  weights.forEach((w, n) => {
    sum += w * inside[n];
    all += w;
  });
  return all > 0 ? sum / all : 0;
}
