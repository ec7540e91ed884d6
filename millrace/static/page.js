"use strict";
const HISTORY = 120;
const history = {};
const byId = (id) => document.getElementById(id);
const number = (value) => (value === null ? "not known" : Number(value).toLocaleString("en"));
const clock = (milliseconds) => new Date(milliseconds).toLocaleTimeString("en", { hourCycle: "h23" });
const seconds = (value) => (value === null || value === undefined ? "–" : value < 10 ? value.toFixed(1) + " s" : Math.round(value) + " s");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function svg(width, height, children) {
  const root = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  root.setAttribute("width", width);
  root.setAttribute("height", height);
  root.setAttribute("aria-hidden", "true");
  children.forEach(([tag, attributes]) => {
    const child = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => child.setAttribute(name, value));
    root.append(child);
  });
  return root;
}

function sparkline(values) {
  const top = Math.max(1, ...values);
  const points = values.map((value, i) => `${(i * 120 / (HISTORY - 1)).toFixed(1)},${(21 - 19 * value / top).toFixed(1)}`);
  return svg(124, 23, values.length > 1 ? [["path", { d: "M" + points.join("L") }]] : []);
}

function bars(values) {
  const top = Math.max(1, ...values);
  const drawn = svg(values.length * 10, 20, values.map((value, i) => ["rect", { x: i * 10, width: 8, y: 19 - 18 * value / top, height: 1 + 18 * value / top }]));
  const made = element("span");
  made.title = values.map((value, i) => `partition ${i}: ${number(value)}`).join(", ");
  made.append(drawn);
  return made;
}

function tile(value, label, className) {
  const made = element("div", undefined, "tile " + (className || ""));
  made.append(element("b", value), element("span", label));
  return made;
}

function row(cells) {
  const made = element("tr");
  cells.forEach((cell) => {
    const td = element("td", undefined, cell.className);
    td.append(cell.node || cell.text || "");
    made.append(td);
  });
  return made;
}

function kept(measured, promised) {
  if (!promised || measured === null) return "";
  return measured <= promised ? "good" : "bad";
}

function showFreshness(freshness, promises) {
  const names = { click_to_search: "click to search", product_to_search: "product to search" };
  byId("freshness").replaceChildren(...Object.entries(names).flatMap(([path, name]) => [
    tile(seconds(freshness[path].p50), `${name}, half within`),
    tile(seconds(freshness[path].p99), `${name}, 99 % within (${number(freshness[path].count)} measured${promises[path] ? `, promised ${seconds(promises[path])}` : ""})`, kept(freshness[path].p99, promises[path])),
  ]));
}

function showLag(lag) {
  byId("lag").replaceChildren(...Object.entries(lag.groups).map(([group, totals]) => {
    const partitions = lag.partitions.filter((entry) => entry.group === group);
    if (totals.records !== null) history[group] = [...(history[group] || []), totals.records].slice(-HISTORY);
    return row([
      { text: group }, { text: partitions.length ? partitions[0].topic : "" },
      { text: number(totals.records), className: "n" }, { text: number(totals.held), className: "n" },
      { node: bars(partitions.map((entry) => entry.lag)) }, { node: sparkline(history[group] || []) },
    ]);
  }));
}

function showLedger(id, ledger) {
  const balanced = ledger.balance === 0;
  const verdict = ledger.balance === null ? "balance" : balanced ? "balance: every one accounted for" : "balance: some unaccounted for";
  const tiles = [tile(number(ledger.balance), verdict, balanced ? "good" : "bad")];
  Object.entries(ledger).forEach(([term, value]) => {
    if (term === "balance") return;
    if (value !== null && typeof value === "object") Object.entries(value).forEach(([reason, count]) => tiles.push(tile(number(count), `${term}: ${reason.replaceAll("_", " ")}`)));
    else tiles.push(tile(number(value), term.replaceAll("_", " ")));
  });
  byId(id).replaceChildren(...tiles);
}

