"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  const data = document.getElementById("examples-data");
  if (!data) return;
  const examples = JSON.parse(data.textContent);
  const PER_PAGE = 10;
  const find = (id) => document.getElementById(id);
  const [cards, shown, search, category, differ, verdict] = [
    "cards", "shown", "search", "category", "differ", "verdict"].map(find);
  const pagers = [...document.querySelectorAll(".pager")];
  const systems = [...document.querySelectorAll("#systems input")];
  let page = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // Text only, never HTML: a reply may be anything. What was searched for is marked.
  const write = (parent, text, wanted) => {
    let from = 0;
    const low = text.toLowerCase();
    // Lower case may be longer than the text in a few alphabets; positions would then be wrong.
    while (wanted && low.length === text.length) {
      const at = low.indexOf(wanted, from);
      if (at < 0) break;
      parent.append(text.slice(from, at), element("mark", "", text.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
    parent.append(text.slice(from));
    return parent;
  };

  const wins = (found) => {
    if (found.preference === null || found.preference === undefined) return "unparsable";
    return found.preference > 0.5 ? "a" : found.preference < 0.5 ? "b" : "tie";
  };

  const pairs = [];
  for (const example of examples)
    for (const found of example.verdicts || []) {
      const name = JSON.stringify([found.a, found.b]);
      if (!pairs.includes(name)) pairs.push(name);
    }
  for (const name of pairs) {
    const [a, b] = JSON.parse(name);
    const group = element("optgroup");
    group.label = `${a} and ${b}`;
    const choices = { a: `${a} preferred to ${b}`, b: `${b} preferred to ${a}`, tie: `tie of ${a} and ${b}`,
      unparsable: `no verdict on ${a} and ${b}` };
    for (const [result, text] of Object.entries(choices)) {
      const option = element("option", "", text);
      option.value = JSON.stringify([a, b, result]);
      group.append(option);
    }
    verdict.append(group);
  }
  verdict.closest("label").hidden = !pairs.length;

  const differs = (example) => {
    const verdicts = example.verdicts || [];
    if (verdicts.length) return verdicts.some((found) => ["a", "b"].includes(wins(found)));
    return new Set(Object.values(example.replies || {})).size > 1;
  };
  const everything = (example) =>
    [example.id, example.prompt, ...Object.values(example.replies || {})].join("\n").toLowerCase();
  const texts = examples.map(everything);

  const matching = () => {
    const wanted = search.value.trim().toLowerCase();
    const [a, b, result] = verdict.value ? JSON.parse(verdict.value) : [];
    return examples.filter((example, i) =>
      (!wanted || texts[i].includes(wanted)) &&
      (!category || !category.value || example.category === category.value) &&
      (!differ.checked || differs(example)) &&
      (!result || (example.verdicts || []).some((v) => v.a === a && v.b === b && wins(v) === result)));
  };

  const verdictsOf = (example, visible) => {
    const own = (example.verdicts || []).filter((v) => visible.has(v.a) && visible.has(v.b));
    if (!own.length) return null;
    const box = element("details", "verdicts");
    const said = { a: (v) => `${v.a} over ${v.b}`, b: (v) => `${v.b} over ${v.a}`, tie: (v) => `${v.a} and ${v.b} tie`,
      unparsable: (v) => `${v.a} and ${v.b}: no verdict` };
    const lines = own.map((v) => said[wins(v)](v));
    box.append(element("summary", "", own.length > 3 ? `${own.length} verdicts` : `Judge: ${lines.join("; ")}`));
    const list = element("ul");
    own.forEach((v, i) => {
      const line = element("li", "", lines[i]);
      if (v.preference !== null && v.preference !== undefined)
        line.append(` (preference ${Number(v.preference).toFixed(2)})`);
      if (v.said) line.append(element("div", "said", v.said));
      list.append(line);
    });
    box.append(list);
    return box;
  };

  const card = (example, visible, wanted) => {
    const made = element("article", "example");
    const title = element("h3");
    title.append(write(element("span"), String(example.id), wanted));
    if (example.category) title.append(element("span", "tag", example.category));
    const prompt = write(element("p", "prompt"), example.prompt || "", wanted);
    prompt.tabIndex = 0;
    const replies = element("div", "replies");
    for (const [name, text] of Object.entries(example.replies || {})) {
      if (!visible.has(name)) continue;
      const reply = element("div", "reply");
      const heading = element("h4", "", name);
      heading.append(element("span", "", `${text.length} characters`));
      const body = text ? write(element("p"), text, wanted) : element("p", "empty", "(empty)");
      body.tabIndex = 0;
      reply.append(heading, body);
      replies.append(reply);
    }
    made.append(title, prompt, replies);
    const verdicts = verdictsOf(example, visible);
    if (verdicts) made.append(verdicts);
    return made;
  };

  const draw = () => {
    const found = matching();
    const visible = new Set(systems.filter((box) => box.checked).map((box) => box.value));
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const wanted = search.value.trim().toLowerCase();
    const own = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    cards.replaceChildren(...own.map((example) => card(example, visible, wanted)));
    shown.textContent = found.length
      ? `${page * PER_PAGE + 1} to ${page * PER_PAGE + own.length} of ${found.length} questions` +
        (found.length < examples.length ? ` (${examples.length} in all)` : "")
      : "No question fits these filters.";
    for (const pager of pagers) {
      pager.hidden = pages < 2;
      const [back, next] = pager.querySelectorAll("button");
      back.disabled = page === 0;
      next.disabled = page === pages - 1;
      pager.querySelector("span").textContent = `page ${page + 1} of ${pages}`;
    }
  };

  const again = () => { page = 0; draw(); };
  search.addEventListener("input", again);
  for (const control of [category, differ, verdict]) if (control) control.addEventListener("change", again);
  for (const box of systems) box.addEventListener("change", draw);
  for (const pager of pagers) {
    const [back, next] = pager.querySelectorAll("button");
    const go = (step) => () => { page += step; draw(); find("replies").scrollIntoView(); };
    back.addEventListener("click", go(-1));
    next.addEventListener("click", go(1));
  }
  find("browse").hidden = false;
  draw();
})();
