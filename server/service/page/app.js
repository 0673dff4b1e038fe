// Pick or paste an item, switch its modalities, and watch what is predicted.

import { ask, begin, make } from "./ask.js";
import { draw, number } from "./chart.js";

const at = (id) => document.getElementById(id);

const state = { model: null, item: null, truth: null, on: new Set() };
let asking = new AbortController();
let picked = null;

begin(start);

async function start() {
  const [model, examples] = await Promise.all([ask("model"), ask("examples")]);
  state.model = model;
  describe(model);
  offer(examples);
  at("main").hidden = false;
  const typical = examples.findIndex((example) => example.typical);
  if (examples.length) {
    at("example").value = typical;
    await pick(typical);
  }
  else at("paste").open = true;
}

function describe(model) {
  document.title = `${model.name}: prediction`;
  at("name").textContent = model.name;
  const words = [model.task, `fusion: ${model.fusion.rule.replaceAll("_", " ")}`];
  const { strategy, rounds, delivered_round: delivered } = model.training;
  if (strategy) words.push(`trained by ${strategy}`);
  if (rounds) words.push(delivered ? `round ${delivered} of ${rounds}` : `${rounds} rounds`);
  at("about").textContent = words.join(" · ");
  const made = Object.entries(model.features).filter(([, { extractor }]) => extractor);
  at("extractors").hidden = made.length === 0;
  at("extractors").textContent = made.map(([name, { extractor }]) => `${name}: ${extractor}`)
    .join("; ");
  const shapes = Object.entries(model.features).map(
    ([name, { width }]) => `"${name}": [[${width} numbers], …]`,
  );
  at("shape").textContent = `{${shapes.join(", ")}}; leave out what the item lacks.`;
}

function offer(examples) {
  at("pick").hidden = examples.length === 0;
  at("example").replaceChildren(
    ...examples.map(({ id, label }, number) =>
      make("option", { value: number, textContent: `${id} (${labelText(label)})` }),
    ),
  );
}

function labelText(label) {
  if (typeof label === "number") return number(label);
  return Array.isArray(label) ? label.join(", ") || "none" : label;
}

async function pick(number) {
  picked = number;
  try {
    const { item, label } = await ask(`examples/${number}`);
    if (picked !== number) return; // another was picked meanwhile
    take(item, label);
    write();
  } catch (error) {
    complain(error.message);
  }
}

const names = () => Object.keys(state.model.features);

/** Show an item; modalities that were off stay off. */
function take(item, truth) {
  const off = new Set(state.item ? Object.keys(state.item).filter((name) => !state.on.has(name)) : []);
  state.item = item;
  state.truth = truth;
  const there = names().filter((name) => item[name]);
  state.on = new Set(there.filter((name) => !off.has(name)));
  switches();
  predict();
}

function switches() {
  at("modalities").replaceChildren(
    ...names().map((name, number) => {
      const rows = state.item[name];
      const input = make("input", {
        type: "checkbox", role: "switch", id: `switch-${name}`, checked: state.on.has(name),
        disabled: !rows,
      });
      input.addEventListener("change", () => {
        if (input.checked) state.on.add(name);
        else state.on.delete(name);
        predict();
      });
      const steps = rows?.length === 1 ? "step" : "steps";
      const about = rows ? `${rows.length} ${steps} × ${rows[0]?.length}` : "not in this item";
      return make(
        "li",
        { className: `modality m${number % 6}` },
        make(
          "label",
          {},
          input,
          make("span", { className: "swatch", ariaHidden: "true" }),
          make("span", { textContent: name }),
          make("span", { className: "muted small", textContent: about }),
        ),
      );
    }),
  );
}

async function predict() {
  asking.abort();
  asking = new AbortController();
  if (state.on.size === 0) return complain(`Nothing to predict from: ${names().join(", ")} are off.`);
  const features = Object.fromEntries([...state.on].map((name) => [name, state.item[name]]));
  try {
    const answer = await ask("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ items: [{ id: state.item.id, ...features }] }),
      signal: asking.signal,
    });
    at("problem").hidden = true;
    at("result").hidden = false;
    at("result").classList.remove("stale");
    draw(answer.predictions[0], state.model, state.truth);
  } catch (error) {
    if (error.name === "AbortError") return;
    complain(error.message);
    if (error.status === 401) begin(start);
  }
}

function complain(message) {
  at("problem").textContent = message;
  at("problem").hidden = false;
  at("result").classList.add("stale");
}

/** Put the item into the text, a line a step, if the text can be seen. */
function write() {
  if (!at("paste").open || !state.item) return;
  const parts = Object.entries(state.item).map(([name, value]) => {
    const rows = Array.isArray(value)
      ? `[\n  ${value.map((row) => JSON.stringify(row)).join(",\n  ")}]`
      : JSON.stringify(value);
    return `${JSON.stringify(name)}: ${rows}`;
  });
  at("json").value = `{${parts.join(",\n")}}`;
}

function read() {
  const text = at("json").value.trim();
  if (!text) return;
  picked = null;
  try {
    take(itemOf(JSON.parse(text)), null);
    at("example").selectedIndex = -1;
  } catch (error) {
    asking.abort();
    complain(`This is not an item: ${error.message}`);
  }
}

/** The item in what was pasted: itself, or the first of a request. */
function itemOf(given) {
  const item = Array.isArray(given?.items) ? given.items[0] : given;
  if (item === null || typeof item !== "object" || Array.isArray(item)) {
    throw new Error("expected an object");
  }
  const known = ["id", ...names()];
  const other = Object.keys(item).find((name) => !known.includes(name));
  if (other !== undefined) throw new Error(`it has "${other}"; expected only ${known.join(", ")}`);
  if (!names().some((name) => item[name])) throw new Error(`it has none of ${names().join(", ")}`);
  return item;
}

let typing;
at("json").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(read, 300);
});
at("paste").addEventListener("toggle", write);
at("example").addEventListener("change", (event) => pick(event.target.value));
