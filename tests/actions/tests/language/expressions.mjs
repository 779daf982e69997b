// GitHub's own evaluator over a table of expressions: JSON on standard input, one line of JSON per row out.
// Run with the directory that holds node_modules as its argument.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const dist = `${process.argv[2]}/node_modules/@actions/expressions/dist`;
const { Lexer, Parser, Evaluator, data } = await import(pathToFileURL(`${dist}/index.js`));

const NAMES = ["github", "env", "vars", "job", "jobs", "steps", "runner", "secrets", "strategy", "matrix", "needs", "inputs"];
const status = (name, max, value) => ({
  name, description: "", minArgs: 0, maxArgs: max, call: () => new data.BooleanData(value),
});
const FUNCTIONS = [
  status("success", 255, true), status("failure", 255, false), status("always", 0, true), status("cancelled", 0, false),
  { name: "hashFiles", description: "", minArgs: 1, maxArgs: 255, call: () => new data.StringData("") },
];

function kind(value) {
  return ["String", "Array", "Object", "Boolean", "Number", "Object", "Null"][value.kind] ?? String(value.kind);
}

function plain(value) {
  switch (value.kind) {
    case data.Kind.Array: return value.values().map(plain);
    case data.Kind.Dictionary: return Object.fromEntries(value.pairs().map((it) => [it.key, plain(it.value)]));
    case data.Kind.Null: return null;
    case data.Kind.Number: return Number.isFinite(value.value) ? value.value : String(value.value);
    default: return value.value;
  }
}

for (const row of JSON.parse(readFileSync(0, "utf8"))) {
  let answer;
  try {
    const contexts = JSON.parse(JSON.stringify(row.contexts ?? {}), data.reviver);
    const names = [...new Set([...NAMES, ...Object.keys(row.contexts ?? {})])];
    const tokens = new Lexer(row.expr).lex().tokens;
    const tree = new Parser(tokens, names, FUNCTIONS).parse();
    const functions = new Map(FUNCTIONS.map((it) => [it.name.toLowerCase(), it]));
    const value = new Evaluator(tree, contexts, functions).evaluate();
    answer = { kind: kind(value), value: plain(value) };
  } catch (error) {
    answer = { err: String(error.message ?? error) };
  }
  console.log(JSON.stringify(answer));
}
