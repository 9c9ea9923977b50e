// The picture: shapes that can be moved, a pencil, a photograph. WORLD (shapes, colours, scenes) comes from world.js,
// which is written from paligemma/world/scenes.py.
//
// A picture is {background: "#rrggbb", items, photo}. An item is a shape of the little world, {shape, colour, rgb, box,
// angle}, or a line of the pencil, {shape: "line", rgb, box, width, points}. Boxes are [y1, x1, y2, x2] from 0 to 1.
"use strict";

const CANVAS = 512; // side of the drawing in pixels; the model sees it at its own size
const SMALLEST = 5 / 64; // an item's shortest side

/**
 * Closed curves of points [x, y] that bound a turned shape; the outermost fills 0..1 x 0..1, the second curve of the
 * ring is its hole. The same curves as `_outline` in scenes.py.
 */
function outline(shape, angle) {
  const around = (count, radii, start = -90) =>
    Array.from({ length: count }, (_, i) => {
      const turn = ((start + (360 * i) / count) * Math.PI) / 180, radius = radii[i % radii.length];
      return [radius * Math.cos(turn), radius * Math.sin(turn)];
    });
  const a = 1, b = 0.36; // half the length and half the width of an arm of the cross
  const shapes = {
    circle: () => [around(64, [1])],
    ring: () => [around(64, [1]), around(64, [0.55])],
    square: () => [around(4, [1], -45)],
    triangle: () => [around(3, [1])],
    star: () => [around(10, [1, 0.45])],
    cross: () => [
      [[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b], [b, a], [-b, a], [-b, b], [-a, b], [-a, -b], [-b, -b]],
    ],
  };
  const turn = (angle * Math.PI) / 180, cos = Math.cos(turn), sin = Math.sin(turn);
  const curves = shapes[shape]().map((curve) => curve.map(([x, y]) => [x * cos - y * sin, x * sin + y * cos]));
  const low = [0, 1].map((k) => Math.min(...curves[0].map((p) => p[k])));
  const high = [0, 1].map((k) => Math.max(...curves[0].map((p) => p[k])));
  return curves.map((curve) => curve.map((p) => [0, 1].map((k) => (p[k] - low[k]) / (high[k] - low[k]))));
}

/** Curves of an item as an SVG path in a square of side `size`. */
function item_path(item, size = CANVAS) {
  const [y1, x1, y2, x2] = item.box;
  const place = ([x, y]) => `${((x1 + x * (x2 - x1)) * size).toFixed(2)} ${((y1 + y * (y2 - y1)) * size).toFixed(2)}`;
  if (item.shape === "line") return `M${item.points.map(place).join("L")}`;
  return outline(item.shape, item.angle).map((curve) => `M${curve.map(place).join("L")}Z`).join("");
}

/** Draw the whole picture into a canvas of CANVAS x CANVAS pixels; a photograph is squeezed into the square. */
function draw_picture(canvas, picture) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = picture.background;
  pen.fillRect(0, 0, CANVAS, CANVAS);
  if (picture.photo) pen.drawImage(picture.photo.canvas, 0, 0, CANVAS, CANVAS);
  for (const item of picture.items) {
    const path = new Path2D(item_path(item));
    if (item.shape === "line") {
      Object.assign(pen, { strokeStyle: item.rgb, lineWidth: item.width * CANVAS, lineCap: "round", lineJoin: "round" });
      pen.stroke(path);
    } else {
      pen.fillStyle = item.rgb;
      pen.fill(path, "evenodd");
    }
  }
}

/** What the processor is given: {width, height, channels: 3, data}. An untouched photograph keeps its own pixels. */
function picture_pixels(canvas, picture) {
  const source = picture.photo && !picture.items.length ? picture.photo.canvas : canvas;
  const { width, height } = source;
  const rgba = source.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height).data;
  const data = new Uint8ClampedArray(width * height * 3);
  for (let i = 0, from = 0, to = 0; i < width * height; i++, from++) {
    data[to++] = rgba[from++];
    data[to++] = rgba[from++];
    data[to++] = rgba[from++]; // the fourth, opacity, is always full
  }
  return { width, height, channels: 3, data };
}

/** A file as a photograph: upright, on white where it is transparent, at most 2,048 pixels a side. */
async function read_photo(file) {
  const bitmap = await createImageBitmap(file);
  const shrink = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(Math.round(bitmap.width * shrink), 1);
  canvas.height = Math.max(Math.round(bitmap.height * shrink), 1);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { canvas, name: file.name };
}

// ------------------------------------------------------------------------------------------------ words for items

const MIDDLE_SIZE = 19.5 / 64; // small shapes are up to 17/64 of the side high, large ones 22/64 and more

function item_size(item) {
  return item.box[2] - item.box[0] < MIDDLE_SIZE ? "small" : "large";
}

