"use strict";
const page = JSON.parse(document.getElementById("page-data").textContent);
const byId = (id) => document.getElementById(id);

window.addEventListener("error", (event) => {
  byId("broken").hidden = false;
  byId("broken").textContent = "Part of this page could not be drawn: " + event.message;
  document.body.dataset.broken = event.message;
});

// ---- Figures: one after the other, so that the page can be read while the later ones are drawn ----

const waiting = [...document.querySelectorAll(".plot")];

function drawNext() {
  const div = waiting.shift();
  if (!div) {
    document.body.dataset.drawn = document.querySelectorAll(".plot .main-svg").length > 0 ? "all" : "none";
    return;
  }
  const { data, layout } = page.figures[div.dataset.figure];
  const options = {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"],
    showSendToCloud: false, plotlyServerURL: "",  // no button that uploads the figure
  };
  Plotly.newPlot(div, data, layout, options).then(() => {
    div.on("plotly_relayout", (change) => retick(div, layout, change));
    setTimeout(drawNext, 0);
  });
}

// The ticks of log axes are chosen for the whole range: after a zoom plotly chooses, after a reset ours come back.
function retick(div, layout, change) {
  const update = {};
  for (const name of Object.keys(layout).filter((key) => layout[key].tickvals)) {
    if (name + ".range[0]" in change) {
      const whole = Math.abs(change[name + ".range[0]"] - layout[name].range[0]) < 1e-9;
      update[name + ".tickmode"] = whole ? "array" : "auto";
    } else if (change[name + ".autorange"]) {
      update[name + ".tickmode"] = "array";
    }
  }
  if (Object.keys(update).length) Plotly.relayout(div, update);
}

setTimeout(drawNext, 0);

// ---- Calculator: the optimum of L(N, D) = E + A N^-alpha + B D^-beta under C = k N^gamma D, in closed form ----

function optimum(flops, params = page.calculator.params) {
  const { E, A, B, alpha, beta } = params;
  const { k, gamma } = page.calculator.flops_model;
  const N = ((alpha * A) / (gamma * beta * B) * (flops / k) ** beta) ** (1 / (alpha + gamma * beta));
  const D = flops / (k * N ** gamma);
  return { flops, N, D, loss_nats: E + A * N ** -alpha + B * D ** -beta };
}

// The 90% interval as sweep/fit/bootstrap.py makes it: percentiles of the replicates in the log, widened about the estimate.
function interval(estimate, draws) {
  const logs = draws.map(Math.log).sort((a, b) => a - b);
  const at = (share) => {
    const place = share * (logs.length - 1), low = Math.floor(place);
    return logs[low] + (place - low) * (logs[Math.min(low + 1, logs.length - 1)] - logs[low]);
  };
  const centre = Math.log(estimate);
  return [0.05, 0.95].map((share) => Math.exp(centre + page.calculator.widening * (at(share) - centre)));
}

function intervals(best) {
  const draws = page.calculator.replicates;
  if (!draws) return {};
  const each = draws.E.map((_, i) => optimum(best.flops, { E: draws.E[i], A: draws.A[i], B: draws.B[i], alpha: draws.alpha[i], beta: draws.beta[i] }));
  return Object.fromEntries(["N", "D", "loss_nats"].map((name) => [name, interval(best[name], each.map((one) => one[name]))]));
}

// At the optimum B D^-beta = A N^-alpha alpha / (gamma beta): the loss alone gives N, and then D.
function leastCompute(loss_nats) {
  const { E, A, B, alpha, beta } = page.calculator.params;
  const { k, gamma } = page.calculator.flops_model;
  const ratio = alpha / (gamma * beta);
  const N = (A * (1 + ratio) / (loss_nats - E)) ** (1 / alpha);
  const D = (B / (A * N ** -alpha * ratio)) ** (1 / beta);
  return { flops: k * N ** gamma * D, N, D, loss_nats };
}

