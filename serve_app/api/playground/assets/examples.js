// What a first visitor may try: for the demo models, things of the small world that they know.

const DEMO = [
  ["a red cup on a blue background", "cup", "#d93a2b", "#2b50c8", { seed: 7 }],
  ["a large pink heart on a purple background", "heart", "#f08fbf", "#7a2fa6", { seed: 11 }],
  ["a green bottle on a yellow background", "bottle", "#2f9449", "#f5d327", { seed: 3 }],
  ["a pink shoe on a cyan background", "shoe", "#f08fbf", "#3fcbd3", { seed: 2, style_preset: "minimalist" }],
  ["a white ring on a red background", "ring", "#ffffff", "#d3222a", { seed: 9, style_preset: "luxury" }],
  ["a gift box on a blue background", "box", "#f5c92a", "#2b50c8", { seed: 2, num_images: 4 }],
];

const OTHERS = [
  ["product photo of a ceramic coffee cup on an oak table, morning light", "cup", "#8a5a3b", "#ead9c3", {}],
  ["a perfume bottle among white flowers, soft studio light", "bottle", "#c99bb4", "#f3ece6", {}],
  ["a running shoe in mid-air, bright background, advertisement", "shoe", "#e5402b", "#cfe6f5", {}],
  ["a gift box with a ribbon, snow, warm window light", "box", "#b3261e", "#dfe7ef", {}],
  ["a silver ring on black velvet, macro photo", "ring", "#dadada", "#23201f", {}],
  ["a heart made of roses, top view", "heart", "#c2273c", "#f6e3e2", { num_images: 4 }],
];

export const examplesFor = (model) => (model?.startsWith("demo") ? DEMO : OTHERS);

const SHAPES = {
  cup: "M26 34h36v6h5a11 11 0 0 1 0 22h-6a18 18 0 0 1-17 12h-2a18 18 0 0 1-16-18zM62 46v10h4a5 5 0 0 0 0-10z",
  heart: "M50 76C22 56 22 30 37 30c7 0 11 5 13 9 2-4 6-9 13-9 15 0 15 26-13 46z",
  bottle: "M45 22h10v14c0 5 8 8 8 16v26H37V52c0-8 8-11 8-16z",
  ring: "M42 24h16l5 7-8 8a20 20 0 1 1-10 0l-8-8zM50 46a12 12 0 1 0 0 24 12 12 0 0 0 0-24z",
  shoe: "M24 42l10-2c4 6 10 9 18 11l18 6c6 2 8 5 8 11H24z",
  box: "M28 34h20v36H28zM52 34h20v36H52z",
};

/** A small drawing of an example. */
export function drawingOf([, shape, colour, background]) {
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const drawing = draw("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" });
  drawing.append(draw("rect", { width: 100, height: 100, fill: background }));
  drawing.append(draw("path", { d: SHAPES[shape], fill: colour, "fill-rule": "evenodd" }));
  return drawing;
}
