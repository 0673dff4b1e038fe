// Questions to the service, with the token where it wants one.

const KEY = "utmp-token";

/** An answer that is an error: its status and its one line. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Ask the service; gives what its JSON holds. */
export async function ask(path, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The service does not answer.");
  }
  const content = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error; // withdrawn while it was read
    return null;
  });
  if (!answer.ok) throw new Refused(answer.status, content?.error ?? `Status ${answer.status}.`);
  if (content === null) throw new Refused(answer.status, "The answer of the service cannot be read.");
  return content;
}

/** Do what needs the service; where the token is missing or wrong, ask for it first. */
export async function begin(task) {
  try {
    await task();
  } catch (error) {
    if (error.status !== 401) return say(error.message);
    const wrong = sessionStorage.getItem(KEY) !== null;
    sessionStorage.removeItem(KEY);
    askForToken(wrong, () => begin(task));
  }
}

/** An element, with properties and what is in it. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(message) {
  document.querySelector("header").after(
    make("p", { className: "card problem", role: "alert", textContent: message }),
  );
}

function askForToken(wrong, go) {
  const input = make("input", {
    id: "token", type: "password", autocomplete: "current-password", required: true,
  });
  const form = make(
    "form",
    { className: "card token", id: "token-form" },
    make("label", { htmlFor: "token", textContent: "Token of this service" }),
    input,
    make("button", { textContent: "Go on" }),
  );
  if (wrong) {
    form.append(make("p", { className: "problem", role: "alert", textContent: "That is not it." }));
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, input.value);
    form.remove();
    go();
  });
  document.querySelector("header").after(form);
  input.focus();
}
