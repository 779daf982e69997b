// GitHub's own parser of workflows over files: paths on standard input, one line of JSON per file out. Run with the
// directory that holds node_modules as its argument.
import { readFileSync } from "node:fs";
import { register } from "node:module";
import { pathToFileURL } from "node:url";

// The package imports its schema without saying that it is JSON, which Node asks for.
const hook = `export const load = (url, context, next) =>
  next(url, url.endsWith(".json") ? { ...context, importAttributes: { type: "json" } } : context);`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);

const dist = `${process.argv[2]}/node_modules/@actions/workflow-parser/dist`;
const { parseWorkflow, convertWorkflowTemplate, NoOperationTraceWriter } = await import(pathToFileURL(`${dist}/index.js`));

for (const path of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const content = readFileSync(path, "utf8");
  const { context, value } = parseWorkflow({ name: path, content }, new NoOperationTraceWriter());
  const errors = () => context.errors.getErrors().map((it) => it.message);
  let jobs = [];
  if (value) {
    const template = await convertWorkflowTemplate(context, value, undefined, { errorPolicy: 1 });
    jobs = (template.jobs ?? []).map((it) => ({
      id: it.id.value,
      needs: (it.needs ?? []).map((need) => need.value),
      steps: (it.steps ?? []).length,
    }));
  }
  console.log(JSON.stringify({ path, errors: errors(), jobs }));
}
