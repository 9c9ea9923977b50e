// The page: a picture to draw in, a prompt, and the way through the model, part by part. The model is in model.js, the
// picture in scene.js, the words in texts.js. One object `state` says what is shown; `run` is the last answer.
"use strict";

const $ = (id) => document.getElementById(id);
const MAX_NEW_TOKENS = 64, UNDO_STEPS = 100;
const TEXT_KINDS = ["bos", "prompt", "newline", "suffix", "loc", "seg", "eos"];

/** Everything that the address holds and that a click changes. */
const state = {
  picture: { background: "#f2f2f0", items: [], photo: null },
  scene: 0, // number of the stored scene, or null once it was changed
  prompt: "caption en",
  forced: [], // token ids that the answer must begin with
  token: null, // chosen place in the sequence; null: none yet
  patch: null, layer: null, head: null, view: "decoder", object: "auto", similarity_layer: 0,
  faults: [], head_off: { layer: 0, head: 0 },
  selected: null, // index of the chosen item
  colour: "red", pencil: false,
};
const explorer = { state, run: null, whole: null, model: null, processor: null, masks: null, name: "", predictions: {} };
const undo_stack = [];
let asked = 0; // number of the last question: an older one that is still being answered gives up

// ---------------------------------------------------------------------------------------------------- small helpers

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) made.setAttribute(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
const say = (text) => ($("status").textContent = text);
const next_frame = () => new Promise((resolve) => {
  // A hidden tab draws no frames; the timer lets the answer go on there.
  const timer = setTimeout(resolve, 60);
  requestAnimationFrame(() => (clearTimeout(timer), setTimeout(resolve, 0)));
});
const grid_of = () => Math.sqrt(explorer.processor.image_seq_length);
const place_of = (patch) => t("place", { row: Math.floor(patch / grid_of()) + 1, column: (patch % grid_of()) + 1 });

function kind_of(id) {
  const { config, tokenizer } = explorer.processor, token = tokenizer.tokens[id] ?? "";
  if (id === config.image_token_index) return "image";
  if (id === config.bos_token_id) return "bos";
  if (id === config.eos_token_id) return "eos";
  return token.startsWith("<loc") ? "loc" : token.startsWith("<seg") ? "seg" : null;
}

/** How a token is written in the vocabulary: ▁ is a space; a newline shows as \n. */
function token_name(id) {
  return (explorer.processor.tokenizer.tokens[id] ?? `#${id}`).replaceAll("\n", "\\n");
}

/** The same without the space before a word. */
function token_text(id) {
  return token_name(id).replace(/^▁(?=.)/, "");
}

/** Dark blue to yellow, as in the chapters (matplotlib's cividis). share 0..1 -> "rgb(...)" */
const HEAT = [[0, 32, 76], [49, 68, 107], [102, 105, 112], [149, 143, 120], [200, 184, 101], [255, 233, 69]];
function heat(share) {
  const x = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1), i = Math.min(Math.floor(x), HEAT.length - 2);
  return `rgb(${HEAT[i].map((low, k) => Math.round(low + (x - i) * (HEAT[i + 1][k] - low))).join(",")})`;
}

// ------------------------------------------------------------------------------------------------------- the picture

function remember() {
  undo_stack.push({ picture: { ...state.picture, items: state.picture.items.map((item) => ({ ...item })) }, scene: state.scene });
  if (undo_stack.length > UNDO_STEPS) undo_stack.shift();
}

/** Change the picture (undo knows), show it, and ask again. */
function change(what) {
  remember();
  what();
  state.scene = null;
  show_picture();
  ask_soon();
}

function show_picture() {
  draw_picture($("drawing"), state.picture);
  show_overlay();
  const { photo, items } = state.picture, has_line = items.some((item) => item.shape === "line");
  $("picture-note").hidden = !photo && !has_line;
  $("picture-note").textContent = photo ? t("photo_note", { name: photo.name }) : t("line_note");
  $("item-tools").hidden = state.selected === null;
  $("pencil").setAttribute("aria-pressed", state.pencil);
  if (document.activeElement !== $("scene")) $("scene").value = state.scene ?? "";
  for (const radio of $("colours").children) {
    radio.setAttribute("aria-checked", radio.dataset.colour === state.colour);
    radio.tabIndex = radio.dataset.colour === state.colour ? 0 : -1;
  }
  show_seen();
  show_chips();
  remember_in_address();
}

