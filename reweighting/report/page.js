"use strict";
// Texts of users and models go into the page by textContent only, never as HTML.

const BATCH = 20; // cards that are made at a time
const LOW = [241, 163, 64], MIDDLE = [247, 247, 247], HIGH = [103, 169, 207]; // orange, blue
const OUTCOMES = {
  missed: "wrong, though a right one was there",
  hopeless: "wrong: no candidate is right",
  right: "right",
  unknown: "not known",
};

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function text(className, value) {
  const made = element("div", `text ${className}`, value);
  made.dir = "auto";
  return made;
}

// From orange over white to blue, which all kinds of colour blindness keep apart.
function colour(score) {
  const [from, to, share] = score < 0.5 ? [LOW, MIDDLE, 2 * score] : [MIDDLE, HIGH, 2 * score - 1];
  const mixed = from.map((value, i) => Math.round(value + (to[i] - value) * share));
  return `rgb(${mixed.join(", ")})`;
}

function valueBox(score, title) {
  const made = element("span", "value", score.toFixed(2));
  made.style.backgroundColor = colour(score);
  made.title = title;
  return made;
}

function picture(number, alt) {
  const made = element("img");
  made.alt = alt;
  made.decoding = "async";
  made.src = data.images[number];
  return made;
}

function scoreTitle(candidate, step) {
  const score = candidate.scores[step].toFixed(4), z = candidate.log_odds[step].toFixed(4);
  return `step ${step + 1}: V = ${score}, z = ${z}`;
}

function mark(right) {
  if (right === null) return element("span", "mark", "? not known");
  return element("span", `mark ${right ? "right" : "wrong"}`, right ? "✓ right" : "✗ wrong");
}

function candidateRow(candidate, number, aggregation, chosen, open) {
  const row = element("details", "candidate");
  const total = candidate.totals[aggregation];
  const strip = element("span", "strip");
  candidate.scores.forEach((score, step) => {
    strip.append(valueBox(score, scoreTitle(candidate, step)));
  });
  const answer = element("bdi", "", candidate.answer || "no readable answer");
  const shown = total === null ? "no steps" : total.toFixed(2);
  const summary = element("summary", "", element("span", "total", shown), mark(candidate.right),
    strip, answer, chosen ? element("span", "chosen", "chosen") : null);
  summary.title = `candidate ${number + 1}`;
  row.append(summary);
  // The steps are made when they are first looked at.
  row.addEventListener("toggle", () => {
    if (row.open && row.childElementCount === 1) row.append(...steps(candidate));
  });
  row.open = open;
  return row;
}

function steps(candidate) {
  const made = candidate.steps.map((step, number) => {
    const score = candidate.scores[number];
    const line = element("div", "step", element("span", "value", score.toFixed(2)), text("", step));
    line.style.backgroundColor = colour(score);
    line.title = scoreTitle(candidate, number);
    return line;
  });
  if (candidate.before) made.unshift(text("unscored", candidate.before));
  if (candidate.after) made.push(text("unscored", candidate.after));
  return made;
}

// How a question came out under an aggregation, with its candidates from the best to the worst.
function judged(question, aggregation) {
  const { candidates } = question;
  const total = (number) => candidates[number].totals[aggregation] ?? -Infinity;
  const order = candidates.map((_, number) => number).sort((a, b) => total(b) - total(a));
  const chosen = question.chosen[aggregation];
  order.sort((a, b) => (b === chosen) - (a === chosen)); // the first among equals
  const right = order.filter((number) => candidates[number].right);
  let outcome = "unknown";
  if (candidates[chosen].right !== null) {
    outcome = candidates[chosen].right ? "right" : right.length ? "missed" : "hopeless";
  }
  // By how much a wrong candidate was preferred to the best right one.
  const margin = outcome === "missed" ? total(chosen) - total(right[0]) : 0;
  return { question, order, chosen, outcome, margin, best: right[0] };
}

function card(found, aggregation) {
  const { question, order, chosen, outcome, best } = found;
  const set = data.selection.sets[question.set];
  const about = [set, `record ${question.record}`, question.dataset, OUTCOMES[outcome]];
  const made = element("article", `card ${outcome}`);
  const pictures = element("div", "pictures");
  question.images.forEach((number, i) => pictures.append(picture(number, `image ${i + 1}`)));
  const body = element("div", "", text("about", about.filter(Boolean).join(" · ")),
    text("question", question.question));
  if (question.answer) body.append(text("about", `right answer: ${question.answer}`));
  for (const number of order) {
    const open = at("unfold").checked || number === chosen
      || (outcome === "missed" && number === best);
    const candidate = question.candidates[number];
    body.append(candidateRow(candidate, number, aggregation, number === chosen, open));
  }
  made.append(pictures, body);
  return made;
}

function searchable(question) {
  const parts = [question.question, question.dataset, question.answer];
  for (const candidate of question.candidates) {
    parts.push(...candidate.steps, candidate.after, candidate.answer);
  }
  return parts.join("\n").toLowerCase();
}