/** What an item is called, in English: `small red circle`; a line has no name in the little world. */
function item_name(item) {
  return item.shape === "line" ? "line" : `${item_size(item)} ${item.colour} ${item.shape}`;
}

/** The shapes that a description such as `small red circle`, `circle` or `red thing` fits. */
function find_items(items, description) {
  const known = new Set(["small", "large", ...WORLD.shapes, ...Object.keys(WORLD.colours)]);
  const words = description.toLowerCase().split(/[^a-z]+/).map(singular).filter((word) => known.has(word));
  if (!words.length) return [];
  return items.filter((item) => item.shape !== "line" && words.every((word) => item_name(item).split(" ").includes(word)));
}

function singular(word) {
  return WORLD.shapes.find((shape) => word === `${shape}s` || word === `${shape}es`) ?? word;
}

/** A description that fits this shape and no other: as short as can be. */
function unique_description(items, item) {
  const { shape, colour } = item, full = item_name(item);
  return [shape, `${colour} ${shape}`, full].find((words) => find_items(items, words).length === 1) ?? full;
}

// -------------------------------------------------------------------------------------------------- making pictures

const hex = (rgb) => "#" + rgb.map((level) => level.toString(16).padStart(2, "0")).join("");

/** Scene `number` of the package, without the noise and the unevenness of its background. */
function stored_scene(number) {
  const { background, things } = WORLD.scenes[number % WORLD.scenes.length];
  return {
    background: hex(background), photo: null,
    items: things.map(([shape, colour, rgb, box, angle]) => ({ shape, colour, rgb: hex(rgb), box, angle })),
  };
}

/** A box of this size where nothing is yet, or as good as that is possible. */
function free_box(items, side) {
  let best = null;
  for (let tries = 0; tries < 60; tries++) {
    const y = 0.02 + Math.random() * (0.96 - side), x = 0.02 + Math.random() * (0.96 - side);
    const box = [y, x, y + side, x + side].map((edge) => Math.round(edge * 64) / 64);
    const gap = (o) => Math.max(o.box[0] - box[2], box[0] - o.box[2], o.box[1] - box[3], box[1] - o.box[3]);
    const room = Math.min(1, ...items.map(gap));
    if (!best || room > best.room) best = { box, room };
    if (room >= 2 / 64) break;
  }
  return best.box;
}

/** A line of the pencil from points [x, y] in 0..1: its box, and the points inside that box. */
function line_from_points(points, rgb, width) {
  const low = [0, 1].map((k) => Math.min(...points.map((p) => p[k])));
  const high = [0, 1].map((k) => Math.max(Math.max(...points.map((p) => p[k])), low[k] + 0.004));
  const inside = points.map((p) => [0, 1].map((k) => Number(((p[k] - low[k]) / (high[k] - low[k])).toFixed(3))));
  return { shape: "line", rgb, width, box: [low[1], low[0], high[1], high[0]], points: inside };
}

// -------------------------------------------------------------------------------------------- a picture as a link

/** circle.red.e11e23.80.96.240.256.-5~... with boxes in 512ths; lines are line.rgb.box.width.x,y,x,y in hundredths. */
function picture_to_text({ items }) {
  return items.map((item) => {
    const box = item.box.map((edge) => Math.round(edge * CANVAS)), rgb = item.rgb.slice(1);
    if (item.shape !== "line") return [item.shape, item.colour, rgb, ...box, Math.round(item.angle)].join(".");
    return ["line", rgb, ...box, Math.round(item.width * CANVAS), item.points.flat().map((v) => Math.round(v * 100)).join(",")].join(".");
  }).join("~");
}

function text_to_items(text) {
  const items = [];
  for (const part of text.split("~")) {
    const fields = part.split(".");
    const isLine = fields[0] === "line", numbers = fields.slice(isLine ? 2 : 3).map(Number);
    const rgb = `#${fields[isLine ? 1 : 2]}`, box = numbers.slice(0, 4).map((edge) => edge / CANVAS);
    if (!/^#[0-9a-f]{6}$/.test(rgb) || !(box[0] < box[2] && box[1] < box[3]) || box.some((edge) => edge < -1 || edge > 2)) continue;
    if (!Number.isFinite(numbers[4])) continue; // a line's width, a shape's angle
    if (isLine) {
      const flat = (fields[7] ?? "").split(",").map((v) => Number(v) / 100);
      const points = Array.from({ length: flat.length >> 1 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
      if (points.length > 1 && flat.every(Number.isFinite)) items.push({ shape: "line", rgb, box, width: numbers[4] / CANVAS, points });
    } else if (WORLD.shapes.includes(fields[0]) && Object.hasOwn(WORLD.colours, fields[1])) {
      items.push({ shape: fields[0], colour: fields[1], rgb, box, angle: numbers[4] });
    }
  }
  return items;
}
