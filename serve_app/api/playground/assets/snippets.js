// A request written as code that makes the same picture again. Every text is quoted for its language.

import { partsOf, pathOf } from "./request.js";

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function python(value, indent = "") {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const lines = Array.isArray(value)
    ? value.map((each) => `${inner}${python(each, inner)},`)
    : Object.entries(value).map(([name, each]) => `${inner}${JSON.stringify(name)}: ${python(each, inner)},`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return lines.length ? `${open}\n${lines.join("\n")}\n${indent}${close}` : open + close;
}

export function curl(request, { origin, needsKey }) {
  const lines = [`curl -sf ${shell(origin + pathOf(request))}`, "-H 'Accept: image/png'"];
  if (needsKey) lines.push(`-H "Authorization: Bearer $DARKROOM_API_KEY"`);
  const parts = partsOf(request);
  if (parts === null) {
    lines.push("-H 'Content-Type: application/json'", `-d ${shell(JSON.stringify(request.fields))}`);
  } else {
    for (const [name, value, file] of parts) {
      // `-F` would read a text that begins with @ or < from a file.
      lines.push(file ? `-F ${name}=@${file}` : `--form-string ${shell(`${name}=${value}`)}`);
    }
  }
  return `${[...lines, "-o picture.png"].join(" \\\n  ")}\n`;
}

export function httpx(request, { origin, needsKey }) {
  const parts = partsOf(request);
  const headers = { Accept: "image/png" };
  const body = [];
  if (parts === null) body.push(`    json=${python(request.fields, "    ")},`);
  else {
    const texts = Object.fromEntries(parts.filter(([, , file]) => !file));
    const files = parts.filter(([, , file]) => file);
    body.push(`    data=${python(texts, "    ")},`, "    files={");
    for (const [name, , file] of files) body.push(`        ${python(name)}: Path(${python(file)}).read_bytes(),`);
    body.push("    },");
  }
  const key = needsKey ? ` | {"Authorization": f"Bearer {os.environ['DARKROOM_API_KEY']}"}` : "";
  return `${[
    ...(needsKey ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "import httpx",
    "",
    "answer = httpx.post(",
    `    ${python(origin + pathOf(request))},`,
    ...body,
    `    headers=${python(headers, "    ")}${key},`,
    "    timeout=600,",
    ")",
    "answer.raise_for_status()",
    'Path("picture.png").write_bytes(answer.content)',
  ].join("\n")}\n`;
}

/** With OpenAI's own package, whose masks are transparent where the picture is made anew. */
export function openai({ fields, control, files }, { origin, needsKey }) {
  const { prompt, model_name: model, width, height, num_images: _, ...own } = fields;
  const controlled = control && files.control;
  if (controlled) {
    own.controls = [{ type: control.type, scale: control.scale, start: control.start, end: control.end }];
    own.preprocess = control.preprocess;
  }
  // Its further images are reference images only behind one that is changed.
  const isLeftOut = files.reference && !files.init;
  if (isLeftOut) delete own.reference;
  const images = [
    ...(files.init ? ["input.png"] : []),
    ...(controlled ? ["control.png"] : []),
    ...(files.reference && files.init ? ["reference.png"] : []),
  ];
  const read = (name) => `Path(${python(name)}).read_bytes()`;
  const lines = [`    prompt=${python(prompt)},`];
  if (images.length === 1) lines.push(`    image=${read(images[0])},`);
  if (images.length > 1) lines.push(`    image=[${images.map(read).join(", ")}],`);
  if (files.init && files.mask) lines.push(`    mask=${read("mask-openai.png")},`);
  if (model) lines.push(`    model=${python(model)},`);
  if (width) lines.push(`    size="${width}x${height}",`);
  lines.push(`    extra_body=${python(own, "    ")},`);
  const key = needsKey ? `os.environ["DARKROOM_API_KEY"]` : `"none"`;
  return `${[
    ...(isLeftOut ? ["# Without the picture to take after: here that needs a picture to start from."] : []),
    "import base64",
    ...(needsKey ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(`${origin}/v1`)}, api_key=${key})`,
    `made = client.images.${images.length ? "edit" : "generate"}(`,
    ...lines,
    ")",
    'Path("picture.png").write_bytes(base64.b64decode(made.data[0].b64_json))',
  ].join("\n")}\n`;
}