function option(select, value, label) {
  const made = element("option", "", label);
  made.value = value;
  select.append(made);
}

function showSelection({ sets, questions }) {
  const texts = questions.map(searchable);
  Object.keys(questions[0].chosen).forEach((name) => option(at("aggregation"), name, name));
  option(at("set"), "", "all");
  sets.forEach((name, number) => option(at("set"), number, name));
  option(at("outcome"), "", "all");
  Object.entries(OUTCOMES).forEach(([name, label]) => option(at("outcome"), name, label));
  for (let tenth = 0; tenth <= 10; tenth += 1) {
    at("legend").append(valueBox(tenth / 10, `V = ${tenth / 10}`));
  }
  let waiting = [];
  const watcher = new IntersectionObserver((entries) => {
    if (waiting.length && entries.some((entry) => entry.isIntersecting)) more();
  }, { rootMargin: "1000px" });

  function more() {
    const aggregation = at("aggregation").value;
    at("questions").append(...waiting.splice(0, BATCH).map((found) => card(found, aggregation)));
    at("end").textContent = waiting.length ? `${waiting.length} more below` : "";
    watcher.unobserve(at("end")); // observed anew, it says whether it is still in sight
    watcher.observe(at("end"));
  }

  function update() {
    const aggregation = at("aggregation").value, words = at("search").value.trim().toLowerCase();
    const rank = Object.keys(OUTCOMES);
    const all = questions.map((question) => judged(question, aggregation));
    waiting = all.filter((found, number) =>
      (at("set").value === "" || String(found.question.set) === at("set").value)
      && (at("outcome").value === "" || found.outcome === at("outcome").value)
      && texts[number].includes(words));
    at("count").textContent = `${waiting.length} of ${questions.length} questions`;
    waiting.sort((a, b) => rank.indexOf(a.outcome) - rank.indexOf(b.outcome)
      || b.margin - a.margin);
    const known = all.filter((found) => found.outcome !== "unknown");
    const right = known.filter((found) => found.outcome === "right").length;
    const missed = known.filter((found) => found.outcome === "missed").length;
    at("summary").textContent = known.length
      ? `Of ${known.length} questions the choice is right in ${right} `
        + `(${(100 * right / known.length).toFixed(1)} %) and misses a right candidate in ${missed}.`
        + " Wrong choices come first, the surest ones on top."
      : "No right and wrong is known.";
    at("questions").replaceChildren();
    more();
  }

  for (const id of ["aggregation", "set", "outcome", "search", "unfold"]) {
    at(id).addEventListener("input", update);
  }
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  update();
}

const number = (value) => (value === null || value === undefined ? "–" : String(
  Number.isInteger(value) ? value : value.toFixed(3)));

function table(head, rows) {
  const line = (tag, cells) => element("tr", "",
    ...cells.map((cell) => element(tag, "", element("bdi", "", cell))));
  return element("table", "", line("th", head), ...rows.map((row) => line("td", row)));
}

function record(found) {
  const made = element("div", "record");
  found.images.forEach((image, i) => made.append(picture(image, `image ${i + 1}`)));
  made.append(text("about", `weight ${number(found.weight)} · record ${found.record} · `
    + `${found.domain} · label ${number(found.label)} · visits ${found.visits}`),
  text("", found.text));
  return made;
}

function showRun(run) {
  const body = at("run");
  const last = Object.entries(run.last).filter(([, value]) => value !== null);
  body.append(element("h2", "", "Training run ", element("bdi", "", run.name)),
    text("about", last.map(([name, value]) => `${name} ${number(value)}`).join(" · ")));
  for (const { title, url } of run.figures) {
    const image = element("img");
    image.alt = title;
    image.src = url;
    body.append(element("h3", "", title), element("figure", "", image));
  }
  if (run.domains.length) {
    const head = ["domain", "weight", "average, last quarter", "mean label", "records"];
    const rows = run.domains.map((row) => [row.name,
      ...["weight", "average", "mean_label", "records"].map((name) => number(row[name]))]);
    body.append(element("h3", "", "Domains"), table(head, rows));
  }
  for (const [which, records] of Object.entries(run.records || {})) {
    body.append(element("h3", "", `Records trusted ${which}`),
      element("div", "records", ...records.map(record)));
  }
}

// One part at a time: the list of questions has no end that one would scroll to.
const PARTS = {
  selection: ["Choices", showSelection],
  run: ["Training run", showRun],
};

function turnTo(name) {
  for (const button of at("parts").children) {
    button.setAttribute("aria-pressed", String(button.value === name));
  }
  for (const part of Object.keys(PARTS)) at(part).hidden = part !== name;
}

const present = Object.keys(PARTS).filter((name) => data[name]);
for (const name of present) {
  const [label, show] = PARTS[name];
  const button = element("button", "", label);
  button.value = name;
  button.addEventListener("click", () => turnTo(name));
  if (present.length > 1) at("parts").append(button);
  show(data[name]);
}
turnTo(present[0]);