function count(value) {
  for (const [size, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (value >= size) return Number((value / size).toPrecision(3)) + suffix;
  return String(Number(value.toPrecision(3)));
}

function calculate() {
  const { flops_per_device_hour: perHour, dollars_per_device_hour: rate, largest_flops: largest } = page.calculator;
  const amount = Number(byId("amount").value.replace(/[,_ ]/g, ""));
  const unit = byId("unit").value;
  const answer = byId("answer");
  if (!(amount > 0)) return void (answer.textContent = "Type a positive number, such as 3e12.");
  const floor = page.calculator.params.E;
  if (unit === "loss_nats" && amount <= floor)
    return void (answer.textContent = `No compute reaches ${amount}: the fitted floor is E = ${floor.toPrecision(4)} nats.`);
  const flops = { flops: amount, device_hours: amount * perHour, dollars: (amount / rate) * perHour }[unit];
  const best = unit === "loss_nats" ? leastCompute(amount) : optimum(flops);
  const cost = [`${best.flops.toExponential(2)} FLOPs`];
  if (perHour) cost.push(`${count(best.flops / perHour)} device-hours`);
  if (perHour && rate) cost.push(`$${count((best.flops / perHour) * rate)}`);
  const bits = page.calculator.bytes_per_token
    ? ` (${(best.loss_nats / Math.LN2 / page.calculator.bytes_per_token).toPrecision(3)} bits per byte)` : "";
  const far = best.flops > 1.01 * largest ? ` Extrapolated: ${count(best.flops / largest)}× the compute of the largest run.` : "";
  const known = unit === "loss_nats" ? {} : intervals(best);
  const span = (name, write) => known[name] ? ` [${known[name].map(write).join(", ")}]` : "";
  const nats = (value) => value.toFixed(3);
  answer.textContent = `N = ${count(best.N)}${span("N", count)} parameters, D = ${count(best.D)}${span("D", count)} tokens, ` +
    `L = ${nats(best.loss_nats)}${span("loss_nats", nats)} nats per token${bits}; ${cost.join(" = ")}.${far}`;
  Object.assign(answer.dataset, best, { interval: String(known.loss_nats ?? "") });
}

if (page.calculator) {
  byId("calculator").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["amount", "unit"]) byId(id).addEventListener("input", calculate);
  calculate();
}

// ---- Samples: model output, only ever set as text ----

function showSample() {
  const run = page.samples[Number(byId("sample-size").value)];
  const slider = byId("sample-step");
  slider.max = run.points.length - 1;
  const point = run.points[Math.min(Number(slider.value), run.points.length - 1)];
  byId("sample-where").textContent = `step ${point.step}, ${count(point.tokens)} tokens`;
  byId("sample-prompt").textContent = point.prompt ?? "";
  byId("sample-text").textContent = point.text;
}

if (page.samples.length) {
  page.samples.forEach((run, i) => byId("sample-size").add(new Option(run.label, i)));
  byId("sample-size").value = page.samples.length - 1;
  byId("sample-step").max = Math.max(...page.samples.map((run) => run.points.length - 1));
  byId("sample-step").value = byId("sample-step").max;
  for (const id of ["sample-size", "sample-step"]) byId(id).addEventListener("input", showSample);
  showSample();
}

// ---- The table of trials: filter by words, sort by a column ----

const body = byId("trials").tBodies[0];

function filterRows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  byId("shown").textContent = `${shown} of ${body.rows.length} trials.`;
}

function sortBy(column, descending) {
  const value = (row) => row.cells[column].dataset.value;
  const order = (a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === "" || right === "") return (left === "") - (right === "");  // what is missing goes last, both ways
    const difference = isNaN(left) || isNaN(right) ? left.localeCompare(right) : left - right;
    return descending ? -difference : difference;
  };
  body.append(...[...body.rows].sort(order));
}

[...byId("trials").tHead.rows[0].cells].forEach((cell, column) => {
  let descending = true;
  cell.addEventListener("click", () => sortBy(column, (descending = !descending)));
});
byId("filter").addEventListener("input", filterRows);
filterRows();
