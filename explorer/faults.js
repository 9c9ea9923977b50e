// Faults that the chapters teach, each put into a fresh model or processor without touching model.js: what is changed
// is the one line that a learner would get wrong.
"use strict";

const FAULTS = {
  no_scale: {
    chapter: "03_attention",
    apply: ({ model }) => attentions(model).forEach((attention) => (attention.scale = 1)),
  },
  no_embed_scale: {
    chapter: "10_paligemma",
    apply: ({ model }) => (model.language_model.model.embed_scale = 1),
  },
  causal_picture: {
    chapter: "08_masks_and_gqa",
    // type 1 for every token: each may see only what came before it
    apply: ({ processor }) => (processor.token_type_ids = (input_ids) => input_ids.map(() => 1)),
  },
  no_newline: {
    chapter: "05_processor",
    apply: ({ processor }) => {
      const whole = processor.add_image_tokens_to_prompt;
      processor.add_image_tokens_to_prompt = (prompt) => whole.call(processor, prompt).slice(0, -1);
    },
  },
  shuffled_positions: {
    chapter: "02_patches",
    apply: ({ model }) => {
      const { embeddings } = model.vision_tower.vision_model, D = embeddings.config.hidden_size;
      const rows = new Matrix(embeddings.grid ** 2, D, embeddings.position_embedding);
      const shuffled = new Matrix(rows.rows, D);
      shuffled_order(rows.rows).forEach((from, to) => shuffled.row(to).set(rows.row(from)));
      embeddings.position_embedding = shuffled.data;
    },
  },
  interleaved_rope: {
    chapter: "07_rope",
    // neighbours 2i and 2i + 1 in place of the halves i and i + d/2
    apply: ({ model }) => (model.language_model.model.rotary_emb.pair = (i) => [2 * i, 2 * i + 1]),
  },
  head_off: {
    chapter: "14_attention_maps",
    // what the head found is replaced by zeros before o_proj mixes the heads (`ablate_head` in attention_maps.py)
    apply: ({ model }, { layer, head }) => {
      const { o_proj, head_dim } = model.language_model.model.layers[layer].self_attn;
      o_proj.forward = (heads) => {
        for (let l = 0; l < heads.rows; l++) heads.row(l).fill(0, head * head_dim, (head + 1) * head_dim);
        return Linear.prototype.forward.call(o_proj, heads);
      };
    },
  },
};

function attentions(model) {
  const { encoder } = model.vision_tower.vision_model;
  return [...encoder.layers, ...model.language_model.model.layers].map((layer) => layer.self_attn);
}

/** 0 ... count-1 in an order that is always the same (a linear congruential generator and Fisher and Yates' shuffle). */
function shuffled_order(count) {
  const order = Array.from({ length: count }, (_, i) => i);
  let random = 1;
  for (let i = count - 1; i > 0; i--) {
    random = (Math.imul(random, 1103515245) + 12345) & 0x7fffffff;
    const j = Math.floor((random / 2 ** 31) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
