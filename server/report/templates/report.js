"use strict";
(() => {
  const root = document.documentElement;
  const button = document.querySelector("#theme");
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const say = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show on a ${dark() ? "light" : "dark"} ground`);
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    say();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
  say();
  // The values of a chart's nearest row, where the pointer is; they are in its table, too.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const image of document.querySelectorAll("img[data-places]")) {
    const places = JSON.parse(image.dataset.places);
    if (!places.length) continue;
    const figure = image.closest("figure");
    const heads = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
    const rows = [...figure.querySelectorAll("tbody tr")];
    image.addEventListener("pointermove", ({ clientX, clientY }) => {
      const box = image.getBoundingClientRect();
      const far = ([x, y]) => Math.hypot(
        x === null ? 0 : box.left + x * box.width - clientX,
        y === null ? 0 : box.top + y * box.height - clientY,
      );
      const nearest = places.reduce((best, place, n) => (far(place) < far(places[best]) ? n : best), 0);
      const cells = [...rows[nearest].children].map((cell) => cell.textContent);
      tip.textContent = cells
        .map((cell, n) => (heads[n] ? `${heads[n]}: ${cell}` : cell))
        .join("\n");
      tip.hidden = false;
      tip.style.left = `${Math.max(4, Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${Math.max(4, Math.min(clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
    });
    image.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
  // A link to what is inside a closed part opens it.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let part = target; part; part = part.parentElement) {
      if (part.tagName === "DETAILS") part.open = true;
    }
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
})();
