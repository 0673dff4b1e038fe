// The list of what the service answers, from its own openapi.json.

import { ask, begin, make } from "./ask.js";

begin(async () => {
  const schema = await ask("openapi.json");
  document.getElementById("about").textContent = schema.info.summary;
  const main = document.getElementById("main");
  main.replaceChildren(
    ...Object.entries(schema.paths).flatMap(([path, ways]) =>
      Object.entries(ways).map(([method, way]) => route(path, method, way, schema)),
    ),
  );
  main.hidden = false;
});

function route(path, method, way, schema) {
  const parts = [
    make("h2", {}, make("code", { textContent: `${method.toUpperCase()} ${path}` })),
    make("p", { textContent: way.description }),
  ];
  const asked = way.requestBody?.content["application/json"].schema;
  if (asked) parts.push(block("Body", shape(asked, schema)));
  parts.push(block("In a shell", command(path, method, way)));
  const answers = Object.entries(way.responses).map(([status, answer]) => {
    const given = answer.content?.["application/json"]?.schema;
    const text = status === "200" ? "" : answer.description;
    return make(
      "li",
      {},
      make("code", { textContent: status }),
      ` ${text}`,
      ...(given && status === "200" ? [make("pre", { tabIndex: 0, textContent: shape(given, schema) })] : []),
    );
  });
  parts.push(make("h3", { textContent: "Answers" }), make("ul", {}, ...answers));
  return make("section", { className: "card route" }, ...parts);
}

function block(title, text) {
  return make(
    "div", {}, make("h3", { textContent: title }), make("pre", { tabIndex: 0, textContent: text }),
  );
}

function command(path, method, way) {
  const address = new URL(path.slice(1), document.baseURI);
  const words = ["curl"];
  if (way.security) words.push("-H 'Authorization: Bearer TOKEN'");
  if (method === "post") words.push("-H 'Content-Type: application/json' -d @request.json");
  return [...words, decodeURI(address)].join(" ");
}

/** A schema as the JSON that it means. */
function shape(schema, whole, indent = "") {
  if (schema.$ref) {
    return shape(whole.components.schemas[schema.$ref.split("/").at(-1)], whole, indent);
  }
  if (schema.anyOf) return schema.anyOf.map((option) => shape(option, whole, indent)).join(" | ");
  if (schema.type === "array") return `[${shape(schema.items, whole, indent)}, …]`;
  if (schema.properties) {
    const required = new Set(schema.required);
    const lines = Object.entries(schema.properties).map(([name, property]) => {
      const remark = property.description ? `   // ${property.description}` : "";
      const optional = required.has(name) ? "" : "?";
      return `${indent}  "${name}"${optional}: ${shape(property, whole, `${indent}  `)}${remark}\n`;
    });
    return `{\n${lines.join("")}${indent}}`;
  }
  if (schema.additionalProperties) {
    return `{"…": ${shape(schema.additionalProperties, whole, indent)}}`;
  }
  return { string: "text", integer: "number", object: "{…}" }[schema.type] ?? schema.type ?? "any";
}
