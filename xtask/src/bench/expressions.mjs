// The peer of the benchmark `expressions`: a question as JSON on standard input; the directory with node_modules and how
// often to evaluate as arguments.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const dist = `${process.argv[2]}/node_modules/@actions/expressions/dist`;
const { Lexer, Parser, Evaluator, data } = await import(pathToFileURL(`${dist}/index.js`));
const times = Number(process.argv[3]);
const question = JSON.parse(readFileSync(0, "utf8"));
const contexts = JSON.parse(JSON.stringify(question.contexts), data.reviver);
const tree = new Parser(new Lexer(question.expr).lex().tokens, Object.keys(question.contexts), []).parse();
let value;
const begin = process.hrtime.bigint();
for (let i = 0; i < times; i++) value = new Evaluator(tree, contexts).evaluate();
const took = process.hrtime.bigint() - begin;
console.log(JSON.stringify({ value: value.coerceString(), nanoseconds: Number(took) / times }));
