// The sample browser: a filtered list, and the completion chosen from it. Text reaches the page as text nodes only.
"use strict";

const samples = JSON.parse(document.getElementById("samples-data").textContent);
const filters = document.getElementById("filters");
const rows = document.getElementById("rows");
const detail = document.getElementById("detail");

const unique = (values) => [...new Set(values)];
const format = (value) => (value === null ? "—" : value.toFixed(3));

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

function offer(name, values) {
  for (const value of values) filters.elements[name].append(new Option(value, value));
}

function matches(sample, wanted) {
  const { step, verdict, component, low, high } = wanted;
  if (step && step !== String(sample.step) && step !== sample.extreme) return false;
  if (verdict && verdict !== sample.verdict) return false;
  const scores = sample.scores.filter((score) => !component || score.component === component);
  const within = ({ value }) => value !== null && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
  if ((low !== "" || high !== "") && !scores.some(within)) return false;
  if (component && scores.length === 0) return false;
  const texts = [sample.problem, sample.prompt, sample.completion, sample.answer, ...sample.scores.flatMap((s) => [s.judged, s.reason])];
  return texts.some((text) => text.toLowerCase().includes(wanted.text.toLowerCase()));
}

function list() {
  const wanted = Object.fromEntries(new FormData(filters));
  const found = samples.filter((sample) => matches(sample, wanted));
  document.getElementById("count").textContent = `${found.length} of the ${samples.length} here`;
  rows.replaceChildren(...found.map((sample) => row(sample, wanted.text)));
  if (found.length) choose(rows.firstChild, found[0], wanted.text);
  else detail.replaceChildren(element("p", "note", "No completion is like that."));
}

function row(sample, text) {
  const made = element(
    "button", "row",
    element("span", "", sample.step),
    element("span", "problem", sample.problem),
    element("span", "", sample.sample),
    element("span", `verdict ${sample.verdict}`, sample.verdict),
    element("span", "", format(sample.reward)),
    element("span", "", sample.length),
  );
  made.type = "button";
  made.addEventListener("click", () => choose(made, sample, text));
  return made;
}

function choose(chosen, sample, text) {
  for (const other of rows.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  chosen.setAttribute("aria-current", "true");
  const place = `step ${sample.step} · ${sample.problem} · sample ${sample.sample} · ${sample.length} tokens · ended by ${sample.finish}`;
  detail.replaceChildren(
    element("p", "note", element("span", `verdict ${sample.verdict}`, sample.verdict), ` ${place}`),
    ...passage("prompt", sample.prompt, text),
    ...passage("completion", sample.completion, text),
    ...passage("right answer", sample.answer, text),
    scoreTable(sample),
  );
}

function passage(title, content, text) {
  return [element("h4", "", title), element("pre", title === "completion" ? "own" : "", ...marked(content, text))];
}

function marked(content, text) {
  const parts = [];
  const found = content.toLowerCase();
  let end = 0;
  for (let at; text && (at = found.indexOf(text.toLowerCase(), end)) >= 0; end = at + text.length) {
    parts.push(content.slice(end, at), element("mark", "", content.slice(at, at + text.length)));
  }
  return [...parts, content.slice(end) || (parts.length ? "" : "—")];
}

function scoreTable(sample) {
  const line = (cell, ...texts) => element("tr", "", ...texts.map((text) => element(cell, "", text)));
  const scores = sample.scores.map((s) =>
    line("td", s.component, s.value === null ? "invalid" : format(s.value), format(s.weighted), s.judged, s.reason));
  const total = line("td", "combined", "", format(sample.reward), "", "");
  total.className = "total";
  return element("table", "scores", line("th", "component", "raw value", "weighted", "judged", "reason"), ...scores, total);
}

offer("step", unique(samples.map((sample) => sample.step)).sort((a, b) => a - b));
offer("verdict", ["correct", "wrong", "invalid", "unjudged"].filter((verdict) => samples.some((s) => s.verdict === verdict)));
offer("component", unique(samples.flatMap((sample) => sample.scores.map((score) => score.component))));
filters.addEventListener("input", list);
filters.addEventListener("reset", () => setTimeout(list)); // after the fields are empty
filters.addEventListener("submit", (event) => event.preventDefault());
rows.addEventListener("keydown", (event) => {
  const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const to = next && event.target[next];
  if (to) { to.focus(); to.click(); event.preventDefault(); }
});
list();
