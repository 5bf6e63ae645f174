// Applies the messages of each line of the input, and prints what the copy has after each step.
import {createInterface} from 'node:readline';
import {pathToFileURL} from 'node:url';

const {Copy, canonical} = await import(pathToFileURL(process.argv[2]));

for await (const line of createInterface({input: process.stdin})) {
  const {query, steps} = JSON.parse(line);
  const copy = new Copy(query);
  const found = steps.map((messages) => {
    messages.forEach((message) => copy.take(message));
    return [[...copy.entries.values()].map(({row}) => canonical(row)), copy.position];
  });
  console.log(JSON.stringify(found));
}
