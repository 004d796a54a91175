// Shows the problems that match the filters, some at a time. Text goes in as text, never as markup.
"use strict";
(() => {
  const STEP = 30;
  const problems = JSON.parse(document.getElementById("answers-data").textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const fields = [...form.elements].filter((field) => field.name);
  let matches = [];
  let shown = 0;

  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // A fault of form is a flag of its answer; the other outcomes are of the answers together.
  const has = (answers, outcome) => {
    const right = answers.filter((answer) => answer.right).length;
    if (outcome === "right") return right > 0;
    if (outcome === "wrong") return answers.some((answer) => answer.right === false);
    if (outcome === "mixed") return right > 0 && right < answers.length;
    return answers.some((answer) => answer.flags.includes(outcome));
  };

  const text = (problem, answers) => [
    problem.id, problem.prompt, problem.expected,
    ...answers.flatMap((answer) => [answer.thinking, answer.answer, answer.note]),
  ].join("\n").toLowerCase();

  const match = (wanted) => problems.flatMap((problem) => {
    if (wanted.task && problem.task !== wanted.task) return [];
    if (wanted.kind && problem.kind !== wanted.kind) return [];
    const answers = problem.answers.filter((answer) =>
      (!wanted.model || answer.model === wanted.model)
      && (!wanted.mode || answer.mode === wanted.mode));
    if (!answers.length) return [];
    if (wanted.outcome && !has(answers, wanted.outcome)) return [];
    if (wanted.text && !text(problem, answers).includes(wanted.text.toLowerCase())) return [];
    return [[problem, answers]];
  });

  const trace = (answer) => {
    const details = element("details", "trace");
    details.open = answer.thinking.length < 800;
    details.append(element("summary", "quiet", "thinking"),
      element("pre", "thinking", answer.thinking));
    return details;
  };

  const column = (answer) => {
    const box = element("div", "answer " + answer.mode.split(",")[0]);
    const verdict = answer.right === null ? "not checked" : answer.right ? "right" : "wrong";
    const head = element("h4", "", answer.model + ", " + answer.mode + " ");
    head.append(element("span", verdict.split(" ")[0], verdict));
    box.append(head);
    if (answer.thinking) box.append(trace(answer));
    box.append(answer.answer ? element("pre", "", answer.answer)
      : element("p", "quiet", "(no answer)"));
    if (answer.note) box.append(element("p", "quiet", answer.note));
    return box;
  };

  const article = ([problem, answers]) => {
    const made = element("article", "");
    made.tabIndex = -1;
    const kind = problem.kind ? ": " + problem.kind : "";
    made.append(element("h3", "", problem.task + ", problem " + problem.id + kind));
    const asked = element("div", "problem");
    asked.append(element("pre", "", problem.prompt));
    if (problem.expected) {
      const expected = element("p", "", "Expected: ");
      expected.append(element("b", "", problem.expected));
      asked.append(expected);
    }
    const columns = element("div", "modes");
    columns.append(...answers.map(column));
    made.append(asked, columns);
    return made;
  };

  const showMore = () => {
    const next = matches.slice(shown, shown + STEP).map(article);
    list.append(...next);
    shown += next.length;
    const rest = matches.length - shown;
    count.textContent = matches.length + " of " + problems.length + " problems match"
      + (rest > 0 ? ", " + shown + " of them are shown." : ".");
    more.hidden = rest <= 0;
    more.textContent = "Show " + Math.min(STEP, rest) + " more";
    return next[0];
  };

  const state = () => {
    const values = fields.map((field) => [field.name, field.value.trim()]);
    return Object.fromEntries(values.filter(([, value]) => value));
  };

  const refresh = () => {
    matches = match(state());
    shown = 0;
    list.replaceChildren();
    showMore();
  };

  // The filters are in the address after #, so that a view can be linked.
  const write = () => location.replace("#" + (new URLSearchParams(state()).toString() || "all="));
  const read = () => {
    const hash = location.hash.slice(1);
    if (!hash.includes("=")) return false;
    const values = new URLSearchParams(hash);
    for (const field of fields) {
      const value = values.get(field.name) || "";
      const known = field.tagName !== "SELECT"
        || [...field.options].some((option) => option.value === value);
      field.value = known ? value : "";
    }
    return true;
  };

  const move = (step) => {
    const articles = [...list.children];
    const at = articles.indexOf(document.activeElement.closest("#list > article"));
    const next = articles[at < 0 ? 0 : at + step] || (step > 0 && !more.hidden ? showMore() : null);
    if (next) {
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "start" });
    }
  };

  let timer;
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { refresh(); write(); }, 150);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { refresh(); write(); }));
  more.addEventListener("click", () => {
    const first = showMore();
    if (first) first.focus();
  });
  addEventListener("hashchange", () => {
    const before = JSON.stringify(state());
    if (read() && JSON.stringify(state()) !== before) refresh();
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      form.elements.text.focus();
    } else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
  });
  read();
  refresh();
})();