/** The picture at the model's size, exactly as the processor makes it. */
function show_seen() {
  if (!explorer.processor) return;
  const size = explorer.processor.image_size, canvas = $("sees");
  canvas.width = canvas.height = size;
  const { data } = resize(picture_pixels($("drawing"), state.picture), size, size), image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) image.data.set([data[3 * i], data[3 * i + 1], data[3 * i + 2], 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
  $("sees-note").textContent = t("sees_note", { size });
  canvas.setAttribute("aria-label", t("sees"));
  explorer.seen = canvas;
}

/** Items as things that can be dragged and focused, and the boxes and masks of the answer. */
function show_overlay() {
  const svg = $("overlay"), focused = document.activeElement?.dataset?.index;
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  svg.replaceChildren();
  svg.setAttribute("aria-label", t("drawing", { count: state.picture.items.length }));
  svg.classList.toggle("pencil", state.pencil);
  for (const { canvas, box } of explorer.run?.masks ?? []) {
    const [y1, x1, y2, x2] = box.map((edge) => edge * CANVAS);
    svg.append(make("image", { href: canvas.toDataURL(), x: x1, y: y1, width: x2 - x1, height: y2 - y1, preserveAspectRatio: "none", class: "found-mask" }));
  }
  for (const { box, label } of explorer.run?.boxes ?? []) {
    const [y1, x1, y2, x2] = box.map((edge) => edge * CANVAS);
    svg.append(make("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: "found-box under" }));
    svg.append(make("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: "found-box" }));
    const text = make("text", { x: x1 + 2, y: y1 > 24 ? y1 - 8 : y2 + 20, class: "found-label" });
    text.textContent = label;
    svg.append(text);
  }
  for (const [name, edge] of Object.entries(explorer.run?.edges ?? {})) { // edges of a box that is being written
    const at = edge * CANVAS, across = name === "y1" || name === "y2";
    svg.append(make("line", across ? { x1: 0, x2: CANVAS, y1: at, y2: at, class: "edge" } : { y1: 0, y2: CANVAS, x1: at, x2: at, class: "edge" }));
  }
  state.picture.items.forEach((item, index) => {
    const [y1, x1, y2, x2] = item.box.map((edge) => edge * CANVAS), chosen = index === state.selected;
    const group = make("g", { class: chosen ? "item chosen" : "item", tabindex: 0, role: "button", "aria-pressed": chosen, "data-index": index, "aria-label": word(item_name(item)) });
    group.append(make("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: "hit" }));
    const rim = 4 + ((item.width ?? 0) * CANVAS) / 2; // a line is thicker than the points that make it
    group.append(make("rect", { x: x1 - rim, y: y1 - rim, width: x2 - x1 + 2 * rim, height: y2 - y1 + 2 * rim, rx: 4, class: "frame" }));
    if (chosen) {
      for (const [corner, x, y] of [["nw", x1, y1], ["ne", x2, y1], ["sw", x1, y2], ["se", x2, y2]]) {
        group.append(make("circle", { cx: x, cy: y, r: 10, class: `handle ${corner}`, "data-corner": corner }));
      }
    }
    svg.append(group);
  });
  if (focused !== undefined) svg.querySelector(`[data-index="${focused}"]`)?.focus();
}

function limit_box([y1, x1, y2, x2]) {
  // An item may hang over the edge by half, but not be lost outside.
  const height = y2 - y1, width = x2 - x1;
  const y = Math.min(Math.max(y1, -height / 2), 1 - height / 2), x = Math.min(Math.max(x1, -width / 2), 1 - width / 2);
  return [y, x, y + height, x + width];
}

function move_item(item, dy, dx) {
  item.box = limit_box([item.box[0] + dy, item.box[1] + dx, item.box[2] + dy, item.box[3] + dx]);
}

function scale_item(item, by) {
  const [y1, x1, y2, x2] = item.box, height = Math.max(y2 - y1 + by, SMALLEST), width = Math.max(x2 - x1 + by, SMALLEST);
  const cy = (y1 + y2) / 2, cx = (x1 + x2) / 2;
  item.box = limit_box([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2]);
}

function turn_item(item, degrees) {
  if (item.shape !== "line") item.angle = ((item.angle + degrees + 540) % 360) - 180;
}

function told_place(item) {
  const [y1, x1, y2, x2] = item.box;
  return t("moved", { name: word(item_name(item)), percent: percent((x1 + x2) / 2), percent2: percent((y1 + y2) / 2) });
}

function add_item(shape) {
  const side = (Math.random() < 0.5 ? 14 : 24) / 64, { items } = state.picture;
  const rgb = hex(WORLD.colours[state.colour]);
  state.pencil = false;
  change(() => {
    items.push({ shape, colour: state.colour, rgb, box: free_box(items, side), angle: 0 });
    state.selected = items.length - 1;
  });
  say(t("added", { name: word(item_name(items.at(-1))) }));
}

function remove_item(index) {
  const name = word(item_name(state.picture.items[index]));
  change(() => {
    state.picture.items.splice(index, 1);
    state.selected = null;
  });
  ($("overlay").querySelector("[data-index]") ?? $("shapes").firstChild).focus({ preventScroll: true });
  say(t("removed", { name }));
}

function edit_item(index, key, far = false) {
  const item = state.picture.items[index], step = 1 / 64, move = far ? 8 * step : step;
  const moves = { ArrowLeft: [0, -move], ArrowRight: [0, move], ArrowUp: [-move, 0], ArrowDown: [move, 0] };
  if (key in moves) change(() => move_item(item, ...moves[key]));
  else if (key === "+" || key === "=") change(() => scale_item(item, 2 * step));
  else if (key === "-" || key === "−") change(() => scale_item(item, -2 * step));
  else if (key === "[" || key === "]") change(() => turn_item(item, key === "[" ? -5 : 5));
  else if (key === "Delete" || key === "Backspace") return remove_item(index), true;
  else if (key.toLowerCase() === "d") {
    const box = limit_box(item.box.map((edge) => edge + 3 * step));
    change(() => (state.selected = state.picture.items.push({ ...item, box }) - 1));
  } else return false;
  say(key in moves ? told_place(item) : t("resized", { name: word(item_name(item)), percent: percent(item.box[3] - item.box[1]) }));
  return true;
}

function undo() {
  const last = undo_stack.pop();
  if (!last) return say(t("nothing_to_undo"));
  Object.assign(state, { picture: last.picture, scene: last.scene, selected: null });
  show_picture();
  ask_soon();
  say(t("undone"));
}

function load_scene(number) {
  remember();
  Object.assign(state, { picture: stored_scene(number), scene: number % WORLD.scenes.length, selected: null, forced: [] });
  const chips = prompts_for_picture();
  if (!state.prompt.startsWith("caption")) state.prompt = chips.find(([task]) => task === state.task)?.[1] ?? "caption en";
  $("prompt").value = state.prompt;
  show_picture();
  ask_soon();
  say(t("scene_number", { number: state.scene }));
}

function start_picture() {
  const svg = $("overlay");
  let drag = null; // what the pointer is doing: {index, corner, from, box} or {points}
  const point = (event) => {
    const frame = svg.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  };
  svg.addEventListener("pointerdown", (event) => {
    const group = event.target.closest("[data-index]");
    if (state.pencil) {
      drag = { points: [point(event)] };
    } else if (group) {
      const index = Number(group.dataset.index);
      drag = { index, corner: event.target.dataset.corner, from: point(event), box: state.picture.items[index].box, moved: false };
      state.selected = index;
      const { colour } = state.picture.items[index];
      if (colour) state.colour = colour;
      show_picture();
      svg.querySelector(`[data-index="${index}"]`).focus({ preventScroll: true });
    } else {
      state.selected = null;
      show_picture();
      return;
    }
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = point(event);
    if (drag.points) {
      drag.points.push([x, y]);
      const trial = { ...state.picture, items: [...state.picture.items, line_from_points(drag.points, hex(WORLD.colours[state.colour]), 0.05)] };
      draw_picture($("drawing"), trial);
      return;
    }
    if (!drag.moved && Math.hypot(x - drag.from[0], y - drag.from[1]) < 0.006) return;
    if (!drag.moved) remember();
    drag.moved = true;
    state.scene = null;
    const item = state.picture.items[drag.index], dx = x - drag.from[0], dy = y - drag.from[1];
    let [y1, x1, y2, x2] = drag.box;
    if (!drag.corner) item.box = limit_box([y1 + dy, x1 + dx, y2 + dy, x2 + dx]);
    else {
      if (drag.corner.includes("n")) y1 = Math.min(y1 + dy, y2 - SMALLEST);
      else y2 = Math.max(y2 + dy, y1 + SMALLEST);
      if (drag.corner.includes("w")) x1 = Math.min(x1 + dx, x2 - SMALLEST);
      else x2 = Math.max(x2 + dx, x1 + SMALLEST);
      item.box = [y1, x1, y2, x2];
    }
    draw_picture($("drawing"), state.picture);
    clear_found();
    show_overlay();
  });
  const end = () => {
    if (drag?.points?.length > 1) {
      const { points } = drag;
      change(() => state.picture.items.push(line_from_points(points, hex(WORLD.colours[state.colour]), 0.05)));
    } else if (drag?.moved) {
      show_picture();
      ask_soon();
      say(told_place(state.picture.items[drag.index]));
    }
    drag = null;
  };
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
  svg.addEventListener("keydown", (event) => {
    const group = event.target.closest("[data-index]");
    if (!group || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Number(group.dataset.index);
    if (event.key === "Enter" || event.key === " ") {
      state.selected = state.selected === index ? null : index;
      show_picture();
      say(t("selected", { name: word(item_name(state.picture.items[index])) }));
    } else if (!edit_item(index, event.key, event.shiftKey)) return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && event.target.tagName !== "INPUT") {
      event.preventDefault();
      undo();
    }
  });
  for (const shape of WORLD.shapes) {
    const icon = `<svg viewBox="-8 -8 116 116" aria-hidden="true"><path fill-rule="evenodd" d="${item_path({ shape, angle: 0, box: [0, 0, 1, 1] }, 100)}"/></svg>`;
    const button = element("button", { type: "button", class: "shape", "data-shape": shape, onclick: () => add_item(shape) });
    button.innerHTML = icon;
    $("shapes").append(button);
  }
  for (const [colour, rgb] of Object.entries(WORLD.colours)) {
    const radio = element("button", { type: "button", role: "radio", class: "swatch", "data-colour": colour, style: `--swatch: ${hex(rgb)}`, onclick: () => choose_colour(colour) });
    $("colours").append(radio);
  }
  $("colours").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const names = Object.keys(WORLD.colours);
    choose_colour(names[(names.indexOf(state.colour) + step + names.length) % names.length]);
    $("colours").querySelector('[aria-checked="true"]').focus();
  });
  $("new-scene").onclick = () => load_scene(Math.floor(Math.random() * WORLD.scenes.length));
  $("scene").max = WORLD.scenes.length - 1;
  $("scene").onchange = () => {
    const number = Number($("scene").value);
    if (Number.isInteger(number) && number >= 0) load_scene(number);
  };
  $("undo").onclick = undo;
  $("pencil").onclick = () => {
    Object.assign(state, { pencil: !state.pencil, selected: null });
    show_picture();
    if (state.pencil) say(t("pencil_help"));
  };
  $("clear").onclick = () => {
    change(() => Object.assign(state, { picture: { background: "#f2f2f0", items: [], photo: null }, selected: null }));
  };
  for (const button of $("item-tools").children) {
    const keys = { smaller: "-", larger: "+", turn: "]", remove: "Delete" };
    button.onclick = () => state.selected !== null && edit_item(state.selected, keys[button.dataset.item]);
  }
  $("photo").onchange = async () => {
    const [file] = $("photo").files;
    if (file) await put_photo_in(file);
    $("photo").value = "";
  };
}

/** A photograph in place of the picture; what cannot be read is told, and the picture stays. */
async function put_photo_in(file) {
  try {
    const photo = await read_photo(file);
    change(() => Object.assign(state, { picture: { ...state.picture, items: [], photo }, selected: null }));
  } catch (error) {
    say(String(error.message ?? error));
  }
}

function choose_colour(colour) {
  state.colour = colour;
  const item = state.picture.items[state.selected];
  if (item) change(() => Object.assign(item, { colour: item.shape === "line" ? undefined : colour, rgb: hex(WORLD.colours[colour]) }));
  else show_picture();
}

// -------------------------------------------------------------------------------------------------------- the prompt

/** One prompt of every task that fits the picture: [task, prompt]. */
function prompts_for_picture() {
  const items = state.picture.items.filter((item) => item.shape !== "line");
  const one = items.find((item) => find_items(items, item.shape).length === 1) ?? items[0];
  const two = items.find((item) => item !== one) ?? null;
  const shape = one?.shape ?? "circle", colour = one?.colour ?? "red";
  const name = one ? unique_description(items, one) : "red circle", long = one ? `${colour} ${shape}` : "red circle";
  const prompts = [
    ["task_caption", "caption en"],
    ["task_colour", `answer en what colour is the ${shape}?`],
    ["task_shape", `answer en what shape is the ${colour} thing?`],
    ["task_size", `answer en what size is the ${name}?`],
    ["task_count", "answer en how many things are there?"],
    ["task_there", `answer en is there a ${long}?`.replace(/ a (?=[aeiou])/, " an ")],
    ["task_where", `answer en where is the ${name}?`],
    ["task_detect", `detect ${long}`],
    ["task_segment", `segment ${name}`],
  ];
  if (two) {
    const other = unique_description(items, two);
    prompts.splice(7, 0, ["task_relation", `answer en where is the ${name} relative to the ${other}?`]);
    prompts.splice(9, 0, ["task_pair", `detect ${long} ; ${two.colour} ${two.shape}`]);
  }
  return prompts;
}

function show_chips() {
  $("chips").replaceChildren(...prompts_for_picture().map(([task, prompt]) =>
    element("button", { type: "button", class: "chip", "aria-pressed": prompt === state.prompt, onclick: () => ask_for(prompt, task), title: prompt, lang: language },
      element("span", { text: t(task) }))));
}

function ask_for(prompt, task = null) {
  Object.assign(state, { prompt, task, forced: [], token: null });
  $("prompt").value = prompt;
  show_chips();
  show_prompt_tokens();
  ask();
}

/** The prompt as it will stand in the sequence, while it is being typed. */
function show_prompt_tokens() {
  if (!explorer.processor) return;
  const { image_seq_length, tokenizer } = explorer.processor;
  const ids = tokenizer.encode(explorer.processor.add_image_tokens_to_prompt($("prompt").value)).slice(image_seq_length);
  $("prompt-tokens").replaceChildren(...ids.map((id) =>
    element("span", { class: `token ${kind_of(id) ?? (token_text(id) === "\\n" ? "newline" : "prompt")}`, role: "listitem" },
      element("span", { text: token_name(id) }), element("small", { text: id }))));
  $("prompt-count").textContent = t("tokens_count", { image: image_seq_length, text: ids.length });
}

// -------------------------------------------------------------------------------------------------------- the answer

let timer = 0;
function ask_soon() {
  clearTimeout(timer);
  Object.assign(state, { forced: [], token: null });
  clear_found();
  timer = setTimeout(ask, 120);
}

function clear_found() {
  if (explorer.run) Object.assign(explorer.run, { boxes: [], masks: [], edges: {} });
}

/** The model and its processor with the faults of this moment; the whole one is never touched. */
function with_faults(faults) {
  const { config, tensors, tokenizer } = explorer.loaded;
  const pair = { model: new PaliGemmaForConditionalGeneration(config, tensors), processor: new PaliGemmaProcessor(tokenizer, config) };
  for (const fault of faults) FAULTS[fault].apply(pair, state.head_off);
  return pair;
}

/** The faults of `state`, as far as this model has the head that one of them names, become those of the model in use. */
function put_faults_in() {
  const { num_hidden_layers, num_attention_heads } = explorer.loaded.config.text_config, { layer, head } = state.head_off;
  state.faults = state.faults.filter((fault) => fault !== "head_off" || (layer < num_hidden_layers && head < num_attention_heads));
  Object.assign(explorer, with_faults(state.faults));
}

/** Ask the model of this moment; the answer appears token by token. Resolves to the run, or null if it was given up. */
async function ask() {
  clearTimeout(timer);
  if (!explorer.model) return null;
  try {
    return await answer_in_view();
  } catch (error) {
    $("answer-text").textContent = error.message;
    $("answer-card").removeAttribute("aria-busy");
    say(error.message);
    return null;
  }
}

async function answer_in_view() {
  const number = ++asked, { model, processor } = explorer;
  $("answer-card").setAttribute("aria-busy", "true");
  if (!explorer.run) $("answer-text").textContent = t("thinking");
  await next_frame();
  if (number !== asked) return null;
  const started = performance.now();
  const inputs = processor.forward(state.prompt, picture_pixels($("drawing"), state.picture));
  const run = { prompt: state.prompt, inputs, steps: [], ids: [], boxes: [], masks: [], edges: {}, first: 0, rest: 0, model, forced: [...state.forced] };
  const { vocab_size } = model.config.text_config, { image_token_index } = model.config;
  const outside = [...inputs.input_ids, ...state.forced].find((id) => id >= vocab_size && id !== image_token_index);
  if (outside !== undefined) throw new Error(t("outside", { id: outside, count: vocab_size }));
  let computing = 0;
  let at = started;
  for (const step of generate_tokens(model, inputs, MAX_NEW_TOKENS, state.forced)) {
    const now = performance.now();
    if (run.steps.length) computing += now - at;
    else run.first = now - started;
    run.steps.push(step);
    run.ids.push(step.id);
    run.text = processor.tokenizer.decode(run.ids);
    run.encoder = model.vision_tower.vision_model.encoder;
    explorer.run = run;
    show_answer(false);
    await next_frame();
    if (number !== asked) return null;
    at = performance.now();
  }
  run.rate = run.steps.length > 1 ? (1000 * (run.steps.length - 1)) / computing : null;
  run.done = true;
  $("answer-card").removeAttribute("aria-busy");
  if (!state.faults.length && !state.forced.length) explorer.whole = { prompt: run.prompt, text: run.text, ids: run.ids, picture: picture_to_text(state.picture) };
  choose_first_token();
  choose_first_head();
  show_answer(true);
  show_parts();
  say(t("answered", { answer: run.text.trim() || t("nothing") }));
  remember_in_address();
  return run;
}

function answered_fully() {
  return explorer.run?.ids.at(-1) === explorer.model.config.eos_token_id;
}

/** Token that a fresh answer shows first: a colour word, else (and in a box) the first. */
function choose_first_token() {
  const { run } = explorer, L = run.inputs.input_ids.length, last = L + run.ids.length - 1;
  if (state.token !== null && state.token <= last) return;
  const colours = Object.keys(WORLD.colours);
  const word_at = run.boxes.length ? 0 : run.ids.findIndex((id) => colours.includes(token_text(id)));
  state.token = L + Math.max(word_at, 0);
}

/** Head that is shown first: the one with the largest share inside the object; and the patch it looks at most. */
function choose_first_head() {
  if (state.layer !== null && state.head !== null && state.patch !== null) return;
  const object = object_of_interest(), { layers, heads } = attention_sizes();
  let best = -1;
  for (let layer = 0; layer < layers; layer++)
    for (let head = 0; head < heads; head++) {
      const { picture } = attention_row(layer, head), share = object ? share_inside(picture, object.box, grid_of()) : Math.max(...picture);
      if (share > best) [best, state.layer, state.head, state.patch] = [share, layer, head, argmax(picture)];
    }
}

function show_answer(finished) {
  const { run } = explorer, { tokenizer } = explorer.processor;
  $("answer-text").textContent = run.text.trim() || (finished ? t("nothing") : "…");
  $("answer-text").classList.toggle("empty", !run.text.trim());
  const in_tokens = run.text.includes("<loc");
  $("answer-text").classList.toggle("codes", in_tokens);
  $("answer-bar").textContent = $("answer-text").textContent;
  read_boxes(finished);
  token_buttons($("answer-tokens"));
  show_overlay();
  if (!finished) return;
  const names = state.picture.items.filter((item) => item.shape !== "line").map((item) => word(item_name(item)));
  const unknown = state.picture.photo || names.length < state.picture.items.length; // nobody says what is on it
  $("truth").textContent = unknown ? "" : names.length ? t("true_scene", { names: names.join(", ") }) : t("true_none");
  const speed = run.rate ? t("speed", { first: Math.round(run.first), rate: Math.round(run.rate) }) : t("speed_one", { first: Math.round(run.first) });
  $("speed").textContent = (answered_fully() ? "" : t("stopped", { count: run.ids.length }) + " ") + speed;
  const banner = $("broken-banner");
  banner.hidden = !state.faults.length;
  banner.querySelector("span").textContent = t("is_broken", { names: state.faults.map((fault) => t(`fault_${fault}`)).join(", ") });
}

/** Boxes and masks of what is written so far, and the edges of a box that is not yet whole. */
function read_boxes(finished) {
  const { run } = explorer;
  run.boxes = parse_detections(run.text);
  run.masks = [];
  for (const thing of run.boxes) if (thing.codes && explorer.masks) run.masks.push({ ...thing, canvas: mask_canvas(explorer.masks.decode_signed(thing.codes)) });
  const open = finished ? null : /(?:<loc\d{4}>){1,3}$/.exec(run.text);
  const numbers = open ? open[0].match(/\d{4}/g).map((bin) => Number(bin) / 1023) : [];
  run.edges = Object.fromEntries(numbers.map((edge, i) => [["y1", "x1", "y2", "x2"][i], edge]));
}

function mask_canvas(signed) {
  const canvas = document.createElement("canvas"), image = new ImageData(MASK_SIZE, MASK_SIZE);
  canvas.width = canvas.height = MASK_SIZE;
  signed.forEach((value, i) => image.data.set([213, 94, 0, Math.round(150 * Math.min(Math.max(value * 4 + 0.5, 0), 1))], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// --------------------------------------------------------------------------------------- tokens that can be chosen

/** All tokens in order: [{id, kind, text, position}]. Those of the answer come last. */
function sequence() {
  const { run } = explorer, { input_ids } = run.inputs, N = explorer.processor.image_seq_length;
  const prompt = input_ids.map((id, position) => ({ id, position, text: token_text(id), kind: kind_of(id) ?? "prompt" }));
  prompt.forEach((token) => token.text === "\\n" && token.position >= N && token.position === input_ids.length - 1 && (token.kind = "newline"));
  const answer = run.ids.map((id, n) => ({ id, position: input_ids.length + n, text: token_text(id), kind: kind_of(id) ?? "suffix" }));
  return [...prompt, ...answer];
}

/** The answer's tokens as buttons; the one with the focus and the chosen one stay as they are. */
function token_buttons(holder) {
  const { run } = explorer, L = run.inputs.input_ids.length;
  const focused = holder.contains(document.activeElement) ? document.activeElement.dataset.position : null;
  holder.replaceChildren(...sequence().slice(L).map((token) =>
    element("button", {
      type: "button", class: `token ${token.kind}`, "data-position": token.position, "aria-pressed": token.position === state.token, lang: "en",
      "aria-label": t("token_at", { kind: t(`kind_${token.kind}`), text: token.text, position: token.position }), onclick: () => choose_token(token.position),
    }, element("span", { text: token.text }))));
  if (focused !== null) holder.querySelector(`[data-position="${focused}"]`)?.focus();
}

function choose_token(position) {
  state.token = position;
  const N = explorer.processor.image_seq_length;
  if (position < N) state.patch = position;
  show_parts();
  remember_in_address();
}

/** Arrow keys move between the buttons of a group, so that Tab does not stop at each. */
function arrows_move_focus(holder, columns) {
  holder.addEventListener("keydown", (event) => {
    const buttons = [...holder.querySelectorAll("button")], at = buttons.indexOf(document.activeElement), wide = columns();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : at + (step ?? NaN);
    if (at < 0 || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    buttons[to].click();
  });
}

/** Only one button of the group is a stop of the Tab key: the pressed one, else the first. */
function one_tab_stop(holder) {
  const buttons = [...holder.querySelectorAll("button")];
  const stop = buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
  buttons.forEach((button) => (button.tabIndex = button === stop ? 0 : -1));
}

// ------------------------------------------------------------------------------------------------------- attention

/** Attention of the chosen token (or patch) in one head: {row: weights over what it may see, picture: [N]}. */
function attention_row(layer, head) {
  const { run } = explorer, N = explorer.processor.image_seq_length;
  if (state.view === "encoder") {
    const weights = run.encoder.layers[layer].self_attn.weights[head];
    return { row: weights.row(state.patch), picture: weights.row(state.patch) };
  }
  const L = run.inputs.input_ids.length, n = state.token - L;
  // The row that chose a token of the answer is the one before its own.
  const weights = (n < 0 ? run.steps[0] : run.steps[n]).attention[layer][head];
  const row = weights.row(n < 0 ? state.token : weights.rows - 1);
  return { row, picture: row.subarray(0, N) };
}

function attention_sizes() {
  const { vision_config, text_config } = explorer.model.config, part = state.view === "encoder" ? vision_config : text_config;
  return { layers: part.num_hidden_layers, heads: part.num_attention_heads };
}

/** The item whose share is measured: the chosen one, or the one that the token belongs to. */
function object_of_interest() {
  const items = state.picture.items.filter((item) => item.shape !== "line");
  if (state.object === "none" || !items.length) return null;
  const chosen = state.picture.items[Number(state.object)]; // none for "auto", and once the item is gone
  if (chosen) return chosen;
  const { run } = explorer, L = run.inputs.input_ids.length, n = state.token - L;
  const words = run.ids.map((id) => token_text(id));
  if (n >= 0 && /^(caption)/.test(run.prompt)) { // the thing of a caption in whose words the token stands
    let start = n, end = n;
    const borders = ["a", "above", "below", "left", "right", "of", ",", "<eos>"];
    while (start > 0 && !borders.includes(words[start])) start--;
    while (end < words.length && (end === n || !borders.includes(words[end]))) end++;
    const found = find_items(items, words.slice(start, end).join(" "));
    return found.length === 1 ? found[0] : null;
  }
  if (run.boxes.length && n >= 0) { // the box in whose tokens it stands
    const before = words.slice(0, n + 1).filter((text) => text === ";").length, box = run.boxes[before]?.box;
    if (box) return items.map((item) => [box_iou(item.box, box), item]).sort((a, b) => b[0] - a[0])[0][1];
  }
  const asked_for = find_items(items, run.prompt.replace(/ relative to .*/, "").split(";")[0]);
  return asked_for.length === 1 ? asked_for[0] : null;
}

/** The picture under a veil of heat, thinner where the head looks; each map has its own scale. */
function draw_map(canvas, weights, box = null) {
  const pen = canvas.getContext("2d"), size = canvas.width, grid = Math.sqrt(weights.length), cell = size / grid;
  pen.clearRect(0, 0, size, size);
  pen.drawImage($("drawing"), 0, 0, size, size);
  const top = Math.max(...weights);
  weights.forEach((w, n) => {
    const x = Math.round((n % grid) * cell), y = Math.round(Math.floor(n / grid) * cell), share = top > 0 ? w / top : 0;
    pen.fillStyle = heat(share);
    pen.globalAlpha = 0.74 - 0.34 * share;
    pen.fillRect(x, y, Math.round(((n % grid) + 1) * cell) - x, Math.round((Math.floor(n / grid) + 1) * cell) - y);
  });
  pen.globalAlpha = 1;
  if (!box) return;
  const [y1, x1, y2, x2] = box.map((edge) => edge * size);
  for (const [colour, width] of [["#000", size / 64 + 2], ["#fff", size / 64]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

function show_attention() {
  const { run } = explorer, { layers, heads } = attention_sizes();
  state.layer = Math.min(state.layer, layers - 1);
  state.head = Math.min(state.head, heads - 1);
  token_buttons($("attention-tokens"));
  one_tab_stop($("attention-tokens"));
  $("view").value = state.view;
  const object = object_of_interest(), area = object && (object.box[2] - object.box[0]) * (object.box[3] - object.box[1]);
  const options = [["auto", t("object_auto")], ["none", t("no_object")], ...state.picture.items.map((item, i) => [String(i), word(item_name(item))])];
  $("object").replaceChildren(...options.map(([value, text]) => element("option", { value, text, selected: value === state.object })));
  const focused = $("heads").contains(document.activeElement) ? document.activeElement.dataset.head : null;
  $("heads").style.setProperty("--heads", heads);
  const cells = [element("span", { class: "corner" }), ...Array.from({ length: heads }, (_, h) => element("span", { class: "head-name", text: `${t("head")} ${h}` }))];
  for (let layer = 0; layer < layers; layer++) {
    cells.push(element("span", { class: "layer-name", text: `${t("layer")} ${layer}` }));
    for (let head = 0; head < heads; head++) {
      const { picture } = attention_row(layer, head), canvas = element("canvas", { width: 96, height: 96, "aria-hidden": "true" });
      draw_map(canvas, picture, object?.box);
      const whole = picture.reduce((a, b) => a + b, 0), share = object ? share_inside(picture, object.box, grid_of()) : null;
      const inside = object ? t("inside_label", { share: percent(share) }) : "";
      cells.push(element("button", {
        type: "button", class: "head-map", "data-head": `${layer},${head}`, "aria-pressed": layer === state.layer && head === state.head,
        "aria-label": t("head_label", { layer, head, picture: percent(whole), place: place_of(argmax(picture)), inside }),
        onclick: () => {
          Object.assign(state, { layer, head });
          show_parts();
          remember_in_address();
        },
      }, canvas, element("span", { class: object && share > 3 * area ? "share high" : "share", text: object ? percent(share) : percent(whole) })));
    }
  }
  $("heads").replaceChildren(...cells);
  if (focused) $("heads").querySelector(`[data-head="${focused}"]`)?.focus();
  one_tab_stop($("heads"));

  const { row, picture } = attention_row(state.layer, state.head), top = argmax(picture);
  const place = place_of(top), whole = picture.reduce((a, b) => a + b, 0), tokens = sequence();
  const name = state.view === "encoder" ? t("chosen_patch", { place: place_of(state.patch) }) : t("chosen", { text: tokens[state.token].text });
  draw_map($("big-map"), picture, object?.box);
  const others = state.view === "encoder" ? [] : [...row.keys()].slice(picture.length).sort((a, b) => row[b] - row[a]).slice(0, 2).filter((p) => row[p] > 0.005);
  const listed = others.map((p) => `${tokens[p].text} (${percent(row[p])})`).join(", ");
  let twin = t("attention_twin", { token: name, layer: state.layer, head: state.head, picture: percent(whole), others: listed && t("others", { list: listed }), place, top: percent(picture[top]) });
  if (object) {
    const share = share_inside(picture, object.box, grid_of());
    twin += " " + t("inside_twin", { name: word(item_name(object)), share: percent(share), area: percent(area), times: (share / area).toFixed(1) });
  }
  $("attention-twin").textContent = twin;
  $("big-map").setAttribute("aria-label", twin);
  $("big-caption").textContent = `${name} · ${t("head_map", { layer: state.layer, head: state.head })}`;
}

// ------------------------------------------------------------------------------------------------- the other parts

function show_patches() {
  const grid = grid_of(), N = grid * grid, holder = $("patches"), P = explorer.model.config.vision_config.patch_size;
  $("patches-short").textContent = t("patches_short", { count: N });
  holder.style.setProperty("--grid", grid);
  holder.style.setProperty("--picture", `url(${explorer.seen.toDataURL()})`);
  if (holder.childElementCount !== N) {
    holder.replaceChildren(...Array.from({ length: N }, (_, n) => {
      const row = Math.floor(n / grid), column = n % grid, at = (k) => (grid > 1 ? (100 * k) / (grid - 1) : 0);
      const choose = () => {
        if (state.patch === n) return;
        state.patch = n;
        if (state.token < N) state.token = n;
        show_parts();
      };
      return element("button", { type: "button", style: `background-position: ${at(column)}% ${at(row)}%`, onclick: choose, onpointerenter: choose });
    }));
  }
  state.patch = Math.min(state.patch, N - 1);
  [...holder.children].forEach((button, n) => {
    button.setAttribute("aria-pressed", n === state.patch);
    button.setAttribute("aria-label", t("patch_name", { row: Math.floor(n / grid) + 1, column: (n % grid) + 1 }));
  });
  one_tab_stop(holder);
  const row = Math.floor(state.patch / grid), column = state.patch % grid, pixels = $("patch-pixels"), pen = pixels.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(explorer.seen, column * P, row * P, P, P, 0, 0, pixels.width, pixels.height);
  $("patch-caption").textContent = t("patch_pixels", { size: P });
  pixels.setAttribute("aria-label", t("patch_name", { row: row + 1, column: column + 1 }));

  const states = explorer.run.encoder.hidden_states, select = $("similarity-layer");
  select.replaceChildren(...states.map((_, i) => element("option", { value: i, text: i ? t("after_layer", { layer: i - 1 }) : t("after_embedding"), selected: i === state.similarity_layer })));
  const similar = cosine_similarity(states[Math.min(state.similarity_layer, states.length - 1)], state.patch);
  const low = Math.min(...similar);
  draw_map($("similarity"), similar.map((value) => value - low));
  const order = [...similar.keys()].filter((n) => n !== state.patch).sort((a, b) => similar[b] - similar[a]);
  const told = (n) => `${place_of(n)} (${similar[n].toFixed(2)})`;
  const twin = t("similar_twin", { row: row + 1, column: column + 1, list: order.slice(0, 3).map(told).join("; "), least: told(order.at(-1)) });
  $("similarity-twin").textContent = twin;
  $("similarity").setAttribute("aria-label", twin);
}

/** How much the vector of one row points the way of each other row's: from -1 to 1. */
function cosine_similarity(states, index) {
  const one = states.row(index), dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  return Array.from({ length: states.rows }, (_, n) => {
    const other = states.row(n);
    return dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other));
  });
}

function show_sequence() {
  const tokens = sequence(), N = explorer.processor.image_seq_length, grid = grid_of();
  $("sequence-short").textContent = t("sequence_short", { count: tokens.length });
  const view = state.view;
  state.view = "decoder"; // this part is about the decoder's row
  const layer = Math.min(state.layer, explorer.model.config.text_config.num_hidden_layers - 1);
  const head = Math.min(state.head, explorer.model.config.text_config.num_attention_heads - 1), { row } = attention_row(layer, head);
  state.view = view;
  $("sequence-help").textContent = t("sequence_help", { layer, head });
  const top = Math.max(...row), holder = $("strip");
  const focused = holder.contains(document.activeElement) ? document.activeElement.dataset.position : null;
  holder.style.setProperty("--grid", grid);
  holder.style.setProperty("--picture", `url(${explorer.seen.toDataURL()})`);
  const at = (k) => (grid > 1 ? (100 * k) / (grid - 1) : 0);
  holder.replaceChildren(...tokens.map(({ position, kind, text }) => {
    const image = position < N, share = row[position] ?? 0;
    const name = image ? place_of(position) : text;
    return element("button", {
      type: "button", class: `token ${kind}`, "data-position": position, "aria-pressed": position === state.token,
      "aria-label": `${t("token_at", { kind: t(`kind_${kind}`), text: name, position })}: ${percent(share)}`,
      style: `--share: ${top ? share / top : 0}` + (image ? `; background-position: ${at(position % grid)}% ${at(Math.floor(position / grid))}%` : ""),
      onclick: () => choose_token(position),
    }, element("span", { text: image ? "" : text }));
  }));
  if (focused !== null) holder.querySelector(`[data-position="${focused}"]`)?.focus();
  one_tab_stop(holder);
  const present = new Set(tokens.map((token) => token.kind));
  $("legend").replaceChildren(...["image", ...TEXT_KINDS].filter((kind) => present.has(kind)).map((kind) => element("li", { class: kind, text: t(`kind_${kind}`) })));
}

/** What the answer's mask and the prompt's look like in one square. */
function whole_mask() {
  const { run } = explorer, types = [...run.inputs.token_type_ids, ...run.ids.map(() => 1)];
  return make_attn_mask(types, types.length);
}

function show_mask() {
  const canvas = $("mask"), tokens = sequence(), mask = whole_mask(), T = tokens.length;
  const style = getComputedStyle(document.body), colour = (kind) => style.getPropertyValue(`--${kind}`), edge = 5; // pixels of the coloured rim
  const cell = Math.max(2, Math.floor(480 / T));
  canvas.width = canvas.height = T * cell + edge;
  const pen = canvas.getContext("2d");
  tokens.forEach(({ kind }, i) => {
    pen.fillStyle = colour(kind);
    pen.fillRect(edge + i * cell, 0, cell, edge - 1);
    pen.fillRect(0, edge + i * cell, edge - 1, cell);
  });
  for (let l = 0; l < T; l++)
    for (let k = 0; k < T; k++) {
      pen.fillStyle = mask.data[l * T + k] === 0 ? colour(tokens[k].kind) : style.getPropertyValue("--empty");
      pen.globalAlpha = mask.data[l * T + k] === 0 ? 0.75 : 1;
      pen.fillRect(edge + k * cell, edge + l * cell, cell, cell);
    }
  pen.globalAlpha = 1;
  const row = state.token;
  pen.strokeStyle = style.getPropertyValue("--ink");
  pen.lineWidth = 2;
  pen.strokeRect(1, edge + row * cell, canvas.width - 2, cell);
  const N = explorer.processor.image_seq_length, L = explorer.run.inputs.input_ids.length;
  const seen = (from, to) => Array.from({ length: to - from }, (_, k) => mask.data[row * T + from + k]).filter((value) => value === 0).length;
  const twin = t("mask_twin", { token: t("token_at", { kind: t(`kind_${tokens[row].kind}`), text: tokens[row].text, position: row }), image: seen(0, N), prompt: seen(N, L), answer: seen(L, T) });
  $("mask-twin").textContent = twin;
  canvas.setAttribute("aria-label", twin);
  const place = (event) => {
    const frame = canvas.getBoundingClientRect(), at = (pixel, start, length) => Math.floor(((pixel - start) / length * canvas.width - edge) / cell);
    return [at(event.clientY, frame.top, frame.height), at(event.clientX, frame.left, frame.width)];
  };
  canvas.onpointermove = (event) => {
    const [l, k] = place(event);
    if (!tokens[l] || !tokens[k]) return;
    const name = (i) => (i < N ? t("chosen_patch", { place: place_of(i) }) : tokens[i].text);
    $("mask-hover").textContent = t("mask_hover", { query: name(l), key: name(k), may: t(mask.data[l * T + k] === 0 ? "may" : "may_not") });
  };
  canvas.onclick = (event) => {
    const [l] = place(event);
    if (tokens[l]) choose_token(l);
  };
}

function show_writing() {
  const { run } = explorer, L = run.inputs.input_ids.length, n = Math.max(state.token - L, 0), step = run.steps[n];
  $("writing-short").textContent = t("writing_short", { count: explorer.model.config.text_config.vocab_size.toLocaleString(language) });
  token_buttons($("writing-tokens"));
  one_tab_stop($("writing-tokens"));
  $("alternatives-title").textContent = t("alternatives", { step: n + 1 });
  $("alternatives").replaceChildren(...likeliest(step.logits, 5).map(({ id, probability }) => {
    const chosen = id === step.id, text = token_name(id);
    const bar = element("button", {
      type: "button", class: `bar ${kind_of(id) ?? "suffix"}`, "aria-pressed": chosen, style: `--share: ${probability}`,
      onclick: () => {
        state.forced = [...run.ids.slice(0, n), id];
        state.token = L + n;
        ask();
      },
    }, element("span", { class: "bar-token", text, lang: "en" }), element("span", { class: "bar-fill" }), element("span", { class: "bar-number", text: percent(probability) }), element("span", { class: "hidden", text: t("force") }));
    return element("li", {}, bar);
  }));
  $("forced-note").hidden = !run.forced.length;
  $("forced-note").querySelector("span").textContent = run.forced.length ? t("forced", { token: token_text(run.forced.at(-1)) }) : "";
}

function show_boxes() {
  const { run } = explorer, holder = $("boxes");
  if (!run.boxes.length) {
    const detect = prompts_for_picture().find(([task]) => task === "task_detect");
    holder.replaceChildren(element("p", { class: "help", text: t("boxes_none") }), element("button", { type: "button", text: t("boxes_try"), onclick: () => ask_for(detect[1], detect[0]) }));
    return;
  }
  const items = state.picture.items.filter((item) => item.shape !== "line");
  holder.replaceChildren(...run.boxes.map((thing) => {
    const whole = (edge) => Math.round(100 * edge), [y1, x1, y2, x2] = thing.box.map(whole);
    const nearest = items.map((item) => ({ item, iou: box_iou(item.box, thing.box) })).sort((a, b) => b.iou - a.iou)[0];
    const overlap = nearest ? `; ${t("found_iou", { iou: nearest.iou.toFixed(2) })}` : "";
    const list = element("ul", { class: "edges" }, ...thing.box.map((edge, i) => {
      const number = Math.round(edge * 1023), token = `<loc${String(number).padStart(4, "0")}>`;
      return element("li", { text: t("edge", { edge: t(`edge_${i}`), token, number, percent: percent(edge) }) });
    }));
    const block = element("div", { class: "found" }, element("p", { class: "twin", text: t("found_box", { label: thing.label || "–", x1, y1, x2, y2 }) + overlap + "." }), list);
    if (thing.codes && explorer.masks) {
      const canvas = mask_canvas(explorer.masks.decode_signed(thing.codes)), size = 64;
      const drawn = explorer.masks.codes_to_mask(thing.codes, thing.box, size, size);
      const overlap_of_masks = nearest ? `; ${t("mask_iou", { iou: mask_iou(drawn, true_mask(nearest.item, size)).toFixed(2) })}` : "";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", t("mask_of", { label: thing.label }));
      block.append(element("div", { class: "mask-block" },
        element("figure", {}, canvas, element("figcaption", { text: t("mask_of", { label: thing.label }) + overlap_of_masks })),
        element("div", {}, element("p", { class: "help", text: t("codes") }), element("div", { class: "codes-grid" }, ...thing.codes.map((code) => element("span", { text: code }))))));
    }
    return block;
  }));
}

/** Pixels of an item at `size`: 1 where more than half is covered. */
function true_mask(item, size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const pen = canvas.getContext("2d");
  pen.fill(new Path2D(item_path(item, size)), "evenodd");
  const { data } = pen.getImageData(0, 0, size, size);
  return Uint8Array.from({ length: size * size }, (_, i) => (data[4 * i + 3] > 127 ? 1 : 0));
}

function mask_iou(a, b) {
  let both = 0, either = 0;
  a.forEach((value, i) => {
    both += value & b[i];
    either += value | b[i];
  });
  return either ? both / either : 1;
}

function show_lens() {
  const { run } = explorer, L = run.inputs.input_ids.length;
  const columns = run.steps.map((step) => logit_lens(explorer.model, step.hidden_states, step.hidden_states[0].rows - 1, 1).map(([best]) => best));
  const head = element("tr", {}, element("td", {}), ...run.ids.map((id, n) => element("th", { scope: "col", class: L + n === state.token ? "chosen" : null, text: token_text(id), lang: "en" })));
  const rows = columns[0].map((_, layer) =>
    element("tr", {}, element("th", { scope: "row", text: layer ? t("lens_layer", { layer: layer - 1 }) : t("lens_start") }),
      ...columns.map((column, n) => {
        const { id, probability } = column[layer], same = id === run.ids[n];
        return element("td", { class: same ? "same" : null, style: `--share: ${probability.toFixed(3)}`, title: percent(probability) },
          element("span", { text: token_text(id), lang: "en" }), element("small", { text: percent(probability) }));
      })));
  $("lens").replaceChildren(element("caption", { class: "hidden", text: t("lens_caption") }), element("thead", {}, head), element("tbody", {}, ...rows));
}

// -------------------------------------------------------------------------------------------------------- break it

/** same: the very words; none: nothing, or it never ends; other: anything else. */
function outcome_of(run) {
  if (run.text.trim() === "" || run.ids.at(-1) !== explorer.model.config.eos_token_id) return explorer.whole?.text.trim() === run.text.trim() ? "same" : "none";
  return run.text === explorer.whole?.text ? "same" : "other";
}

/** Mean negative log probability of these answer tokens: what training minimises, finer than the words. */
function answer_loss({ model, processor }, ids) {
  const inputs = processor.forward(state.prompt, picture_pixels($("drawing"), state.picture));
  let sum = 0;
  for (const { id, logits } of generate_tokens(model, inputs, ids.length, ids)) sum -= Math.log(softmax(Float64Array.from(logits))[id]);
  return sum / ids.length;
}

async function break_it(fault, expected) {
  if (explorer.whole?.prompt !== state.prompt || explorer.whole?.picture !== picture_to_text(state.picture)) {
    set_faults([]);
    if (!(await ask())) return; // another question came in between
  }
  state.head_off = { layer: Math.min(state.layer, explorer.model.config.text_config.num_hidden_layers - 1), head: Math.min(state.head, explorer.model.config.text_config.num_attention_heads - 1) };
  set_faults([fault]);
  const run = await ask();
  if (!run) return;
  const loss = { before: answer_loss(with_faults([]), explorer.whole.ids), after: answer_loss(explorer, explorer.whole.ids) };
  explorer.predictions[fault] = { expected, outcome: outcome_of(run), before: explorer.whole.text, after: run.text, loss };
  show_faults();
  const { outcome } = explorer.predictions[fault];
  say(t("happened", { expected: t(`predict_${expected}`), outcome: t(`predict_${outcome}`) }));
  $("faults").querySelector(`[data-fault="${fault}"] button`)?.focus();
}

function set_faults(faults) {
  state.faults = faults;
  state.forced = [];
  state.token = null;
  Object.assign(explorer, with_faults(faults));
  show_prompt_tokens();
}

function mend() {
  set_faults([]);
  explorer.predictions = {};
  return ask();
}

function show_faults() {
  $("broken-help").textContent = t("broken_help", { answer: explorer.whole?.text.trim() || "…" });
  $("faults").replaceChildren(...Object.keys(FAULTS).map((fault) => {
    const name = t(`fault_${fault}`), told = explorer.predictions[fault], on = state.faults.includes(fault);
    const block = element("li", { class: on ? "fault on" : "fault", "data-fault": fault },
      element("p", {}, element("strong", { text: name }), element("span", { class: "why", text: ` ${t(`why_${fault}`, on ? state.head_off : { layer: state.layer, head: state.head })}` })));
    if (on) {
      if (told) {
        block.append(element("p", { class: "verdict", text: t("happened", { expected: t(`predict_${told.expected}`), outcome: t(`predict_${told.outcome}`) }) + " " + t(told.expected === told.outcome ? "right" : "wrong") }),
          element("dl", {}, element("dt", { text: t("before") }), element("dd", { text: told.before.trim() || "–", lang: "en" }), element("dt", { text: t("after_fault") }), element("dd", { text: told.after.trim() || "–", lang: "en" })),
          element("p", { class: "why", text: t("loss", { before: told.loss.before.toFixed(3), after: told.loss.after.toFixed(3) }) }));
      }
      block.append(element("button", { type: "button", text: t("mend_one"), onclick: mend }));
    } else {
      block.append(element("div", { class: "row", role: "group", "aria-label": t("predict", { fault: name }) },
        ...["same", "other", "none"].map((expected) => element("button", { type: "button", text: t(`predict_${expected}`), onclick: () => break_it(fault, expected) }))));
    }
    return block;
  }));
}

// --------------------------------------------------------------------------------------------------- all the parts

const PARTS = {
  "part-patches": show_patches, "part-sequence": show_sequence, "part-mask": show_mask, "part-writing": show_writing,
  "part-attention": show_attention, "part-boxes": show_boxes, "part-lens": show_lens, "part-broken": show_faults,
};

/** Bring every open part up to date; closed ones cost nothing. */
function show_parts() {
  if (!explorer.run?.done) return;
  const shorts = { "patches-short": t("patches_short", { count: explorer.processor.image_seq_length }), "sequence-short": t("sequence_short", { count: sequence().length }), "writing-short": t("writing_short", { count: explorer.model.config.text_config.vocab_size.toLocaleString(language) }) };
  for (const [id, text] of Object.entries(shorts)) $(id).textContent = text;
  token_buttons($("answer-tokens"));
  one_tab_stop($("answer-tokens"));
  for (const [id, show] of Object.entries(PARTS)) if ($(id).open) show();
}

function start_parts() {
  for (const id of Object.keys(PARTS)) {
    $(id).addEventListener("toggle", () => {
      if ($(id).open && explorer.run?.done) PARTS[id]();
      remember_in_address();
    });
  }
  const line = () => Infinity; // in a line of tokens, up and down lead nowhere
  for (const id of ["answer-tokens", "writing-tokens", "attention-tokens", "strip"]) arrows_move_focus($(id), line);
  arrows_move_focus($("patches"), grid_of);
  arrows_move_focus($("heads"), () => attention_sizes().heads);
  $("view").onchange = () => {
    state.view = $("view").value;
    show_parts();
    remember_in_address();
  };
  $("object").onchange = () => {
    state.object = $("object").value;
    show_parts();
    remember_in_address();
  };
  $("similarity-layer").onchange = () => {
    state.similarity_layer = Number($("similarity-layer").value);
    show_parts();
  };
  $("forced-note").querySelector("button").onclick = () => {
    state.forced = [];
    ask();
  };
  $("broken-banner").querySelector("button").onclick = mend;
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask_for($("prompt").value);
  });
  $("prompt").addEventListener("input", show_prompt_tokens);
  // On a phone the answer lies below the picture: a line at the lower edge shows it while it is out of sight.
  new IntersectionObserver(([card]) => ($("answer-bar").hidden = card.isIntersecting)).observe($("answer-card"));
}

// ---------------------------------------------------------------------------------------------------- the address

/** The whole state behind the # of the address, so that a link shows what the teacher saw. */
function remember_in_address() {
  const values = new URLSearchParams();
  if (state.scene !== null) values.set("scene", state.scene);
  else if (!state.picture.photo) {
    values.set("items", picture_to_text(state.picture));
    values.set("ground", state.picture.background.slice(1));
  }
  values.set("prompt", state.prompt);
  if (state.token !== null) values.set("token", state.token);
  if (state.layer !== null) values.set("at", [state.layer, state.head, state.patch].join("."));
  if (state.view !== "decoder") values.set("view", state.view);
  if (state.object !== "auto") values.set("object", state.object);
  if (state.forced.length) values.set("forced", state.forced.join("."));
  if (state.faults.length) values.set("broken", [...state.faults, state.head_off.layer, state.head_off.head].join("."));
  values.set("open", Object.keys(PARTS).filter((id) => $(id).open).map((id) => id.slice(5)).join("."));
  values.set("lang", language);
  try {
    history.replaceState(null, "", `#${values.toString().replaceAll("%7E", "~").replaceAll("%2C", ",")}`);
  } catch {
    // a page inside a frame without an address of its own has nowhere to keep it
  }
}

function read_address() {
  const values = new URLSearchParams(location.hash.slice(1));
  const numbers = (name) => (values.get(name) ?? "").split(".").filter((part) => /^\d+$/.test(part)).map(Number);
  const wish = values.get("lang") ?? (navigator.language.startsWith("ko") ? "ko" : "en");
  language = Object.hasOwn(TEXTS, wish) ? wish : "en";
  if (values.has("items")) {
    const ground = values.get("ground") ?? "";
    state.picture = { background: /^[0-9a-f]{6}$/.test(ground) ? `#${ground}` : "#f2f2f0", items: text_to_items(values.get("items")), photo: null };
    state.scene = null;
  } else {
    const scene = Number(values.get("scene") ?? WORLD.first_scene);
    state.scene = Number.isInteger(scene) && scene >= 0 ? scene % WORLD.scenes.length : 0;
    state.picture = stored_scene(state.scene);
  }
  state.prompt = (values.get("prompt") ?? "caption en").slice(0, $("prompt").maxLength);
  state.token = numbers("token")[0] ?? null;
  const [layer_chosen = null, head_chosen = null, patch = null] = numbers("at");
  Object.assign(state, { layer: layer_chosen, head: head_chosen, patch });
  state.view = values.get("view") === "encoder" ? "encoder" : "decoder";
  state.object = values.get("object") ?? "auto";
  state.forced = numbers("forced");
  state.faults = (values.get("broken") ?? "").split(".").filter((name) => Object.hasOwn(FAULTS, name));
  const [layer = 0, head = 0] = numbers("broken");
  state.head_off = { layer, head };
  if (values.has("open")) {
    const open = values.get("open").split(".");
    for (const id of Object.keys(PARTS)) $(id).open = open.includes(id.slice(5));
  }
  state.selected = null;
  $("prompt").value = state.prompt;
}

// ------------------------------------------------------------------------------------------------- words and light

function translate() {
  document.documentElement.lang = language;
  document.title = t("title");
  for (const place of document.querySelectorAll("[data-text]")) place.textContent = t(place.dataset.text);
  for (const place of document.querySelectorAll("[data-label]")) place.setAttribute("aria-label", t(place.dataset.label));
  for (const button of $("shapes").children) {
    button.setAttribute("aria-label", t("add_shape", { shape: word(button.dataset.shape) }));
    button.title = button.getAttribute("aria-label");
  }
  for (const radio of $("colours").children) {
    radio.setAttribute("aria-label", word(radio.dataset.colour));
    radio.title = word(radio.dataset.colour);
  }
  $("language").lang = language === "en" ? "ko" : "en";
  show_lead();
  show_picture();
  show_prompt_tokens();
  if (explorer.run?.done) show_answer(true);
  else if (!explorer.model) $("answer-text").textContent = t("loading");
  show_parts();
}

function show_lead() {
  const tensors = explorer.loaded?.tensors ?? {}, count = Object.values(tensors).reduce((sum, { data }) => sum + data.length, 0);
  $("lead").textContent = t("lead", { count: count ? count.toLocaleString(language) : "…" });
}

function start_header() {
  $("language").onclick = () => {
    language = language === "en" ? "ko" : "en";
    translate();
    remember_in_address();
  };
  $("theme").onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    show_parts();
  };
  $("copy-link").onclick = async () => {
    remember_in_address();
    try {
      await navigator.clipboard.writeText(location.href);
    } catch { // pages from a file may not use the clipboard: leave the address selected in a prompt
      window.prompt(t("copy_link"), location.href);
    }
    const note = t(state.picture.photo ? "link_no_photo" : "link_copied");
    say(note);
    $("copy-link").title = note;
  };
}

// ------------------------------------------------------------------------------------------------------- the model

/** Put a model in: {name, config, tokenizer: parsed tokenizer.json, tensors}. Raises Error for what does not fit. */
function put_in(name, config_json, tokenizer_json, tensors) {
  const config = paligemma_config(config_json), tokenizer = new Tokenizer(tokenizer_json);
  new PaliGemmaForConditionalGeneration(config, tensors); // checks every tensor before anything is replaced
  explorer.loaded = { name, config, tokenizer, tensors };
  explorer.run = explorer.whole = null;
  put_faults_in();
}

function bytes_of(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

/** Called by data.js, which holds the weights: that file works from file:// as well, where a page may fetch nothing. */
function explorer_data({ name, config, tokenizer, weights, mask_tokenizer }) {
  put_in(name, config, tokenizer, read_safetensors(bytes_of(weights)));
  if (mask_tokenizer) explorer.masks = new MaskTokenizer(mask_tokenizer.config, read_safetensors(bytes_of(mask_tokenizer.weights)));
  show_lead();
  show_picture();
  show_prompt_tokens();
  explorer.ready = ask();
}

async function open_files(files) {
  const all = [...files], note = $("other-note");
  const named = (name) => all.find((file) => file.name === name);
  try {
    for (const name of ["config.json", "model.safetensors", "tokenizer.json"]) {
      if (!named(name)) throw Object.assign(new Error(t("other_missing", { name, count: all.length })), { told: true });
    }
    const json = async (name) => JSON.parse(await named(name).text());
    const config = await json("config.json"), tokenizer = await json("tokenizer.json");
    const tensors = read_safetensors(await named("model.safetensors").arrayBuffer());
    const folder = named("config.json").webkitRelativePath?.split("/").at(-2) ?? config.model_type;
    state.faults = [];
    put_in(folder, config, tokenizer, tensors);
    const { vision_config, text_config } = explorer.model.config;
    note.textContent = t("other_loaded", { name: folder || "PaliGemma", image: vision_config.image_size, count: explorer.processor.image_seq_length, layers: text_config.num_hidden_layers, heads: text_config.num_attention_heads });
  } catch (error) {
    note.textContent = error.told ? error.message : t("other_failed", { message: error.message });
    say(note.textContent);
    return;
  }
  Object.assign(state, { token: null, layer: null, head: null, patch: null, forced: [] });
  show_lead();
  show_picture();
  show_prompt_tokens();
  await ask();
  say(note.textContent);
}

/** Files of a dropped folder, or the dropped files themselves. */
async function dropped_files(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const file_of = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));
  const list_of = (entry) => new Promise((resolve, reject) => entry.createReader().readEntries(resolve, reject));
  const files = [];
  for (const entry of entries) {
    const inside = entry.isDirectory ? await list_of(entry) : [entry];
    for (const one of inside) if (one.isFile) files.push(await file_of(one));
  }
  return files.length ? files : [...transfer.files];
}

function start_other_model() {
  $("files").onchange = () => open_files($("files").files);
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const files = await dropped_files(event.dataTransfer);
    if (files.length === 1 && files[0].type.startsWith("image/")) {
      await put_photo_in(files[0]);
    } else if (files.length) {
      $("part-other").open = true;
      await open_files(files);
    }
  });
}

function start() {
  read_address();
  start_picture();
  start_parts();
  start_header();
  start_other_model();
  translate();
  window.addEventListener("hashchange", () => {
    read_address();
    if (explorer.loaded) put_faults_in();
    translate();
    ask();
  });
  window.addEventListener("load", () => {
    if (!explorer.loaded) $("answer-text").textContent = t("no_data");
  });
}

start();