function showArms(arms) {
  const share = (value) => (100 * value).toFixed(1) + " %";
  const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(4);
  const figure = (text) => ({ text: text, className: "n" });
  byId("arms").replaceChildren(...(arms ? arms.arms : []).map((arm) => row([
    { text: arm.arm }, { text: arm.surface }, figure(number(arm.searches)), figure(share(arm.click_rate)), figure(share(arm.cart_rate)),
    figure(share(arm.purchase_rate)), figure(arm.value_per_search.toFixed(3)), figure(arm.mrr_of_first_click.toFixed(3)),
    figure(share(arm.abandonment_rate)), figure(share(arm.reformulation_rate)), figure(share(arm.zero_results_rate)), figure(share(arm.no_good_match_rate)),
  ])));
  byId("comparisons").replaceChildren(...(arms ? arms.comparisons : []).map((one) => row([
    { text: one.metric }, figure(one.live === null ? "-" : one.live.toFixed(4)), figure(one.anchor === null ? "-" : one.anchor.toFixed(4)),
    figure(one.value === null ? "-" : signed(one.value)), figure(one.low === null ? "-" : `${signed(one.low)} to ${signed(one.high)}`),
    { text: one.verdict + (one.more_lists === null ? "" : `: about ${number(one.more_lists)} more lists`) },
  ])));
}

function showReleases(releases, unknown) {
  const serving = releases.serving;
  if (unknown) byId("serving").textContent = "not known: " + unknown;
  else byId("serving").textContent = serving ? `serving query release ${serving.query_release} on product release ${serving.product_release} (${serving.collection})` : "nothing is served yet";
  byId("releases").replaceChildren(...releases.releases.slice(0, 12).map((release) => {
    const name = element("span", `${release.kind} ${release.release} `);
    if (release.in_force) name.append(element("span", "in force", "pill on"));
    const failed = release.checks.filter((check) => !check.passed);
    const checks = failed.length ? element("span", failed.map((check) => check.name).join(", "), "pill failed") : element("span", `${release.checks.length} passed`);
    return row([
      { node: name }, { text: clock(release.created_at) },
      { text: number(release.pairs_trained), className: "n" }, { text: release.overlap_at_10 === null ? "-" : release.overlap_at_10.toFixed(3), className: "n" }, { node: checks },
    ]);
  }));
}

function showDecisions(decisions) {
  byId("decisions").replaceChildren(...decisions.slice(0, 5).map((one) => {
    const moved = one.verdict === "promoted" || one.verdict === "stepped_back";
    const verdict = one.verdict.replaceAll("_", " ") + (moved ? `: release ${one.subject}` : "");
    return row([{ text: clock(one.decided_at) }, { text: number(one.query_release) }, { text: verdict }, { text: one.reason }]);
  }));
}

function showProcesses(processes) {
  byId("processes").replaceChildren(...processes.map((process) => row([
    { text: process.name }, { node: element("span", process.state, "pill " + process.state) }, { text: process.reasons.join("; ") },
  ])));
}

function showTrouble(text) {
  document.body.classList.toggle("stale", Boolean(text));
  byId("trouble").hidden = !text;
  byId("trouble").textContent = text || "";
}

async function refresh() {
  try {
    const answer = await fetch("/api/snapshot", { cache: "no-store" });
    const view = await answer.json();
    if (!answer.ok) return showTrouble(view.detail);
    showTrouble(view.trouble);
    document.querySelector("main").hidden = false;
    showFreshness(view.freshness_s, view.promise_s);
    showLag(view.lag);
    showLedger("events", view.ledger.events);
    showLedger("searches", view.ledger.searches);
    showArms(view.arms);
    showReleases(view.releases, view.unknown.kafka || view.unknown.models);
    showDecisions(view.releases.decisions);
    showProcesses(view.processes);
    byId("clock").textContent = clock(view.at);
  } catch (error) {
    showTrouble("The page's own process does not answer: " + error.message);
  } finally {
    setTimeout(refresh, 1000);
  }
}

refresh();
