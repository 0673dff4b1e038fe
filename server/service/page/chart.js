// What is predicted, as text and as rows on one axis: all together, then each modality by itself.

import { make } from "./ask.js";

const at = (id) => document.getElementById(id);

// Of a normal distribution: nine tenths, and half, lie within so many deviations.
const NINETY = 1.645;
const FIFTY = 0.674;

// Classes and labels that are shown at most.
const MOST = 12;

/** A number with so many decimals; one close to 0 with so many digits. */
export function number(value, digits = 2) {
  const close = value !== 0 && Math.abs(value) < 0.01;
  return (close ? value.toPrecision(digits) : value.toFixed(digits)).replaceAll("-", "−");
}

/** A number as it can be told apart on the scale of the label; less than a ten-thousandth is 0. */
const onScale = (value, [low, high]) => number(Math.abs(value) < (high - low) / 1e4 ? 0 : value);

const percent = (share) => `${Math.round(100 * share)} %`.replaceAll("-", "−");

/** Show a record of /predict; truth is null where it is not known. */
export function draw(record, model, truth) {
  const numbers = model.scale !== null;
  at("said").replaceChildren(...(numbers ? saidNumber(record, model) : saidNames(record)));
  keep(at("chart"), numbers ? numberRows(record, model, truth) : nameRows(record, model, truth));
  const notes = [numbers ? numberNote(truth) : nameNote(record, truth)];
  if (record.context) {
    notes.push(`In training, up to ${model.context} items came before each, which is more than here.`);
  }
  at("note").textContent = notes.join(" ");
  keep(at("sum"), sumRows(record, model));
  at("sum-note").textContent = sumNote(record, model);
}

function saidNumber({ prediction, std, modalities }, { scale }) {
  const low = onScale(prediction - NINETY * std, scale);
  const high = onScale(prediction + NINETY * std, scale);
  return [
    make("strong", { textContent: onScale(prediction, scale) }),
    make("span", { className: "sure", textContent: ` ± ${onScale(std, scale)}` }),
    make("span", {
      className: "muted",
      textContent: ` 90 % between ${low} and ${high}, from ${Object.keys(modalities).join(", ")}`,
    }),
  ];
}

function saidNames({ prediction, probabilities, modalities }) {
  const chosen = [prediction].flat();
  const said = chosen.flatMap((name) => [
    make("span", { className: "said" }, make("strong", { textContent: name }),
      make("span", { className: "sure", textContent: ` ${percent(probabilities[name])}` })),
    " ",
  ]);
  return [
    ...(said.length ? said : [make("strong", { textContent: "none" })]),
    make("span", { className: "muted", textContent: `from ${Object.keys(modalities).join(", ")}` }),
  ];
}

function numberNote(truth) {
  const bars = "The bars hold 50 % and 90 % of what is likely.";
  return truth === null ? bars : `${bars} The diamond is the truth, ${number(truth)}.`;
}

function nameNote({ probabilities }, truth) {
  const all = Object.keys(probabilities).length;
  const words = ["Dots are what each modality says by itself."];
  if (all > MOST) words.push(`The ${MOST} most probable of ${all}.`);
  if (truth !== null) words.push(`Truth: ${[truth].flat().join(", ") || "none"}.`);
  return words.join(" ");
}

// Rows ---------------------------------------------------------------------------------------------

function numberRows({ prediction, std, modalities }, { scale, features }, truth) {
  const place = (value) => clamp((value - scale[0]) / (scale[1] - scale[0]));
  const bar = (name, deviations) =>
    mark(name, place(prediction - deviations * std), place(prediction + deviations * std));
  const marks = [bar("thin", NINETY), bar("thick", FIFTY), mark("dot", place(prediction))];
  if (truth !== null) marks.push(mark("truth", place(truth)));
  return [
    axis(ticks(scale), place),
    row("together", "all together", onScale(prediction, scale), marks),
    ...Object.keys(features).map((name) => {
      const own = modalities[name]?.prediction;
      if (own === undefined) return row(name, name, "–", [], "off");
      return row(name, name, onScale(own, scale), [mark("dot", place(own))], colour(name, features));
    }),
  ];
}

