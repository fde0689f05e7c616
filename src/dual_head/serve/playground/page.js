// The page of a server. Whatever a model or a server says is put in as text, never as HTML.
"use strict";

const at = id => document.getElementById(id);
let strengths = {}; // of every guide: a number, or {start, end, tokens} of a preset that decays
const MOST_KL = 2; // nats, from where on a token has the full colour
let model = null, models = [], turns = [], running = null;

// An element with a text and children.
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function headers() {
  const key = at("key").value;
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

// ---- the model and its strengths

async function load() {
  let answer;
  try {
    answer = await fetch("v1/models", {headers: headers()});
  } catch {
    return say("The server does not answer.");
  }
  at("key-field").hidden = answer.status !== 401 && !at("key").value;
  if (!answer.ok) return say(await problem(answer));
  models = (await answer.json()).data;
  model = models[0];
  strengths = {};
  at("model").textContent = `${model.id}, ${model.max_model_len} tokens of context`;
  const names = Object.keys(model.guides);
  at("guides").replaceChildren(...names.map(slider));
  if (names.length && names.every(name => !strengths[name])) at("guides").children[0].set(1); // or all columns are alike
  if (!names.length) {
    at("guides").textContent = "This model has no guide.";
    at("columns").value = "1";
  }
  at("preset").replaceChildren(...models.map(each => make("option", {value: each.id, textContent: each.id})));
  say("ready");
}

// What a server, or a proxy before it, says of a request that it refuses.
async function problem(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answers ${answer.status} ${answer.statusText}`.trim() + ".";
  }
}

function slider(name) {
  strengths[name] = model.guides[name].alpha;
  const settings = {min: -2, max: 4, step: 0.05, value: strengths[name]};
  const range = make("input", {type: "range", ...settings, ariaLabel: `strength of ${name}`});
  const number = make("input", {type: "number", step: 0.05, value: strengths[name], ariaLabel: `strength of ${name}`});
  const label = make("span", {textContent: name});
  const set = value => {
    strengths[name] = value;
    range.value = number.value = value.start ?? value;
    label.textContent = value.tokens ? `${name}, ${described(value)}` : name;
  };
  range.oninput = () => set(Number(range.value));
  number.onchange = () => set(Number(number.value));
  const row = make("div", {className: "guide"}, label, range, number);
  row.set = set;
  row.dataset.guide = name;
  return row;
}

at("preset").onchange = () => {
  const preset = models.find(each => each.id === at("preset").value);
  for (const row of at("guides").children) row.set(preset.alpha[row.dataset.guide]);
};

function times(factor, value) {
  if (!factor) return 0;
  if (value.tokens) return {...value, start: times(factor, value.start), end: times(factor, value.end)};
  return Number((factor * value).toFixed(4));
}

function described(value) {
  return value.tokens ? `${value.start} to ${value.end} in ${value.tokens} tokens` : value;
}

// ---- requests

function request(factor, turn) {
  const messages = [];
  if (at("system").value.trim()) messages.push({role: "system", content: at("system").value});
  for (const before of turns) {
    if (before === turn) break;
    const {reply} = before.columns[before.chosen];
    if (!reply) continue; // an error, or stopped before the first token
    messages.push({role: "user", content: before.asked}, {role: "assistant", content: reply});
  }
  messages.push({role: "user", content: turn.asked});
  const body = {model: model.id, messages, max_tokens: Number(at("tokens").value), temperature: Number(at("temperature").value)};
  if (Object.keys(strengths).length) {
    body.alpha = Object.fromEntries(Object.entries(strengths).map(([name, value]) => [name, times(factor, value)]));
  }
  if (body.temperature > 0) body.seed = Number(at("seed").value);
  return body;
}

// Reads a stream of server-sent events, and calls `take` with each one's JSON.
async function stream(body, signal, take) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), signal, body: JSON.stringify({...body, stream: true, trace: true}),
  });
  if (!answer.ok) throw new Error(await problem(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      take(part);
    }
  }
}

async function send() {
  const asked = at("message").value;
  if (!asked.trim() || running || !model) return;
  running = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  at("message").value = "";
  const turn = {asked, columns: [], chosen: 0};
  turns.push(turn);
  const factors = at("columns").value.split(" ").map(Number);
  turn.columns = factors.map((factor, i) => column(turn, factor, i));
  choose(turn, factors.indexOf(1));
  const columns = make("div", {className: "columns"}, ...turn.columns.map(each => each.element));
  at("chat").append(make("section", {className: "turn"}, make("div", {className: "asked", textContent: asked}), columns));
  columns.scrollIntoView({block: "nearest"});
  say("generating");
  const started = performance.now();
  await Promise.all(turn.columns.map(each => fill(each, running.signal)));
  const tokens = turn.columns.reduce((sum, each) => sum + each.tokens, 0);
  say(`${tokens} tokens in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  running = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  at("message").focus();
}

function column(turn, factor, i) {
  const body = request(factor, turn);
  const heading = Object.entries(body.alpha ?? {}).map(([name, value]) => `${name} ${described(value)}`).join(", ") || "no guide";
  const pick = make("button", {type: "button", textContent: "go on from here", onclick: () => choose(turn, i)});
  const text = make("div", {className: "text"});
  const element = make("article", {className: "column"}, make("h2", {}, make("span", {textContent: heading}), pick), text);
  return {element, text, body, reply: "", tokens: 0};
}

function choose(turn, i) {
  turn.chosen = i;
  turn.columns.forEach((each, j) => each.element.classList.toggle("chosen", i === j));
}

async function fill(each, signal) {
  try {
    await stream(each.body, signal, part => {
      for (const choice of part.choices) {
        const words = choice.delta.content ?? "";
        each.reply += words;
        const entries = choice.logprobs?.content ?? [];
        each.tokens += entries.length;
        each.text.append(...tokens(words, entries));
        if (choice.finish_reason === "length") each.element.append(make("div", {className: "cut", textContent: "cut at the limit of tokens"}));
      }
    });
  } catch (error) {
    const stopped = error.name === "AbortError";
    each.text.append(make("span", {className: "error", textContent: stopped ? " (stopped)" : ` ${error.message}`}));
  }
}

// ---- tokens

// An element a token, where the text is that of its tokens: some of it may wait for what comes next.
function tokens(words, entries) {
  if (entries.map(entry => entry.token).join("") === words) return entries.map(entry => token(entry.token, [entry]));
  return words ? [token(words, entries)] : [];
}

function token(words, entries) {
  const element = make("span", {className: "token", textContent: words});
  const traces = entries.map(entry => entry.dual_head).filter(Boolean);
  if (!traces.length) return element;
  const mean = values => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  element.dataset.kl = mean(traces.map(trace => trace.kl));
  element.dataset.gate = mean(traces.flatMap(trace => Object.values(trace.gates)));
  element.details = traces.map(trace => {
    const gates = Object.entries(trace.gates).map(([name, gate]) => `${name} ${gate.toFixed(2)}`).join(", ");
    const promoted = trace.promoted.map(each => `${JSON.stringify(each.token)} +${each.gain.toFixed(3)}`).join("\n");
    return `KL ${trace.kl.toFixed(3)} nats${gates ? `\ngate ${gates}` : ""}${promoted ? `\npromoted\n${promoted}` : ""}`;
  }).join("\n\n");
  colour(element);
  return element;
}

function colour(element) {
  const {kl, gate} = element.dataset;
  const share = {kl: Math.min(1, kl / MOST_KL), gate: Number(gate), none: 0}[at("colour").value];
  element.style.background = share > 0.01 ? `rgba(var(--heat), ${(0.75 * share).toFixed(3)})` : "";
}

at("colour").onchange = () => document.querySelectorAll(".token").forEach(colour);

document.addEventListener("pointerover", event => {
  const details = event.target.details;
  at("details").hidden = !details;
  if (!details) return;
  at("details").textContent = details;
  const place = event.target.getBoundingClientRect();
  at("details").style.left = `${Math.max(4, Math.min(place.left, innerWidth - at("details").offsetWidth - 8))}px`;
  const below = place.bottom + 6;
  const fits = below + at("details").offsetHeight < innerHeight;
  at("details").style.top = `${fits ? below : place.top - at("details").offsetHeight - 6}px`;
});

// ---- copies

function lastBody() {
  const turn = turns.at(-1);
  return turn ? turn.columns[turn.chosen].body : request(1, {asked: at("message").value || "Hello"});
}

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

function curl(body) {
  const key = at("key").value ? ' \\\n  -H "Authorization: Bearer $DUAL_HEAD_API_KEY"' : "";
  const url = new URL("v1/chat/completions", location.href);
  return `curl ${url} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

function python(body) {
  const {alpha, ...rest} = body;
  const fields = Object.entries(rest).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  const extra = alpha ? `    extra_body={"alpha": ${JSON.stringify(alpha)}},\n` : "";
  const key = at("key").value ? 'os.environ["DUAL_HEAD_API_KEY"]' : '"none"';
  return `${at("key").value ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url="${new URL("v1", location.href)}", api_key=${key})\n` +
    `reply = client.chat.completions.create(\n${fields}${extra})\nprint(reply.choices[0].message.content)\n`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("copied");
  } catch { // a browser gives pages of other machines no clipboard without HTTPS
    const area = make("textarea", {className: "copied", value: text, rows: 10, readOnly: true});
    at("ask").querySelector(".copied")?.remove();
    at("ask").append(area);
    area.select();
    say("copy the text below");
  }
}

// ---- controls

function say(text) {
  at("state").textContent = text;
}

at("ask").onsubmit = event => {
  event.preventDefault();
  send();
};
at("settings").onsubmit = at("key-field").onsubmit = event => event.preventDefault();
at("stop").onclick = () => running?.abort();
at("clear").onclick = () => {
  running?.abort();
  turns = [];
  at("chat").replaceChildren();
};
at("curl").onclick = () => copy(curl(lastBody()));
at("python").onclick = () => copy(python(lastBody()));
at("key").onchange = load;
at("message").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
};
document.addEventListener("keydown", event => {
  if (event.key === "Escape") running?.abort();
});
load();