function nameRows({ probabilities, modalities }, { features, task }, truth) {
  const known = new Set(truth === null ? [] : [truth].flat());
  const shown = Object.keys(probabilities)
    .sort((one, other) => probabilities[other] - probabilities[one])
    .slice(0, MOST);
  const order = Object.keys(probabilities).filter((name) => shown.includes(name));
  return order.map((name) => {
    const line = task === "multilabel" ? [mark("half", 0.5)] : [];
    const own = Object.entries(modalities).map(([modality, { probabilities: alone }]) =>
      mark(`dot ${colour(modality, features)}`, alone[name]),
    );
    const title = known.has(name) ? `${name} ◆` : name;
    const bar = mark("fill", 0, probabilities[name]);
    return row(name, title, percent(probabilities[name]), [bar, ...line, ...own], "share");
  });
}

/** The base, what each modality adds to it, and the prediction, on the scale of the label. */
function sumRows(record, { scale, features }) {
  const name = scale === null ? explained(record) : null;
  const of = (value) => (name === null ? value : value[name]);
  const [low, high] = scale ?? [0, 1];
  const place = (value) => clamp((value - low) / (high - low));
  const said = (value, sign = "") =>
    sign + (scale ? onScale(value, scale) : percent(value));
  const total = name === null ? record.prediction : record.probabilities[name];
  let sum = of(record.base);
  const rows = [row("base", "base", said(sum), [mark("dot", place(sum))])];
  for (const modality of Object.keys(features)) {
    const own = record.modalities[modality];
    if (own === undefined) {
      rows.push(row(modality, modality, "–", [], "off"));
      continue;
    }
    const added = of(own.contribution);
    const ends = [place(sum), place(sum + added)].sort((one, other) => one - other);
    const value = said(added, added < 0 ? "" : "+");
    rows.push(row(modality, modality, value, [mark("fill", ...ends)], colour(modality, features)));
    sum += added;
  }
  rows.push(row("sum", "prediction", said(total), [mark("dot", place(total))], "together"));
  return rows;
}

/** The class or label that is explained: the most probable. */
function explained({ probabilities }) {
  return Object.keys(probabilities).reduce((one, other) =>
    probabilities[other] > probabilities[one] ? other : one,
  );
}

function sumNote(record, { scale }) {
  const what = scale ? "The base is the mean training label" : `For ${explained(record)}: the base is its share of the training labels`;
  const sure = scale ? " The deviation depends on which modalities an item has, not on their content." : "";
  return `${what}; each modality moves the prediction from there.${sure}`;
}

// Elements -----------------------------------------------------------------------------------------

function row(key, title, value, marks, kind = "") {
  const track = make("span", { className: "track", ariaHidden: "true" }, ...marks);
  const made = make(
    "div",
    { className: `row ${kind}` },
    make("span", { className: "title", textContent: title }),
    track,
    make("span", { className: "value", textContent: value }),
  );
  made.dataset.key = key;
  return made;
}

/** A mark at a share of the track's width, or from one share to another. */
function mark(kind, from, to = from) {
  const made = make("span", { className: `mark ${kind}` });
  made.style.left = `${100 * from}%`;
  if (to !== from) made.style.width = `${100 * (to - from)}%`;
  return made;
}

function axis(values, place) {
  const labels = values.map((value) => {
    const label = make("span", { textContent: number(value, Number.isInteger(value) ? 0 : 1) });
    label.style.left = `${100 * place(value)}%`;
    return label;
  });
  const made = make(
    "div", { className: "row axis", ariaHidden: "true" }, make("span", {}),
    make("span", { className: "track" }, ...labels), make("span", {}),
  );
  made.dataset.key = "axis";
  return made;
}

function ticks([low, high]) {
  const step = (high - low) / 6;
  return Array.from({ length: 7 }, (_, tick) => low + tick * step);
}

function colour(name, features) {
  return `m${Object.keys(features).indexOf(name) % 6}`;
}

const clamp = (share) => Math.min(1, Math.max(0, share));

/** Put rows into a box, keeping elements that are there already, so that marks glide. */
function keep(box, rows) {
  const there = new Map([...box.children].map((row) => [row.dataset.key, row]));
  box.replaceChildren(...rows.map((made) => glide(there.get(made.dataset.key), made)));
}

function glide(old, made) {
  const before = old ? [...old.querySelectorAll(".mark")] : [];
  const after = [...made.querySelectorAll(".mark")];
  if (!old || before.length !== after.length) return made;
  old.className = made.className;
  for (const part of [".title", ".value"]) {
    const [was, is] = [old.querySelector(part), made.querySelector(part)];
    if (was && is) was.textContent = is.textContent;
  }
  before.forEach((part, index) => {
    part.className = after[index].className;
    part.style.left = after[index].style.left;
    part.style.width = after[index].style.width;
  });
  return old;
}
